"""What two node daemons say to each other while a machine moves: plain data, as JSON."""

from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from ..kvm.handover import Settings
from ..kvm.keys import Keys
from ..kvm.parcel import Parcel
from ..qmp.ready import ready
from ..store.owner import Owner
from .arrival import Newcomer
from .forecast import ENDLESS
from .storage import Plan
from .words import TargetDid, TargetSaid, TargetVerb


class Invitation(Struct, frozen=True, kw_only=True):
    """What a node has to know to take a machine. It holds the machine's secrets.

    :ivar parcel: of the machine
    :ivar process: the process that is to take it, as the record will name it
    :ivar epoch: the record's while the machine is on its way
    :ivar other: the node that it comes from
    :ivar home: where the daemon answers that has the record; empty: the one that is asked has it itself
    :ivar settings: for the QEMU that waits
    :ivar scheme: over which it is to listen
    :ivar emulator: the QEMU that is to wait; empty: the specification's
    :ivar disks: what becomes of its images
    :ivar keys: of TLS, for the QEMU that waits; None: all goes over in the clear
    :ivar paused: its guest stands still, and is to there
    """

    parcel: Parcel
    process: Owner
    epoch: int
    other: str
    home: list[str]
    settings: Settings = Settings()
    scheme: str = "tcp"
    emulator: str = ""
    disks: Plan = Plan()
    keys: Keys | None = None
    paused: bool = False

    @property
    def newcomer(self) -> Newcomer:
        """The machine, for the state machine."""
        return Newcomer(
            machine=self.parcel.spec.name, process=self.process, epoch=self.epoch, paused=self.paused
        )  # fmt: skip


class Question(Struct, frozen=True, kw_only=True, tag="ask"):
    """Asked of the node that the machine goes to.

    :ivar incarnation: the process that is meant
    :ivar invitation: with :attr:`.words.TargetVerb.ACCEPT`; None: it is only accepted if it has been already
    :ivar console: with :attr:`.words.TargetVerb.RUN`: the end of what the guest wrote on its console
    """

    verb: TargetVerb
    epoch: int
    incarnation: str
    invitation: Invitation | None = None
    console: bytes = b""


class Said(Struct, frozen=True, kw_only=True, tag="said"):
    """How the QEMU there is.

    :ivar listens: where it listens for the machine, in QEMU's words; empty: nowhere yet
    :ivar disks: where it exports disks: a host and a port; empty: nowhere
    :ivar granted: bytes a second that it may send over that node's link
    """

    said: TargetSaid
    listens: str = ""
    disks: str = ""
    granted: float = ENDLESS


class Did(Struct, frozen=True, kw_only=True, tag="did"):
    """The answer to a question; `listens` as in :class:`Said`."""

    did: TargetDid
    listens: str = ""


class GoOver(Struct, frozen=True, kw_only=True, tag="go-over"):
    """What is beneath the disks has been copied: the disks are to be exported now.

    :ivar incarnation: the process that is meant
    """

    incarnation: str


class WentOver(Struct, frozen=True, kw_only=True, tag="went-over"):
    """The answer to that.

    :ivar why: it was not done; empty: it was
    """

    why: str = ""


class Usage(Struct, frozen=True, kw_only=True, tag="usage"):
    """What a migration uses of the link.

    :ivar incarnation: whose
    :ivar rate: bytes a second, for the last second or more
    :ivar limit: it may use no more, whatever that node grants
    """

    incarnation: str
    rate: float
    limit: float = ENDLESS


Answer: TypeAlias = Said | Did | WentOver
MAX_LETTER: Final = 4 << 20  # bytes; a parcel has some kB


def encode(letter: Question | Usage | GoOver | Answer) -> bytes:
    """As JSON."""
    return msgspec.json.encode(letter)


def asked(data: bytes | str) -> Question | Usage | GoOver:
    """From JSON, what the node says that a machine leaves.

    :raises msgspec.ValidationError: it is nothing of the kind
    """
    found: Question | Usage | GoOver = msgspec.json.decode(data, type=_ASKED)
    return found


def answer(data: bytes | str) -> Answer:
    """From JSON.

    :raises msgspec.ValidationError: it is none
    """
    found: Answer = msgspec.json.decode(data, type=_ANSWER)
    return found


_ANSWER: Final[Any] = Said | Did | WentOver
_ASKED: Final[Any] = Question | Usage | GoOver

ready(Question)
