"""One Ray cluster for all tests of the session that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ray_cluster import small_cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with small_cluster():
        yield
