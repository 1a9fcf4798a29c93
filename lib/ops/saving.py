"""The memory of a machine that stands still, into a file and back into another QEMU.

From 9.0 on QEMU writes each page to a place of its own in the file (``mapped-ram``); an older one writes a stream, as
to another node, which any QEMU reads. Either takes the file as a descriptor: QEMU's own user need not be let into the
folder.

The machine has to stand still before: nobody can then tell the file from what was there, and each page is written once.
"""

from typing import Final, Literal

from ..errors import MigrationError, MonitorTimeout
from .fdset import Held, add_fd
from .migration import (
    ENDED,
    POLL,
    SETTLE_POLL,
    SETTLE_TIMEOUT,
    MigrationInfo,
    Progress,
    begin,
    migrate_cancel,
    raise_if_failed,
    wait_incoming,
    watch,
)
from .migration_settings import (
    UNLIMITED,
    USUAL_BANDWIDTH,
    get_migration_capabilities,
    reset_migration_capabilities,
    set_migration_parameters,
)
from .port import Port
from .power import query_status
from .undo import Undo

# How the memory lies in the file.
Form = Literal["mapped-ram", "stream"]

_MAPPED: Final = "mapped-ram"
# How the descriptor is marked that is there for it; no device has such an id.
_MARK: Final = "saved memory"
# Seconds for all of the memory to be read; QEMU 7.2 answers nothing meanwhile.
LOAD_TIMEOUT: Final = 3600.0
_LOOK: Final = 0.5  # seconds between two calls of who wants to know that it goes on


async def save_memory(port: Port, held: Held, *, offset: int, progress: Progress | None = None) -> Form:
    """Have QEMU write a machine that stands still into a file, and wait for the end.

    After it the machine is as it was, or in the run state ``postmigrate``: ``cont`` lets it run on from either.

    :param held: a descriptor of the file, write only, which is where the memory is to begin; it is closed at the return
    :param offset: that place, in bytes
    :param progress: called with each state that is seen; what it raises ends the save
    :returns: how it lies there
    :raises MigrationFailed: it could not be written, as where the disk is full
    :raises CommandError: QEMU refuses, as where a device cannot be saved
    """
    have = await get_migration_capabilities(port)
    form: Form = "mapped-ram" if _MAPPED in have else "stream"
    async with Undo(port) as undo:
        undo.remember("the settings of the save", lambda: _reset(port))
        await reset_migration_capabilities(port, {"events": True, _MAPPED: form == _MAPPED})
        await set_migration_parameters(port, {"max-bandwidth": UNLIMITED})
        undo.remember("the save", lambda: migrate_cancel(port))
        await _begin(port, "migrate", held, form, offset)
        info = await watch(port, lambda info: info.status in ENDED, progress, None, POLL)
        raise_if_failed(info)
        await _settle(port)
        undo.keep()
    return form


async def drop_save(port: Port) -> None:
    """End a save that somebody else began, who is no more; what was written is of no use. May be repeated."""
    await migrate_cancel(port)
    await _reset(port)


async def load_memory(
    port: Port, held: Held, *, form: Form, offset: int, progress: Progress | None = None, timeout: float = LOAD_TIMEOUT
) -> None:
    """Have a QEMU that waits (``-S -incoming defer``) read a machine from a file; it stands still after it.

    :param held: a descriptor of the file, read only, which is where the memory begins; it is closed at the return
    :param form: how it lies there
    :param offset: that place, in bytes
    :param progress: called now and then; what it raises ends the wait
    :param timeout: seconds
    :raises NotSupported: this QEMU does not know that form
    :raises ConnectionClosed: QEMU ended over it, as where the file is not this machine's; its log says why
    :raises MigrationError: it was read, and the machine does not stand ready
    """
    wanted = {"events": True, "late-block-activate": True, _MAPPED: form == _MAPPED}
    await reset_migration_capabilities(port, wanted)
    mark, deadline = port.event_mark(), port.now() + timeout
    await _begin(port, "migrate-incoming", held, form, offset)
    while True:  # by its events alone: it may answer nothing before the end
        try:
            await port.wait_event(
                ("MIGRATION",), since=mark, match=lambda event: event.data["status"] in ENDED, timeout=_LOOK
            )
            break
        except MonitorTimeout:
            if progress is not None:
                progress(MigrationInfo(status="active"))
            if port.now() >= deadline:
                raise
    status = await wait_incoming(port, timeout=SETTLE_TIMEOUT)
    if status.status != "paused":
        raise MigrationError(f"the memory was read, and the machine is '{status.status}'", "completed")


async def _begin(port: Port, command: str, held: Held, form: Form, offset: int) -> None:
    if form != _MAPPED:
        await begin(command, port, fd=held.fd)
        held.close()
        return
    async with Undo(port) as undo:
        fdset = await add_fd(undo, held, _MARK)
        await port.execute(command, {"uri": f"file:/dev/fdset/{fdset},offset={offset}"})
        await port.execute("remove-fd", {"fdset-id": fdset})  # whoever has opened it keeps a copy
        undo.keep()


async def _reset(port: Port) -> None:
    await reset_migration_capabilities(port, {})
    await set_migration_parameters(port, {"max-bandwidth": USUAL_BANDWIDTH})


async def _settle(port: Port) -> None:
    """QEMU says completed a moment before it leaves ``finish-migrate``."""
    deadline = port.now() + SETTLE_TIMEOUT
    while (status := await query_status(port)).status != "postmigrate":
        if port.now() >= deadline:
            raise MigrationError(f"the machine was saved, but is '{status.status}'", "completed")
        await port.sleep(SETTLE_POLL)
