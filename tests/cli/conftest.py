"""A small lake for the commands: two commits, a patch and a tag."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import loader


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a lake that HEADRACE_LAKE points at, with the table `clicks` of 6 rows."""
    folder = tmp_path / "shop"
    with loader.connect(folder) as lake:
        table = lake.create_table(
            "clicks",
            pa.schema([("user", pa.int64()), ("sample", pa.int64()), ("ts", pa.timestamp("s")), ("seen", pa.list_(pa.int32())), ("label", pa.int8())]),
            primary_key=["sample"],
            bucket_by=["user"],
            cluster_by=["user", "ts"],
            time_column="ts",
            attribution=loader.Attribution(column="label", window_seconds=3600),
        )
        for start in (0, 3):
            samples = list(range(start, start + 3))
            seen = [list(range(sample)) for sample in samples]
            table.append(pa.table({"user": [1, 2, 1], "sample": samples, "ts": [100 * sample for sample in samples], "seen": seen}))
        table.patch(pa.table({"sample": [1], "label": [1]}), watermark=500)
        table.tag("baseline")
    monkeypatch.setenv("HEADRACE_LAKE", str(folder))
    return folder
