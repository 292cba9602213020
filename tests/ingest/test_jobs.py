"""The thin mains: a YAML file and a folder of events become rows; mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import loader
from ray_jobs import compact, ingest


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A table and a job that fills it from two files."""
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("value", pa.float64())])
    with loader.connect(str(tmp_path / "lake")) as lake:
        lake.create_table("rows", schema, primary_key=["id"])
    (tmp_path / "events").mkdir()
    for part in range(2):
        ids = list(range(part * 100, part * 100 + 100))
        pq.write_table(pa.table({"id": ids, "value": [float(i) for i in ids]}, schema=schema), tmp_path / "events" / f"{part}.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(
        f"lake: {{location: {tmp_path / 'lake'}, table: rows}}\npipeline: p\nround_rows: 30\nstreams:\n  - {{name: rows, files: {tmp_path / 'events'}}}\n"
    )
    return path


def test_ingest_and_compact(job: Path, tmp_path: Path) -> None:
    assert ingest.main(["--config", str(job)]) == 0
    assert ingest.main(["--config", str(job), "round_rows=7"]) == 0, "again: nothing is left to do"
    assert compact.main([str(tmp_path / "lake"), "rows", "--full"]) == 0
    with loader.connect(str(tmp_path / "lake")) as lake:
        table = lake.table("rows")
        assert sorted(table.to_arrow()["id"].to_pylist()) == list(range(200))
        assert table.describe()["num_segments"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [("pipline=x", "pipline: extra inputs"), ("lake.table=none", "no table 'none'"), ("round_rows=0", "round_rows: input should be greater than 0")],
)
def test_mistakes_are_named(job: Path, change: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    assert ingest.main(["--config", str(job), change]) == 1
    assert message in caplog.text
