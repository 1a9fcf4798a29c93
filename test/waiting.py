"""Waiting for what another process does."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], timeout: float = 30, *, every: float = 0.02) -> None:
    """Wait until something is so.

    :param timeout: seconds until it is an error that it is not
    :param every: seconds between two looks
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(every)
