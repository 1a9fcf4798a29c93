"""What a node must offer, so that machines can move from it and to it. Whoever runs the state machines implements it.

For all of them: an error that says no is :class:`~drover.errors.CommandError` or another one that is no time-out, and
becomes the answer's ``why``. What did not answer in time (:class:`~drover.errors.MonitorTimeout`, a call whose
connection broke) is no answer at all; the state machines hear :class:`.words.Silence` by their own timer.
"""

from abc import ABC, abstractmethod

from ..store.owner import Owner
from .words import QemuSaid, TargetVerb


class Register(ABC):
    """The owner record of one machine, wherever it lies: a store in common, or the old owner's own."""

    @abstractmethod
    async def read(self) -> Owner | None:
        """The record as it is now, not as it was; None: there is none."""

    @abstractmethod
    async def swap(self, expect: Owner, new: Owner) -> Owner:
        """Change it if it is as expected (:meth:`drover.store.owner.Owners.swap`).

        :returns: `new`; or what there is, if it is not as expected
        """


class Side(ABC):
    """The QEMU that a machine leaves. Everything is told it by one connection, so that it does it in that order.

    What it was told and has not answered it may still do. So there is an answer to everything, at the latest once a new
    connection stands: by then the old one's is done, or never will be.

    After each answer it is told how it is then (:class:`.words.QemuSaid`): what was said before is old by that.

    Each change of its state is told without being asked for (events ``MIGRATION``, ``STOP``, ``RESUME``, the end of the
    process), in the order of the answers. The status is asked for before the run state, never after it.
    """

    @abstractmethod
    async def ask(self) -> QemuSaid:
        """How it is. ``gone`` only when the process was seen dead: no answer is none."""

    @abstractmethod
    async def prepare(self) -> None:
        """Make the settings that the plan needs, and read them back: ``return-path``, ``pause-before-switchover``, …"""

    @abstractmethod
    async def mirror(self) -> None:
        """Mirror the disks that go along until both sides are the same and stay so; those that are mirrored already,
        by an earlier life of the daemon, go on."""

    @abstractmethod
    async def send(self) -> None:
        """Begin to send the memory (``migrate``)."""

    @abstractmethod
    async def postcopy(self) -> None:
        """Have the rest fetched by the other side (``migrate-start-postcopy``)."""

    @abstractmethod
    async def sync(self) -> None:
        """End the mirrors, both sides the same. The machine stands still."""

    @abstractmethod
    async def go_on(self) -> None:
        """Send the rest (``migrate-continue`` from ``pre-switchover``)."""

    @abstractmethod
    async def cancel(self) -> None:
        """End the mirrors and the migration (``migrate_cancel``); it runs on by itself."""

    @abstractmethod
    async def cont(self) -> None:
        """Run again, after all was sent (``cont``)."""

    @abstractmethod
    async def rejoin(self) -> None:
        """Postcopy was cut: connect anew (``migrate`` with ``resume``)."""

    @abstractmethod
    async def quit(self) -> None:
        """End it, by a signal if it does not listen, and remove what it had on the host."""


class Peer(ABC):
    """The node that a machine goes to. Each question may come twice, or late; it does what it is asked once.

    It answers by events, which come to whoever drives the migration (:meth:`.driver.Driver.hear`): a
    :class:`.words.TargetSaid`, and a :class:`.words.TargetDid` for :attr:`.words.TargetVerb.REOPEN`. What it learns
    from QEMU later it tells without being asked for.

    Its answers are numbered (``order``) by something that grows for ever, whatever of it is started anew, such as its
    clock together with the number of its lives. Of a process of an earlier boot it knows that it is dead.
    """

    @abstractmethod
    async def ask(self, verb: TargetVerb, epoch: int) -> None:
        """Ask it for something; what was asked and is not answered may be lost.

        :param epoch: the record's, as far as is known here
        """


class Incoming(ABC):
    """The QEMU that waits for a machine; for the rest see :class:`Side`."""

    @abstractmethod
    async def ask(self) -> QemuSaid:
        """How it is, as :meth:`Side.ask`. Where its main loop hangs that is no answer, and events alone tell."""

    @abstractmethod
    async def launch(self) -> None:
        """Start it (``-S -incoming defer``), make its settings (``return-path``, ``late-block-activate``, …), read them
        back, have it listen. Under one name it is started once, ever."""

    @abstractmethod
    async def cont(self) -> None:
        """Run (``cont``). Never told while it is in ``inmigrate``."""

    @abstractmethod
    async def reopen(self) -> None:
        """Postcopy was cut: listen anew (``yank`` where QEMU has not noticed, ``migrate-recover``; both out
        of band, for the main loop hangs)."""

    @abstractmethod
    async def kill(self) -> None:
        """End it, and remove what it had on the host. Done when the process was seen dead, or is not there."""
