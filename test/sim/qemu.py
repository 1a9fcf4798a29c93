"""Two simulated QEMUs with a migration between them, as far as who runs goes.

They are held to the same scenarios as real ones (scenarios.py): whatever is surprising here is so there.
"""

from collections.abc import Callable
from typing import Any, Final

from sim.clock import Clock, Delay

HELD: Final = ("finish-migrate", "postmigrate")
UNDER_WAY: Final = ("setup", "active", "pre-switchover", "device")


class Refused(Exception):
    """QEMU says no."""


class Qemu:
    """One process.

    :ivar version: 7 or 10
    :ivar status: of the migration; run: the run state
    :ivar alive: the process is there; a simulated one can be frozen, as by SIGSTOP, besides
    :ivar blocked: the main loop answers nothing but what is out of band
    :ivar memory: how new what it has of the guest's memory is
    :ivar touches: its main loop comes to memory that may not be there
    :ivar loads: it can load what comes; slow: it does not come to an end before postcopy
    :ivar changed: called after each change
    """

    __slots__ = (
        "alive",
        "armed",
        "blocked",
        "changed",
        "listening",
        "loads",
        "memory",
        "multifd",
        "pause",
        "postcopy",
        "resumes",
        "return_path",
        "run",
        "slow",
        "started_postcopy",
        "status",
        "stuck",
        "touches",
        "version",
        "wire",
    )

    def __init__(self, version: int, run: str) -> None:
        self.version, self.run = version, run
        self.status = "none"
        self.alive, self.blocked, self.listening, self.armed = True, False, False, False
        self.return_path, self.pause, self.postcopy, self.multifd = True, True, False, False
        self.started_postcopy = self.slow = False
        self.loads, self.touches, self.stuck = True, False, False
        self.memory = 0
        self.resumes = 0
        self.wire: Wire | None = None
        self.changed: Callable[[], None] = _nothing

    def set(self, *, postcopy: bool, multifd: bool) -> None:
        """`migrate-set-capabilities`."""
        if postcopy and multifd and self.version > 7:
            raise Refused("Postcopy is not yet compatible with multifd")
        self.postcopy, self.multifd = postcopy, multifd

    @property
    def running(self) -> bool:
        return self.alive and self.run == "running"

    def cont(self) -> None:
        """`cont`: in inmigrate it only undoes -S."""
        if self.run == "inmigrate":
            self.armed = True
            return
        if self.run == "finish-migrate":
            raise Refused("Migration is not finalized yet")
        self._run()

    def _run(self) -> None:
        if self.run != "running":
            self.run = "running"
            self.resumes += 1
        self.changed()

    def die(self) -> None:
        """The process is dead, however it came to it."""
        if self.alive:
            self.alive = False
            self.run = ""
            self.changed()
            if self.wire is not None:
                self.wire.cut()

    # -- as a source ---------------------------------------------------------------------------------------------------

    def migrate(self, wire: "Wire") -> None:
        """`migrate` to whoever listens at the other end of the wire."""
        if self.run == "postmigrate":
            raise Refused("Can't migrate the vm that was paused due to previous migration")
        if self.status in UNDER_WAY or self.status.startswith("postcopy") or self.status == "cancelling":
            raise Refused("There's a migration process in progress")
        self.started_postcopy = False
        self.wire = wire
        self.status = "setup"
        self.changed()
        wire.connect()

    def stand(self) -> None:
        """The memory is sent: stop the machine."""
        if not self.alive or self.status != "active" or (self.slow and not self.started_postcopy):
            return
        self.run = "finish-migrate"
        if self.pause:
            self.status = "pre-switchover"
            self.changed()
        else:
            self._switch()

    def go_on(self) -> None:
        """`migrate-continue`."""
        if self.status != "pre-switchover":
            raise Refused("Migration not in expected state")
        self._switch()

    def _switch(self) -> None:
        assert self.wire is not None
        if self.started_postcopy and self.wire.broken:
            if self.version == 7:
                self.status, self.run = "failed", "postmigrate"
            else:
                self.status = "device"  # and nothing leads out of it
                self.stuck = True
            self.changed()
            return
        if self.started_postcopy:
            self.status = "postcopy-active"
            self.changed()
            self.wire.send(self.wire.target.take_package, self.memory)
            return
        self.status = "device"
        self.changed()
        if self.wire.broken:
            self.wire.later(self.lost_target)
            return
        self.wire.send(self.wire.target.take_all, self.memory)
        if not self.return_path:
            self.wire.later(self.complete)

    def start_postcopy(self) -> None:
        """`migrate-start-postcopy`."""
        if not self.postcopy:
            raise Refused("Enable postcopy with migrate_set_capability before the start of migration")
        if self.status in ("none", "failed", "completed", "cancelled"):
            raise Refused("Start postcopy after migration has been started")
        self.started_postcopy = True
        if self.slow:
            assert self.wire is not None
            self.wire.later(self.stand)

    def complete(self) -> None:
        """All is with the other one, as far as can be told here."""
        if self.alive and self.status in ("device", "postcopy-active"):
            self.status = "completed"
            self.run = "postmigrate"
            self.changed()

    def cancel(self) -> None:
        """`migrate_cancel`."""
        if self.status.startswith("postcopy"):
            if self.version > 7:
                raise Refused("Postcopy migration can not be canceled")
            self.status, self.run = "cancelled", "postmigrate"
            self.changed()
            assert self.wire is not None
            self.wire.cut()
            return
        if self.status not in UNDER_WAY:
            return
        if self.stuck:
            self.status = "cancelling"
            self.changed()
            return
        self.status = "cancelled"
        if self.run in HELD and self.started_postcopy and self.version == 7:
            self.run = "postmigrate"
        elif self.run in HELD:
            self.run = "running"
            self.resumes += 1
        self.changed()
        assert self.wire is not None
        self.wire.cut()

    def lost_target(self) -> None:
        """The connection is broken, as the source sees it: it takes the machine back, wherever it still can."""
        if not self.alive or self.stuck or self.status == "pre-switchover":
            return  # it notices when it goes on
        if self.status in UNDER_WAY:
            self.status = "failed"
            if self.run in HELD:
                self.run = "running"
                self.resumes += 1
            self.changed()
        elif self.status in ("postcopy-active", "postcopy-recover"):
            self.status = "postcopy-paused"
            self.changed()

    # -- as a target ---------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """`migrate-incoming`."""
        if self.run != "inmigrate" or self.listening:
            raise Refused("The incoming migration has already been started")
        self.listening = True
        self.status = "setup"
        self.changed()

    def take_all(self, memory: int) -> None:
        """All of the machine has come."""
        if not self.alive or self.status != "active":
            return
        if not self.loads:
            assert self.wire is not None
            self.wire.broken = False
            self.lost_source()
            self.wire.cut()
            return
        self.memory = memory
        self.status = "completed"
        self._loaded()
        assert self.wire is not None
        self.wire.answer()

    def take_package(self, memory: int) -> None:
        """Postcopy: enough of the machine has come to run."""
        if not self.alive or self.status != "active":
            return
        self.memory = memory
        self.status = "postcopy-active"
        self._loaded()
        assert self.wire is not None
        self.wire.pages()

    def take_pages(self) -> None:
        """Postcopy: the rest has come."""
        if not self.alive or self.status != "postcopy-active":
            return
        assert self.wire is not None
        if self.multifd and self.version == 7:
            self.wire.abort_there()
            return
        self.status = "completed"
        self.changed()
        self.wire.answer()

    def _loaded(self) -> None:
        if self.armed:
            self._run()
        else:
            self.run = "paused"
            self.changed()

    def lost_source(self) -> None:
        """The connection is broken, as the target sees it."""
        if not self.alive:
            return
        if self.status in ("postcopy-active", "postcopy-recover"):
            self.status = "postcopy-paused"
            self.blocked = self.touches
            self.changed()
        elif self.status == "active":
            if self.version > 7:
                self.status = "failed"  # exit-on-error=false
                self.changed()
            else:
                self.alive, self.run = False, ""
                self.changed()

    def touch(self) -> None:
        """The main loop comes to memory that has not come."""
        self.touches = True
        self.blocked = self.status == "postcopy-paused"

    def recover(self) -> None:
        """`migrate-recover`, out of band: listen anew."""
        if self.status != "postcopy-paused":
            raise Refused("Migrate recover can only be run when postcopy is paused.")
        self.listening = True

    def rejoin(self) -> None:
        """`migrate` with `resume`, on the source."""
        if self.status != "postcopy-paused":
            raise Refused("Cannot resume if there is no paused migration")
        assert self.wire is not None
        self.wire.join()


class Wire:
    """The connection of a migration.

    :ivar forth, back: whether what is sent arrives; if not, it is kept (a network that swallows packets for a while)
    :param delay: how long something takes, in seconds
    """

    __slots__ = ("_kept", "back", "broken", "clock", "delay", "epoch", "forth", "least", "source", "target")

    def __init__(self, clock: Clock, source: Qemu, target: Qemu, delay: Delay) -> None:
        self.clock, self.source, self.target, self.delay = clock, source, target, delay
        self.forth = self.back = True
        self.broken = False
        self.least = 0.0  # s; that the rest takes in a postcopy
        self.epoch = 0  # of the connection: what was under way on an earlier one does not arrive
        self._kept: list[tuple[bool, int, Callable[..., None], tuple[Any, ...]]] = []
        source.wire = target.wire = self

    def connect(self) -> None:
        """The source dials."""
        self.broken = False
        self.epoch += 1
        self.later(self._connected)

    def _connected(self) -> None:
        source, target = self.source, self.target
        if self.broken:
            return  # whoever has connected sees it
        if not (target.alive and target.listening and target.run == "inmigrate" and self.forth and self.back):
            self._break()
            return
        target.listening = False
        target.status = "active"
        target.changed()
        if source.alive and source.status == "setup":
            source.status = "active"
            source.changed()
            self.later(source.stand)
        else:
            self.cut()

    def join(self) -> None:
        """Postcopy: the source dials again."""
        self.epoch += 1
        self.broken = False
        self.later(self._joined)

    def _joined(self) -> None:
        source, target = self.source, self.target
        if self.broken or not (target.alive and target.listening and self.forth and self.back) or not source.alive:
            self.broken = True
            return
        target.listening = target.blocked = False
        source.status = target.status = "postcopy-active"
        source.changed()
        target.changed()
        self.pages()

    def pages(self) -> None:
        """Postcopy: the rest of the memory flows."""
        after = self.least + self.delay() * 60
        self.clock.after(after, self._if_same, self.epoch, lambda: self.send(self.target.take_pages))

    def answer(self) -> None:
        """The target says that it has all."""
        self._over(False, self.source.complete, ())

    def send(self, deliver: Callable[..., None], *args: Any) -> None:
        """From the source to the target."""
        self._over(True, deliver, args)

    def later(self, call: Callable[[], None]) -> None:
        """What takes a while on one side."""
        self.clock.after(self.delay(), self._if_same, self.epoch, call)

    def _if_same(self, epoch: int, call: Callable[[], None]) -> None:
        if epoch == self.epoch:
            call()

    def _over(self, forth: bool, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.broken:
            self.clock.after(self.delay(), self._arrive, forth, self.epoch, deliver, args)

    def _arrive(self, forth: bool, epoch: int, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        if epoch != self.epoch:
            return
        if not (self.forth if forth else self.back):
            self._kept.append((forth, epoch, deliver, args))
        elif not self.broken or forth:  # what the target has in its buffers it reads before it sees the end
            deliver(*args)

    def hold(self, *, forth: bool, back: bool) -> None:
        """Let things through, or keep them; what was kept is delivered, if the connection is still there."""
        self.forth, self.back = forth, back
        kept, self._kept = self._kept, []
        for each in kept:
            self._arrive(*each)

    def cut(self) -> None:
        """Break it: each side sees it in its own time."""
        if self.broken:
            return
        self.broken = True
        self._break()

    def _break(self) -> None:
        self.broken = True
        epoch = self.epoch
        self.clock.after(self.delay(), self._seen, epoch, self.source.lost_target)
        self.clock.after(self.delay(), self._seen, epoch, self.target.lost_source)

    def _seen(self, epoch: int, see: Callable[[], None]) -> None:
        if epoch == self.epoch:
            see()

    def abort_there(self) -> None:
        """7.2, postcopy with multifd: the target aborts, and the source takes it for the end."""
        self.clock.after(self.delay(), self._aborted)

    def _aborted(self) -> None:
        self.broken = True
        self.target.alive, self.target.run = False, ""
        self.target.changed()
        self.source.complete()


def _nothing() -> None: ...
