"""Each command against a small lake: what people read, and JSON with stable keys for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import loader
from loader.cli.app import run

Capture = pytest.CaptureFixture[str]


def read_json(capsys: Capture, *arguments: str) -> Any:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def read_text(capsys: Capture, *arguments: str) -> str:
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def test_ls_lists_the_tables(shop: Path, capsys: Capture) -> None:
    (table,) = read_json(capsys, "ls")
    assert list(table) == ["name", "num_rows", "num_segments", "num_overlays", "segment_bytes", "overlay_bytes", "snapshot"]
    assert (table["name"], table["num_rows"], table["snapshot"]) == ("clicks", 6, 3)
    assert "clicks" in read_text(capsys, "ls")


def test_lake_option_wins_over_the_environment(shop: Path, tmp_path: Path, capsys: Capture) -> None:
    loader.connect(tmp_path / "empty").close()
    assert read_json(capsys, "ls", "--lake", str(tmp_path / "empty")) == []


def test_describe_tells_definition_state_and_bytes(shop: Path, capsys: Capture) -> None:
    described = read_json(capsys, "describe", "clicks")
    assert described["primary_key"] == ["sample"]
    assert described["tags"] == {"baseline": 3}
    assert [column["name"] for column in described["columns"]] == ["user", "sample", "ts", "seen", "label"]
    assert all(column["num_bytes"] > 0 for column in described["columns"][:3])
    shown = read_text(capsys, "describe", "clicks")
    assert "list<" in shown
    assert "1970-01-01 00:08:20" in shown, "the watermark is shown as a time"


def test_describe_lists_segments_on_request(shop: Path, capsys: Capture) -> None:
    segments = read_json(capsys, "describe", "clicks", "--segments")["segments"]
    assert sum(segment["live_rows"] for segment in segments) == 6
    assert "segments" not in read_json(capsys, "describe", "clicks")


def test_history_is_one_entry_a_snapshot_with_its_tags(shop: Path, capsys: Capture) -> None:
    snapshots = read_json(capsys, "history", "clicks")
    assert [(one["id"], one["kind"], one["num_rows"], one["tags"]) for one in snapshots] == [
        (1, "append", 3, []),
        (2, "append", 6, []),
        (3, "patch", 6, ["baseline"]),
    ]
    assert [one["id"] for one in read_json(capsys, "history", "clicks", "-n", "1")] == [3]
    assert "baseline" in read_text(capsys, "history", "clicks")


def test_inspect_shows_encodings_and_a_bar_chart(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "one.seg"
    loader.write_segment(path, pa.table({"same": np.full(5000, 7), "noise": np.random.default_rng(17).integers(0, 1 << 30, 5000)}))
    layout = read_json(capsys, "inspect", str(path))
    assert layout["num_rows"] == 5000
    assert [column["name"] for column in layout["columns"]] == ["same", "noise"]
    assert set(layout["columns"][0]) == {"column_id", "name", "type", "num_bytes", "encoding", "reason"}
    lines = read_text(capsys, "inspect", str(path)).splitlines()
    noise, same = (next(line for line in lines if line.startswith(name)) for name in ("noise", "same"))
    assert noise.count("█") > same.count("█"), "the longer bar is the larger column's"
    assert lines.index(noise) < lines.index(same), "the largest column comes first"
    assert "chosen because" in read_text(capsys, "inspect", str(path), "--why")
    assert {"segment_id", "features", "columns"} <= set(layout)


def test_inspect_of_a_wide_segment_shows_the_largest_columns(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "wide.segment"
    rng = np.random.default_rng(7)
    loader.write_segment(path, pa.table({f"c{number:03}": rng.integers(0, 2 + number * 50, 200) for number in range(60)}))
    lines = read_text(capsys, "inspect", str(path)).splitlines()
    assert sum(line.startswith("c0") for line in lines) == 40
    assert lines[-1].startswith("and 20 columns more")
    assert sum(line.startswith("c0") for line in read_text(capsys, "inspect", str(path), "--columns", "0").splitlines()) == 60


def test_inspect_finds_a_segment_of_a_table(shop: Path, capsys: Capture) -> None:
    number = read_json(capsys, "describe", "clicks", "--segments")["segments"][0]["segment_id"]
    assert read_json(capsys, "inspect", f"clicks:{number}")["num_rows"] == 3


def test_maintain_once_reports(shop: Path, capsys: Capture) -> None:
    report = read_json(capsys, "maintain", "clicks", "--once", "--gc")
    assert report["rounds"] == 1 and not report["stopped"]


def test_compact_merges_and_reports(shop: Path, capsys: Capture) -> None:
    report = read_json(capsys, "compact", "clicks", "--full")
    assert report["rows_written"] == 6
    assert read_json(capsys, "ls")[0]["num_segments"] == 1
    with loader.connect(shop) as lake:
        assert lake.table("clicks").to_arrow(["label"], where="sample = 1")["label"].to_pylist() == [1]


def test_ingest_creates_a_table_and_takes_each_file_once(tmp_path: Path, capsys: Capture) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.csv"
    pa.parquet.write_table(pa.table({"id": pa.array(range(10), pa.int64()), "x": pa.array(np.arange(10.0))}), first)
    pa.csv.write_csv(pa.table({"id": pa.array(range(10, 15), pa.int64()), "x": pa.array(np.arange(5.0) + 0.5)}), second)
    place = ["--lake", str(tmp_path / "lake")]
    assert read_json(capsys, "ingest", "points", str(first), "--primary-key", "id", "--commit-rows", "4", *place)["rows"] == 10
    assert read_json(capsys, "ingest", "points", str(first), str(second), *place)["rows"] == 5
    assert read_json(capsys, "ingest", "points", str(first), str(second), *place)["rows"] == 0
    (table,) = read_json(capsys, "ls", *place)
    assert table["num_rows"] == 15


def test_ingest_patches_rows_by_key(shop: Path, tmp_path: Path, capsys: Capture) -> None:
    labels = tmp_path / "labels.parquet"
    pa.parquet.write_table(pa.table({"sample": pa.array([4, 5], pa.int64()), "label": pa.array([1, 1], pa.int8())}), labels)
    assert read_json(capsys, "ingest", "clicks", str(labels), "--patch")["rows"] == 2
    with loader.connect(shop) as lake:
        assert lake.table("clicks").to_arrow(["label"], where="sample >= 4")["label"].to_pylist() == [1, 1]


def test_ingest_moves_the_watermark_only_when_told(tmp_path: Path, capsys: Capture) -> None:
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for index, path in enumerate(files):
        pa.parquet.write_table(pa.table({"id": pa.array([index], pa.int64()), "ts": pa.array([1000 * (index + 1)], pa.int64())}), path)
    place = ["--lake", str(tmp_path / "lake")]
    read_json(capsys, "ingest", "events", str(files[0]), "--primary-key", "id", "--time-column", "ts", *place)
    assert read_json(capsys, "describe", "events", *place)["watermark"] is None
    read_json(capsys, "ingest", "events", str(files[1]), "--watermark", *place)
    assert 1000 < read_json(capsys, "describe", "events", *place)["watermark"] <= 2000


def test_delete_expire_and_collect(shop: Path, capsys: Capture) -> None:
    assert read_json(capsys, "delete", "clicks", "sample = 1", "--dry-run") == {"table": "clicks", "rows": 1, "deleted": False}
    assert read_json(capsys, "ls")[0]["num_rows"] == 6
    assert read_json(capsys, "delete", "clicks", "sample = 1") == {"table": "clicks", "rows": 1, "deleted": True}
    assert read_json(capsys, "ls")[0]["num_rows"] == 5
    kept = read_json(capsys, "ls")[0]["snapshot"]
    assert read_json(capsys, "expire", "clicks")["snapshots"] == []
    expired = read_json(capsys, "expire", "clicks", "--older-than-days", "0", "--grace-hours", "0")
    tagged = list(read_json(capsys, "describe", "clicks")["tags"].values())
    assert expired["snapshots"] == [snapshot for snapshot in range(1, kept) if snapshot not in tagged]
    assert [entry["id"] for entry in read_json(capsys, "history", "clicks")] == [*tagged, kept]
    assert read_json(capsys, "gc").keys() == {"deleted_paths", "expired_stages"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["delete", "clicks", "colour = 1"], ["colour"]),
        (["describe", "click"], ["no table 'click'", "did you mean clicks?"]),
        (["inspect", "nothing.seg"], ["no segment file nothing.seg", "give the path"]),
        (["inspect", "clicks:99"], ["no live segment 99", "headrace describe clicks --segments"]),
        (["ingest", "other", "setup.cfg"], ["no table 'other'", "--primary-key"]),
        (["ls", "--lake", "nowhere"], ["no lake at nowhere"]),
        (["train", "--config", "nothing.yaml"], ["nothing.yaml: no such file or directory"]),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_code_1(shop: Path, arguments: list[str], words: list[str], capsys: Capture) -> None:
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in words:
        assert word in captured.err
