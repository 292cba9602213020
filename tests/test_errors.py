"""Wrong uses end in one line that names what is wrong and says what to do."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader import config, errors
from loader.segment import layout

ROOT = Path(__file__).parents[1]
ROWS = 50_000  # enough that they are a file of their own, not a few bytes in the catalog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lake with the table `samples` of `ROWS` rows."""
    with loader.connect(tmp_path / "lake") as lake:
        table = lake.create_table("samples", pa.schema([("id", pa.int64()), ("price", pa.float32())]), primary_key=["id"])
        table.append(rows(0, ROWS))
    return tmp_path / "lake"


@pytest.fixture
def lake(folder: Path) -> Iterator[loader.Lake]:
    with loader.connect(folder, create=False, busy_timeout_seconds=0.2) as opened:
        yield opened


def rows(start: int, count: int) -> pa.Table:
    return pa.table({"id": np.arange(start, start + count), "price": np.random.default_rng(17).random(count, np.float32)})


def one_line(kind: type[BaseException], action: Callable[[], object], *words: str) -> None:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message.strip(), message
    for word in words:
        assert word in message, message


def test_missing_table(lake: loader.Lake) -> None:
    one_line(errors.TableNotFoundError, lambda: lake.table("sample"), "'sample'", "did you mean samples?")


@pytest.mark.parametrize("read", ["to_arrow", "scan"])
def test_unknown_column(lake: loader.Lake, read: str) -> None:
    table = lake.table("samples")
    one_line(errors.ColumnNotFoundError, lambda: getattr(table, read)(columns=["prize"]), "'prize'", "did you mean price?")


def test_unknown_column_in_a_predicate(lake: loader.Lake) -> None:
    one_line(errors.ColumnNotFoundError, lambda: lake.table("samples").to_arrow(where="prize > 1"), "prize", "did you mean price?")


def test_config_typo(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("train: {epoch: 2}\n")
    one_line(errors.ConfigError, lambda: config.load(path), str(path), "train.epoch", "did you mean epochs?")


@pytest.mark.parametrize("kept", [0, 10, 200, 0.5, 0.999])
def test_truncated_segment(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "one.seg"
    loader.write_segment(path, rows(0, 5000))
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if isinstance(kept, float) else kept)
    one_line(errors.TruncatedSegmentError, lambda: loader.SegmentReader(path).read(), "one.seg", "fetch or write it again")


def test_truncated_segment_of_a_table(lake: loader.Lake, folder: Path) -> None:
    (ref,) = lake.table("samples").view().segments
    os.truncate(folder / ref.path, ref.num_bytes // 2)
    one_line(errors.HeadraceError, lambda: lake.table("samples").to_arrow(), Path(ref.path).name, "truncated")


def test_segment_of_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "newer.seg"
    loader.write_segment(path, rows(0, 100))
    raw = bytearray(path.read_bytes())
    for name, dtype, offset in (("header", layout.HEADER, 0), ("tail", layout.TAIL, len(raw) - layout.TAIL.itemsize)):
        record = np.frombuffer(raw, dtype, 1, offset)
        assert record["version"][0] == layout.FORMAT_VERSION, name
        record["version"][0] = layout.FORMAT_VERSION + 1
    path.write_bytes(raw)
    one_line(errors.UnsupportedVersionError, lambda: loader.SegmentReader(path), "newer.seg", f"version {layout.FORMAT_VERSION + 1}", "upgrade")


def test_lake_of_a_newer_format(folder: Path) -> None:
    marker = folder / "headrace-lake.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 99}))
    one_line(errors.UnsupportedVersionError, lambda: loader.connect(folder), str(folder), "version 99", "pip install --upgrade headrace")


def test_no_space_left_on_the_disk(lake: loader.Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    table = lake.table("samples")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        one_line(errors.StorageFullError, lambda: table.append(rows(ROWS, ROWS)), "no space left", "free")
    assert table.to_arrow().num_rows == ROWS, "nothing of it is visible"
    table.append(rows(ROWS, ROWS))
    assert table.to_arrow(["id"]).num_rows == 2 * ROWS, "and once there is space, it goes on"


def test_second_process_writing(lake: loader.Lake, folder: Path) -> None:
    other = sqlite3.connect(next(folder.glob("*.sqlite")), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        one_line(errors.CatalogBusyError, lambda: lake.table("samples").append(rows(ROWS, 10)), str(folder))
    finally:
        other.rollback()
        other.close()
    lake.table("samples").append(rows(ROWS, 10))
    assert lake.table("samples").to_arrow(["id"]).num_rows == ROWS + 10


def test_ray_is_not_installed(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        f"lake: {{location: {tmp_path}/lake, table: samples}}\ndata: {{label: label, dense: [{{column: price}}]}}\n"
        f"loader: {{global_batch_size: 2}}\nrun: {{folder: {tmp_path}/runs}}\n"
    )
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'ray':
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Blocker())
from loader.cli.app import run
sys.exit(run(['train', '--config', {str(experiment)!r}]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(r"ray is not installed and this needs it: pip install 'headrace\[ray\]'", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_lake_whose_catalog_is_gone(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("*.sqlite*"))
    one_line(errors.StorageError, lambda: loader.connect(moved), "catalog", "restore it from a backup")
