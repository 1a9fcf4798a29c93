"""Listens to one run: hears its events, asks what it does after those that matter, and sees its end."""

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ..errors import MonitorTimeout
from ..kvm.condition import ask_state, failed_among
from ..kvm.mend import ENDED_BY_GUEST
from ..kvm.state import State
from ..monitor.aio import AsyncQmpConnection

# Seconds between two tries of what does not work.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
# Seconds after which a guest that was let run on has not failed at once.
_HOLDS: Final = 10.0
# Bytes: fewer would be full again with the next cluster or two of an image.
ROOM: Final = 1 << 20
# After each of these, what it does is asked for.
_EVENTS: Final = ("SHUTDOWN", "GUEST_PANICKED", "STOP", "RESUME")
# A QEMU whose guest has not run yet; what comes is yet to be heard.
_UNHEARD: Final = (State.STARTING,)


class Storage:
    """A guest that waits for its storage; remembered over connections.

    :param sources: where the images of the disks are, by id; None where that run is over
    :param go_on: lets the guest run on; whether it did
    """

    def __init__(
        self,
        sources: Callable[[], Mapping[str, str | None] | None],
        go_on: Callable[[], Awaitable[bool]],
        say: Callable[[str, str], None],
    ) -> None:
        self._sources = sources
        self._go_on = go_on
        self._say = say
        self._delay = FIRST_PAUSE
        self._let_go_on = -_HOLDS  # monotonic time

    async def wait(self, vm: AsyncQmpConnection, detail: str) -> None:
        """Wait until the storage has space again, and let the guest run on; or until somebody else does."""
        failed = failed_among(await vm.query_block())
        self._say("io-error", f"the guest waits for its storage: {detail}")
        if time.monotonic() - self._let_go_on > _HOLDS:
            self._delay = FIRST_PAUSE
        while True:
            mark = vm.event_mark()
            if (await ask_state(vm))[0] is not State.IO_ERROR:
                return
            try:
                await vm.wait_event("RESUME", since=mark, timeout=self._delay)
                return
            except MonitorTimeout:
                self._delay = min(2 * self._delay, LONGEST_PAUSE)
            if self._has_space(failed) and await self._go_on():
                self._let_go_on = time.monotonic()
                self._say("resumed", f"there is space again, and the guest runs on: {', '.join(failed)}")
                return

    def _has_space(self, failed: Mapping[str, str]) -> bool:
        """Whether all that was wrong is a lack of space, and that is over."""
        sources = self._sources()
        if sources is None or set(failed.values()) != {"nospace"}:
            return False
        return all(has_space(source) for name, source in sources.items() if name in failed)


async def attend(
    vm: AsyncQmpConnection,
    storage: Storage,
    begin: Callable[[bool], None],
    trouble: Callable[[Exception | None], None],
) -> None:
    """Stay with a QEMU until its guest has come to its end.

    :param begin: told once whether nothing can have been said before
    :param trouble: told what is wrong, or that nothing is
    :raises ConnectionClosed: QEMU is gone, or somebody has cut the connection
    """
    events = vm.events(*_EVENTS)  # before it is asked, so that nothing comes in between
    pause = FIRST_PAUSE
    while True:
        asked = vm.event_mark()
        try:
            state, detail = await ask_state(vm)
        except MonitorTimeout as error:
            trouble(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            continue
        pause = FIRST_PAUSE
        trouble(None)
        begin(state in _UNHEARD)
        if state in ENDED_BY_GUEST:
            return
        if state is State.IO_ERROR:
            await storage.wait(vm, detail)
            continue
        while (await anext(events)).number <= asked:
            pass  # its answer has told of that one


def has_space(source: str | None) -> bool:
    """Whether the file system of an image takes more. Where there is none to ask, only a try can tell: yes.

    :param source: a path, or a URI
    """
    if not source or "://" in source or not stat.S_ISREG(os.stat(source).st_mode):
        return True
    found = os.statvfs(source)
    return found.f_bavail * found.f_frsize >= ROOM
