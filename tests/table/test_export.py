"""Claims about exports: every value comes back, a stopped one goes on, a finished one is whole, and another one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import loader
from loader import failpoints
from loader.errors import AlreadyExistsError, StorageError
from loader.table.export import ExportOptions
from tests.table import processes
from tests.table.samples import create, labels, rows

SMALL = ExportOptions(file_bytes=1, row_group_rows=100)


def filled(lake: Any) -> Any:
    table = create(lake, durability="relaxed")
    for start in range(0, 600, 100):
        table.append(rows(start, start + 100), on_conflict="trust", watermark=start * 60)
    table.patch(labels([1, 2, 3], clicks=[5, 6, 7]))
    table.delete("item < 50 and item > 40")
    return table


def test_an_export_is_the_snapshot(lake: Any, tmp_path: Path) -> None:
    table = filled(lake)
    report = table.export(tmp_path / "out", options=SMALL)
    assert report.num_rows == 591 and len(report.files) == len(table.view().segments) == report.files_written
    assert parquet.read_table(tmp_path / "out").cast(table.schema.to_arrow()).equals(table.to_arrow())
    manifest = json.loads((tmp_path / "out" / "_headrace.json").read_text())
    assert manifest["rows"] == 591 and [file["name"] for file in manifest["files"]] == list(report.files)


def test_columns_and_predicates_choose_what_is_exported(lake: Any, tmp_path: Path) -> None:
    table = filled(lake)
    table.tag("base")
    table.delete("item > 500")
    report = table.export(tmp_path / "out", ["clicks", "item"], "item >= 400 and label = 0", "base", "watermark")
    want = table.to_arrow(["clicks", "item"], "item >= 400 and label = 0", "base", "watermark")
    assert 0 < report.num_rows == want.num_rows < 200 and parquet.read_table(tmp_path / "out").equals(want)


@pytest.mark.parametrize("at", [1, 2])
def test_a_stopped_export_goes_on_at_its_snapshot(lake: Any, tmp_path: Path, at: int) -> None:
    table, passed = filled(lake), []

    def stop() -> None:
        passed.append(1)
        if len(passed) == at:
            raise KeyboardInterrupt

    want = table.to_arrow()
    with failpoints.armed("export.part", stop), pytest.raises(KeyboardInterrupt):
        table.export(tmp_path / "out", options=SMALL)
    assert not (tmp_path / "out" / "_headrace.json").exists()
    table.delete("item > 300")
    report = table.export(tmp_path / "out", options=SMALL)
    assert report.files_written == len(report.files) - at and report.num_rows == want.num_rows
    assert parquet.read_table(tmp_path / "out").cast(table.schema.to_arrow()).equals(want)
    assert table.export(tmp_path / "out", options=SMALL).files_written == 0, "a finished export is written again"


def test_a_killed_export_goes_on(catalog: str | None, tmp_path: Path) -> None:
    with loader.connect(tmp_path / "lake", catalog=catalog) as lake:
        filled(lake)
    passed: list[int] = []

    def kill() -> None:
        passed.append(1)
        if len(passed) == 3:
            processes.kill_self()

    def work() -> None:
        with failpoints.armed("export.part", kill):
            loader.connect(tmp_path / "lake", catalog=catalog, create=False).table("samples").export(tmp_path / "out", options=SMALL)

    assert processes.wait(processes.start(work)) == -9
    assert not (tmp_path / "out" / "_headrace.json").exists()
    with loader.connect(tmp_path / "lake", catalog=catalog, create=False) as lake:
        table = lake.table("samples")
        report = table.export(tmp_path / "out", options=SMALL)
        assert report.files_written < len(report.files)
        assert parquet.read_table(tmp_path / "out").cast(table.schema.to_arrow()).equals(table.to_arrow())


def test_another_export_in_the_same_place_is_refused(lake: Any, tmp_path: Path) -> None:
    table = filled(lake)
    table.export(tmp_path / "out", ["item"])
    others: list[dict[str, Any]] = [{"columns": ["user"]}, {"columns": ["item"], "where": "item > 3"}, {"columns": ["item"], "snapshot": 1}]
    for arguments in others:
        what = list(arguments)[-1]
        with pytest.raises(AlreadyExistsError, match=f"holds another export: its {what} is"):
            table.export(tmp_path / "out", **arguments)


def test_a_cut_file_is_found(lake: Any, tmp_path: Path) -> None:
    table = filled(lake)
    report = table.export(tmp_path / "out", options=SMALL)
    (tmp_path / "out" / "_headrace.json").unlink()
    victim = tmp_path / "out" / report.files[1]
    victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(StorageError, match=f"{report.files[1]} is not a whole Parquet file"):
        table.export(tmp_path / "out", options=SMALL)


def test_every_type_comes_back(lake: Any, tmp_path: Path) -> None:
    columns = {
        "id": pa.array([1, 2, 3, 4]),
        "lists": pa.array([[1, None], [], None, [2]], pa.list_(pa.int16())),
        "nested": pa.array([[[1], []], [], None, [None]], pa.list_(pa.list_(pa.int64()))),
        "weights": pa.array([[(1, 0.5)], [], None, [(2, 1.5), (3, 2.5)]], pa.map_(pa.int64(), pa.float32())),
        "vector": pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32(), 2)),
        "nothing": pa.nulls(4),
        "half": pa.array(np.array([1, 2, 3, 4], np.float16)),
        "day": pa.array([0, 1, None, 3], pa.date32()),
        "span": pa.array([0, 1, None, 3], pa.duration("us")),
        "bytes": pa.array([b"\x00\xff", b"", None, b"x"]),
        "text": pa.array(["é", "", None, "x"], pa.string()),
        "at": pa.array([0, 1, None, 3], pa.timestamp("ns", "UTC")),
        "exact": pa.array([2**64 - 1, 0, None, 3], pa.uint64()),
        "nan": pa.array([float("nan"), -0.0, None, 1.0]),
    }
    data = pa.table(columns)
    table = lake.create_table("types", data.schema, primary_key=["id"])
    table.append(data)
    report = table.export(tmp_path / "out")
    back = parquet.read_table(tmp_path / "out")
    assert report.num_rows == 4 and back.schema.equals(table.to_arrow().schema)
    assert str(back.to_pylist()) == str(table.to_arrow().to_pylist())


def test_an_empty_table_is_an_empty_file(lake: Any, tmp_path: Path) -> None:
    table = create(lake)
    assert table.export(tmp_path / "out").num_rows == 0
    assert parquet.read_table(tmp_path / "out").schema.names == table.schema.names
