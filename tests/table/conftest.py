"""Every test of tables runs on both catalogs, and the core of them on S3 too.

`catalog` is None for the SQLite file inside the lake, or the url of an empty schema of PostgreSQL; `location` is a folder, or a place on S3 with a PostgreSQL
catalog. On S3 even the smallest commit writes a file, so that the store is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loader
from tests import postgres, seaweedfs

ON_S3 = ("test_table", "test_upsert", "test_compaction", "test_faults")  # the modules whose tests run there too
FILES_ONLY = ("test_large_commits_make_files_and_small_ones_none", "test_no_space_commits_nothing")  # what only a local disk does


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    own = any("catalog" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "catalog" in metafunc.fixturenames and not own:
        kinds = ["sqlite", "postgresql"]
        if {"lake", "make_lake"} & set(metafunc.fixturenames) and metafunc.module.__name__.rpartition(".")[2] in ON_S3:
            kinds += [] if metafunc.function.__name__ in FILES_ONLY else ["s3"]
        metafunc.parametrize("catalog", kinds, indirect=True)


@pytest.fixture
def catalog(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    url = postgres.new_catalog()
    yield url
    postgres.drop_catalog(url)


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str | Path]:
    if request.node.callspec.params["catalog"] != "s3":
        yield tmp_path / "lake"
        return
    where = seaweedfs.new_location()
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 0)
    with seaweedfs.environment():
        yield where


@pytest.fixture
def lake(location: str | Path, catalog: str | None) -> Iterator[Any]:
    opened = loader.connect(location, catalog=catalog)
    yield opened
    opened.close()


@pytest.fixture
def make_lake(location: str | Path, catalog: str | None) -> Iterator[Callable[..., Any]]:
    """Opens the test's lake again."""
    opened: list[Any] = []

    def make(**options: Any) -> Any:
        opened.append(loader.connect(location, catalog=catalog, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
