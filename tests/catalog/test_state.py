"""A catalog's state is another after every commit, of this process and of others, and a look-up that rests on it misses none."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pytest

import loader
from loader.errors import StorageError


def append(location: str, first: int) -> None:
    with loader.connect(location) as lake:
        lake.table("t").append(pa.table({"id": [first], "value": [first]}))


def test_look_ups_follow_commits_of_this_handle_another_and_another_process(tmp_path: Path) -> None:
    lake, other = (loader.connect(tmp_path / "lake") for _ in range(2))
    table = lake.create_table("t", pa.schema([("id", pa.int64()), ("value", pa.int64())]), primary_key=["id"])
    states = [lake.database.state()]
    for number, write in enumerate([table.append, other.table("t").append], start=1):
        assert table.lookup([number])["value"].to_pylist() == [None]
        write(pa.table({"id": [number], "value": [number]}))
        assert table.lookup([number])["value"].to_pylist() == [number]
        states.append(lake.database.state())
    child = multiprocessing.get_context("spawn").Process(target=append, args=(str(tmp_path / "lake"), 3))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert table.lookup([1, 2, 3])["value"].to_pylist() == [1, 2, 3]
    states.append(lake.database.state())
    assert len(set(states)) == len(states)
    table.lookup([1])
    assert lake.database.state() == states[-1]  # reading changes nothing
    lake.close()
    other.close()
    with pytest.raises(StorageError, match="closed"):
        lake.database.state()
