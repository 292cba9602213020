"""Files as a source: every row once, from any offset, in every format."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from loader.errors import ConflictError, NotFoundError
from loader.ingest.source import SourceBatch, merge_ranges
from loader.ingest.sources.files import FileSource

DATA = pa.table({"id": list(range(50)), "name": [f"n{i}" for i in range(50)]})


def write(path: Path) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(DATA, path, row_group_size=16)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), DATA.schema) as writer:
            writer.write_table(DATA, max_chunksize=16)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(DATA, path)
    else:
        path.write_text("".join(f'{{"id": {i}, "name": "n{i}"}}\n' for i in range(50)))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv", ".jsonl"])
@pytest.mark.parametrize("skip", [0, 1, 16, 33, 50])
def test_reads_every_row_after_the_offset_once(tmp_path: Path, suffix: str, skip: int) -> None:
    write(tmp_path / f"a{suffix}")
    batches = list(FileSource("s", tmp_path).read({f"a{suffix}": skip}, max_rows=7))
    assert [value for batch in batches for value in batch.records["id"].to_pylist()] == list(range(skip, 50))
    assert all(batch.num_rows <= 7 and batch.records["id"][0].as_py() == batch.start for batch in batches)
    assert merge_ranges(batches) == ({f"a{suffix}": (skip, 50)} if batches else {})


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    with pytest.raises(ConflictError, match="51 of them are committed"):
        list(FileSource("s", tmp_path).read({"a.parquet": 51}, max_rows=10))


def test_wrong_paths_say_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no event file"):
        FileSource("s", tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="holds no event file"):
        FileSource("s", tmp_path)
    (tmp_path / "a.xls").write_text("")
    with pytest.raises(ValueError, match="no known kind"):
        FileSource("s", tmp_path / "a.xls")


def test_a_gap_between_batches_is_refused() -> None:
    first = SourceBatch(records=DATA.slice(0, 5), partition="p", start=0, end=5)
    with pytest.raises(ValueError, match="starts at offset 6"):
        merge_ranges([first, SourceBatch(records=DATA.slice(6, 2), partition="p", start=6, end=8)])
