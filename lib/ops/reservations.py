"""What flows on one monitor have chosen and not finished yet."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from ..errors import HotplugError

K = TypeVar("K")


class Reservations:
    """What flows on one monitor have chosen and not finished yet, so that two never choose the same.

    A flow takes a :meth:`ticket`, asks QEMU what is there, then holds a key. A key
    that somebody gave back after the ticket was drawn still counts as taken, for
    QEMU's answer may be older than that.
    """

    def __init__(self) -> None:
        self._held: dict[object, object] = {}
        self._given_back: dict[object, int] = {}
        self._clock = 0

    def ticket(self) -> int:
        """Draw this before you ask QEMU."""
        return self._clock

    @contextmanager
    def hold(self, keys: Iterable[K], ticket: int) -> Iterator[K]:
        """Hold the first key that is free, until the end of the block.

        :raises LookupError: none is
        """
        me = object()
        for key in keys:
            if self._given_back.get(key, 0) <= ticket and self._held.setdefault(key, me) is me:
                break
        else:
            raise LookupError
        try:
            yield key
        finally:
            self._clock += 1
            self._given_back[key] = self._clock
            del self._held[key]

    @contextmanager
    def name(self, device: str) -> Iterator[None]:
        """Nobody else adds or removes a device of this id until the end of the block.

        :raises HotplugError: somebody does
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.hold([("id", device)], self.ticket()))
            except LookupError:
                raise HotplugError(device, "another call on this connection is working on it") from None
            yield
