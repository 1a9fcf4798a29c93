"""Steps outside of QEMU with their way back: the blocking twin of :class:`drover.ops.undo.Undo`.

::

    with Rollback() as undo:
        os.mkdir(folder)
        undo.remember("the folder", lambda: os.rmdir(folder))
        ...
        undo.keep()                       # the last line: from here on it stays
"""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ..errors import DroverError

log = logging.getLogger("drover.kvm")


class Rollback:
    """A ``with`` block whose steps are undone, last first, unless :meth:`keep` was reached.

    The error that was first is the one that is raised; what goes wrong in the undo is noted on it.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def remember(self, what: str, way: Callable[[], object]) -> None:
        """Something was done: remember how to take it back.

        :param what: for the note, should that fail
        """
        self._steps.append((what, way))

    def keep(self) -> None:
        """All steps stay."""
        self._steps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._steps:
            what, way = self._steps.pop()
            try:
                way()
            except (DroverError, OSError) as failure:
                text = f"undo of {what} failed: {failure}"
                log.warning("%s", text)
                if error is not None:
                    error.add_note(text)
