"""Files as a replayable source: Parquet, Arrow IPC, CSV and JSON lines. A partition is a file, an offset is a row in it.

Files are read in the order of their names, a batch at a time; what is already committed is skipped without being decoded where the format
allows it (row groups, record batches). Files must not change once they are there; new ones may be added.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from loader.errors import ConflictError, NotFoundError, SchemaError
from loader.ingest.source import SourceBatch

Piece = tuple[int, Callable[[], pa.Table]]  # a number of rows, and how to read them


class FileSource:
    """Event files of one stream.

    Args:
        name: Under which its offsets are committed.
        paths: A folder (all its files), a file, or several of them.
        columns: Columns to read; default all.

    Raises:
        NotFoundError: A path does not exist, or holds no file.
        ValueError: A file is of no known kind, or two have the same name.
    """

    def __init__(self, name: str, paths: str | Path | Sequence[str | Path], *, columns: Sequence[str] | None = None) -> None:
        self._name = name
        self._columns = None if columns is None else list(columns)
        self.files = _list_files([paths] if isinstance(paths, str | Path) else paths)

    @property
    def name(self) -> str:
        return self._name

    def read(self, offsets: Mapping[str, int], *, max_rows: int) -> Iterator[SourceBatch]:
        for partition, path in self.files.items():
            yield from self._read_file(partition, path, offsets.get(partition, 0), max_rows)

    def _read_file(self, partition: str, path: Path, skip: int, max_rows: int) -> Iterator[SourceBatch]:
        row = 0
        for num_rows, read in _readable(path, _PIECES[path.suffix](path, self._columns)):
            if row + num_rows > skip:
                table = read()
                for begin in range(max(skip - row, 0), num_rows, max_rows):
                    part = table.slice(begin, max_rows)
                    yield SourceBatch(records=part, partition=partition, start=row + begin, end=row + begin + part.num_rows)
            row += num_rows
        if row < skip:
            raise ConflictError(f"{path} has {row} rows, but {skip} of them are committed: it was replaced or cut short; put the old one back")


def _readable(path: Path, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces; what Arrow says of a file it cannot read becomes one line that names it."""
    try:
        for num_rows, read in pieces:
            yield num_rows, functools.partial(_read_piece, path, read)
    except (pa.ArrowException, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_piece(path: Path, read: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read()
    except (pa.ArrowException, KeyError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SchemaError:
    reason = str(error.args[0] if error.args else error).strip().splitlines()[0]
    return SchemaError(f"event file {str(path)!r} cannot be read as {path.suffix}: {reason}: repair it, or leave it out")


def _list_files(paths: Sequence[str | Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise NotFoundError(f"no event file or folder {str(path)!r}")
        inside = sorted(file for file in path.iterdir() if file.suffix in _PIECES) if path.is_dir() else [path]
        if not inside:
            raise NotFoundError(f"folder {str(path)!r} holds no event file ({', '.join(_PIECES)})")
        for file in inside:
            if file.suffix not in _PIECES:
                raise ValueError(f"event file {str(file)!r} is of no known kind: there are {', '.join(_PIECES)}")
            if file.name in found:
                raise ValueError(f"event files {str(found[file.name])!r} and {str(file)!r} have one name, under which offsets are kept: rename one")
            found[file.name] = file
    return found


def _parquet(path: Path, columns: list[str] | None) -> Iterator[Piece]:
    file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    for group in range(file.metadata.num_row_groups):
        yield file.metadata.row_group(group).num_rows, lambda group=group: file.read_row_group(group, columns=columns)  # type: ignore[misc]


def _ipc(path: Path, columns: list[str] | None) -> Iterator[Piece]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            yield batch.num_rows, lambda batch=batch: _selected(pa.Table.from_batches([batch]), columns)  # type: ignore[misc]


def _csv(path: Path, columns: list[str] | None) -> Iterator[Piece]:
    for batch in pyarrow.csv.open_csv(path):
        yield batch.num_rows, lambda batch=batch: _selected(pa.Table.from_batches([batch]), columns)  # type: ignore[misc]


def _json_lines(path: Path, columns: list[str] | None) -> Iterator[Piece]:
    for batch in pyarrow.json.open_json(path):
        yield batch.num_rows, lambda batch=batch: _selected(pa.Table.from_batches([batch]), columns)  # type: ignore[misc]


def _selected(table: pa.Table, columns: list[str] | None) -> pa.Table:
    return table if columns is None else table.select(columns)


_PIECES: dict[str, Callable[[Path, list[str] | None], Iterator[Piece]]] = {
    ".parquet": _parquet,
    ".arrow": _ipc,
    ".feather": _ipc,
    ".csv": _csv,
    ".jsonl": _json_lines,
}
