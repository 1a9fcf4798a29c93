"""Lanes for the tests with two nodes."""

from collections.abc import Iterator

import pytest

from nodes.pool import Pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(lambda: tmp_path_factory.mktemp("lane"))
    yield pool
    pool.close()
