"""Who looks on while something is done to an instance: is told its steps, and may want it to end.

An operation tells whoever looks on in its own thread; mostly nobody does. It asks whether to end only where it can end
well: where it waits for a guest that has all the time, and between two pieces of a copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import OperationCancelled


class Witness:
    """One that takes no notice."""

    def step(self, name: str, at: float | None = None) -> None:
        """The operation begins a step.

        :param at: Unix time when it began; None: now
        """

    def progress(self, done: float, of: float, unit: str, *, eta: float | None = None, detail: str = "") -> None:
        """The operation has come so far.

        :param done: so much
        :param of: of so much; 0 where nobody knows
        :param unit: such as ``bytes``
        :param eta: seconds to the end, where the operation knows better than by its rate
        :param detail: more of it, in words
        """

    def wants_end(self) -> bool:
        """Whether the operation is to end without having done what it was to do."""
        return False


_NOBODY = Witness()
_current: ContextVar[Witness] = ContextVar("witness", default=_NOBODY)


@contextmanager
def watched_by(witness: Witness) -> Iterator[None]:
    """Have somebody look on at what is done in this block, by this thread."""
    token = _current.set(witness)
    try:
        yield
    finally:
        _current.reset(token)


def witness() -> Witness:
    """Who looks on at what this thread does."""
    return _current.get()


def end_if_wanted(name: str, operation: str) -> None:
    """A place where an operation can end.

    :param name: of the instance
    :raises OperationCancelled: it is to
    """
    if _current.get().wants_end():
        raise OperationCancelled(name, operation)
