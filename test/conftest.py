"""Fixtures for all tests."""

import signal
from collections.abc import Iterator

import pytest

from faces import FACES, Face


def pytest_configure() -> None:
    """Signals count here and in what the tests start, though a shell's background starts us with some ignored."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Each face of a QMP monitor, one after another."""
    face = FACES[request.param]()
    yield face
    face.close()
