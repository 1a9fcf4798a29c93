"""What the two state machines hear, and what they ask for. Whoever runs them turns the one into the other.

What was not answered in time is :class:`Silence`: it says nothing of what became of it.
"""

from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct

from ..store.owner import Owner


class SourceVerb(StrEnum):
    """What is asked of the QEMU that the machine leaves; each is a method of :class:`.ports.Side`."""

    ASK = "ask"
    PREPARE = "prepare"
    MIRROR = "mirror"
    SEND = "send"
    POSTCOPY = "postcopy"
    SYNC = "sync"
    CONTINUE = "continue"
    CANCEL = "cancel"
    CONT = "cont"
    REJOIN = "rejoin"
    QUIT = "quit"


class TargetVerb(StrEnum):
    """What is asked of the node that the machine goes to; each is a method of :class:`.ports.Peer`."""

    ASK = "ask"
    ACCEPT = "accept"
    RUN = "run"
    REOPEN = "reopen"
    DISCARD = "discard"


class ArrivalVerb(StrEnum):
    """What is asked of the QEMU that waits for the machine; each is a method of :class:`.ports.Incoming`."""

    ASK = "ask"
    LAUNCH = "launch"
    CONT = "cont"
    REOPEN = "reopen"
    KILL = "kill"


# -- what is heard -----------------------------------------------------------------------------------------------------


class Begin(Struct, frozen=True):
    """Go.

    :ivar again: somebody went before, and ended in the middle: nothing is known of how far that was
    """

    again: bool = False


class QemuSaid(Struct, frozen=True):
    """What a QEMU on this node says, or what is known of its process: asked, or by an event.

    :ivar status: of the migration (``query-migrate``)
    :ivar run: the run state (``query-status``)
    :ivar gone: the process has been seen dead; the rest is empty
    """

    status: str = ""
    run: str = ""
    gone: bool = False


class TargetSaid(Struct, frozen=True):
    """What the other node says of the QEMU there.

    :ivar incarnation: of which
    :ivar order: grows with each answer of that node, so that a late one is told from a new one
    :ivar status: of the migration; run: the run state. As that node has last heard them: after a cut in postcopy QEMU
        itself says nothing any more
    :ivar gone: the process has been seen dead, or was never started; whatever comes, it does not run
    :ivar ran: whether it has ever been told to run, or that it is the machine and stands still; None: that node cannot
        tell any more
    :ivar refused: why that node does not take the machine; empty: it does
    """

    incarnation: str
    order: int
    status: str = ""
    run: str = ""
    gone: bool = False
    ran: bool | None = False
    refused: str = ""


class SourceDid(Struct, frozen=True):
    """The answer to what was asked of the source.

    :ivar why: why it was refused; empty: it was done, or has begun
    """

    verb: SourceVerb
    why: str = ""


class TargetDid(Struct, frozen=True):
    """The answer to what was asked of the other node, where `TargetSaid` does not say it all: see `SourceDid`."""

    verb: TargetVerb
    why: str = ""


class ArrivalDid(Struct, frozen=True):
    """The answer to what was asked of the QEMU that waits: see `SourceDid`."""

    verb: ArrivalVerb
    why: str = ""


class OwnerIs(Struct, frozen=True):
    """The owner record, as it is after it was read, or after a swap has been made or refused.

    :ivar owner: None: there is none
    """

    owner: Owner | None


class Silence(Struct, frozen=True):
    """What was awaited has not come in time: UNKNOWN."""


class Cancel(Struct, frozen=True):
    """Somebody wants the migration to end, and the machine to stay."""


class GoPostcopy(Struct, frozen=True):
    """The policy wants the rest to be fetched by the machine where it runs next."""


class Confirmed(Struct, frozen=True):
    """A person says that the QEMU on the other node is dead, and gives up what was in its memory, if it ran."""


class Asked(Struct, frozen=True):
    """The other node asks the arrival for something.

    :ivar epoch: with :attr:`TargetVerb.RUN` the record's, once it has named this process the owner
    """

    verb: TargetVerb
    epoch: int = 0


Event: TypeAlias = (
    Begin | QemuSaid | TargetSaid | SourceDid | TargetDid | OwnerIs | Silence | Cancel | GoPostcopy | Confirmed
)
ArrivalEvent: TypeAlias = Begin | QemuSaid | ArrivalDid | OwnerIs | Silence | Asked

# -- what is asked for -------------------------------------------------------------------------------------------------


class Read(Struct, frozen=True):
    """Read the owner record, as it is now: answered by :class:`OwnerIs`."""


class Swap(Struct, frozen=True):
    """Change the owner record, if it is as expected: answered by :class:`OwnerIs`, be it done or refused.

    :ivar expect: how it has to be
    :ivar new: how it is to be
    """

    expect: Owner
    new: Owner


class OnSource(Struct, frozen=True):
    """Ask something of the source: answered by :class:`SourceDid`, and :class:`QemuSaid` with what is so then."""

    verb: SourceVerb


class OnTarget(Struct, frozen=True):
    """Ask something of the other node: answered by :class:`TargetSaid`, and :class:`TargetDid` for
    :attr:`TargetVerb.REOPEN`.

    :ivar epoch: the record's, as far as is known here
    """

    verb: TargetVerb
    epoch: int


class OnArrival(Struct, frozen=True):
    """Ask something of the QEMU that waits: answered by :class:`ArrivalDid` and :class:`QemuSaid`."""

    verb: ArrivalVerb


class Tell(Struct, frozen=True):
    """Answer the other node with :class:`TargetSaid`.

    :ivar refused: why the machine is not taken
    """

    refused: str = ""


class TellDid(Struct, frozen=True):
    """Answer the other node with :class:`TargetDid`."""

    verb: TargetVerb
    why: str = ""


class Wait(Struct, frozen=True):
    """Say :class:`Silence` if the state is the same after a while. It takes the place of the last one.

    :ivar seconds: how long
    """

    seconds: float


class Raise(Struct, frozen=True):
    """Tell people: it cannot go on by itself, or not now.

    :ivar text: what is the matter
    :ivar command: what to type next
    """

    text: str
    command: str


class Clear(Struct, frozen=True):
    """What people were told is over."""


class Result(StrEnum):
    """How a migration ends."""

    DONE = "done"
    """The machine runs on the other node; nothing of it is left here."""
    FAILED = "failed"
    """The machine is where it was, as it would be without the migration; nothing of it is left on the other node."""
    LOST = "lost"
    """The machine has ended as by a crash, torn between two nodes; it can be started."""


class End(Struct, frozen=True):
    """The migration is over.

    :ivar why: what led to it, where it did not move
    """

    result: Result
    why: str = ""


Action: TypeAlias = Read | Swap | OnSource | OnTarget | Wait | Raise | Clear | End
ArrivalAction: TypeAlias = Read | Swap | OnArrival | Tell | TellDid | Wait | Raise | Clear | End
