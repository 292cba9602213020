"""Claims about `headrace sql`, `explain` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

import loader
from loader.cli.app import run as run_command
from tests.table.samples import create, rows


@pytest.fixture
def location(tmp_path: Path, in_buckets: None) -> str:
    with loader.connect(tmp_path / "lake") as lake:
        table = create(lake, durability="relaxed")
        for start in (0, 100, 200):
            table.append(rows(start, start + 100), on_conflict="trust")
        table.tag("base")
        table.delete("item >= 250")
    return str(tmp_path / "lake")


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    code = run_command(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_sql_writes_json_csv_parquet_and_tables(location: str, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("duckdb")
    ask = "select item, history from samples where item in (3, 4) order by item"
    code, out, _ = run(capsys, "sql", ask, "--lake", location, "--json")
    assert code == 0 and json.loads(out) == [{"item": 3, "history": [0, 1, 2]}, {"item": 4, "history": [0, 1, 2, 3]}]
    code, out, _ = run(capsys, "sql", "select count(*) as n from samples", "--lake", location, "--at", "samples=base")
    assert code == 0 and out.split() == ["n", "300"]
    code, out, err = run(capsys, "sql", ask, "--lake", location, "--limit", "1")
    assert code == 0 and "4" not in out and "the first 1 rows" in err
    target = tmp_path / "answer.parquet"
    code, _, err = run(capsys, "sql", ask, "--lake", location, "--parquet", str(target))
    assert code == 0 and parquet.read_table(target)["item"].to_pylist() == [3, 4]
    code, _, err = run(capsys, "sql", "select nope from samples", "--lake", location)
    assert code == 1 and err.startswith("error: Binder Error") and err.count("\n") == 1


def test_explain_counts_what_is_left(location: str, capsys: Any) -> None:
    code, out, _ = run(capsys, "explain", "samples", "--where", "user = 3 and item > 150", "--lake", location)
    assert code == 0 and "bucket (user)" in out and "statistics of item" in out
    code, out, _ = run(capsys, "explain", "samples", "--where", "user = 3", "--lake", location, "--json")
    steps = json.loads(out)["steps"]
    assert steps[0]["segments"] > steps[-1]["segments"] > 0


def test_export_from_a_shell(location: str, tmp_path: Path, capsys: Any) -> None:
    command = ("export", "samples", str(tmp_path / "out"), "--columns", "item,ts", "--snapshot", "base", "--lake", location)
    code, _, err = run(capsys, *command)
    assert code == 0 and "300 rows of samples" in err and parquet.read_table(tmp_path / "out").num_rows == 300
    code, out, _ = run(capsys, *command, "--json")
    assert code == 0 and json.loads(out)["files_written"] == 0
    code, _, err = run(capsys, "export", "samples", str(tmp_path / "out"), "--lake", location)
    assert code == 1 and "holds another export" in err
