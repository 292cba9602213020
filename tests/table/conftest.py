"""Every test of tables runs on both catalogs: `catalog` is None for the SQLite file inside the lake, or the url of an empty schema of PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loader
from tests import postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    url = postgres.new_catalog()
    yield url
    postgres.drop_catalog(url)


@pytest.fixture
def lake(tmp_path: Path, catalog: str | None) -> Iterator[Any]:
    opened = loader.connect(tmp_path / "lake", catalog=catalog)
    yield opened
    opened.close()


@pytest.fixture
def make_lake(tmp_path: Path, catalog: str | None) -> Iterator[Callable[..., Any]]:
    """Opens the test's lake again."""
    opened: list[Any] = []

    def make(**options: Any) -> Any:
        opened.append(loader.connect(tmp_path / "lake", catalog=catalog, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
