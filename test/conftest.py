"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest

from faces import FACES, Face


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Each face of a QMP monitor, one after another."""
    face = FACES[request.param]()
    yield face
    face.close()
