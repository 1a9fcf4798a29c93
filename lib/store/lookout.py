"""Waiting for what other processes change: one thread looks for all that wait, the others sleep."""

import threading
import time
from collections.abc import Callable
from typing import Final

POLL: Final = 0.02  # s between two looks; a look takes 10 µs


class Lookout:
    """Knows of a store's newest revision, as far as somebody waits for it.

    :param look: asks the store for its revision
    """

    def __init__(self, look: Callable[[], int]) -> None:
        self._look = look
        self._changed = threading.Condition()
        self._newest = 0
        self._taken = False

    def tell(self, revision: int) -> None:
        """Wake those who wait: there is a new revision."""
        with self._changed:
            if revision > self._newest:
                self._newest = revision
                self._changed.notify_all()

    def wait(self, after: int, timeout: float) -> bool:
        """Wait for a revision later than this one.

        :param timeout: how long at most, in seconds
        :returns: whether there is one
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._newest <= after:
                if (left := deadline - time.monotonic()) <= 0:
                    return False
                if self._taken:
                    self._changed.wait(left)
                else:
                    self._stand(after, deadline)
        return True

    def _stand(self, after: int, deadline: float) -> None:
        """Look for all until it is for us to go; then somebody else does."""
        self._taken = True
        try:
            while self._newest <= after and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, POLL))
                self._changed.release()
                try:
                    revision = self._look()
                finally:
                    self._changed.acquire()
                if revision > self._newest:
                    self._newest = revision
                    self._changed.notify_all()
        finally:
            self._taken = False
            self._changed.notify_all()
