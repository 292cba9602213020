"""A snapshot as Parquet files in a folder or an object store: streamed, a file at a time, continued where it stopped, verified by its row counts.

What a file holds follows from the snapshot and the options alone, and each is put whole or not at all, so that a second run writes only what is missing.
`_headrace-start.json` says what is being exported; `_headrace.json`, written last, that it is complete and what is in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from loader import failpoints
from loader.catalog.records import SnapshotView
from loader.errors import AlreadyExistsError, NotFoundError, StorageError
from loader.schema import plain_type
from loader.storage import Storage
from loader.table.batches import BatchSource, Piece, pieces_of

START, MANIFEST = "_headrace-start.json", "_headrace.json"
FILE_BYTES = 128 << 20
ROW_GROUP_ROWS = 122_880
_FOOTER_BYTES = 64 << 10

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How an export is cut and written.

    Attributes:
        file_bytes: Stored bytes of the table that go into one file, about; a file is in memory while it is written.
        row_group_rows: Rows of a Parquet row group, at most.
        compression: As Parquet names it.
    """

    file_bytes: int = FILE_BYTES
    row_group_rows: int = ROW_GROUP_ROWS
    compression: str = "zstd"

    def __post_init__(self) -> None:
        for name in ("file_bytes", "row_group_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export holds.

    Attributes:
        location: Where it is.
        snapshot: Of the table.
        files: Names of the Parquet files, in the order of rows.
        num_rows, num_bytes: Of all of them.
        files_written: By this run; the others were there.
    """

    location: str
    snapshot: int
    files: tuple[str, ...]
    num_rows: int
    num_bytes: int
    files_written: int


def begin(storage: Storage, definition: dict[str, Any], snapshot: int | None, head: int) -> int:
    """Begin an export, or go on with the one that is there; returns its snapshot.

    Args:
        storage: The target.
        definition: What is exported, as JSON values, without the snapshot.
        snapshot: The one that is asked for, or None for that of the export that is there, or `head`.
        head: The table's newest.

    Raises:
        AlreadyExistsError: Another export lies there.
    """
    there = _read_json(storage, START)
    if there is None:
        chosen = head if snapshot is None else snapshot
        try:
            storage.put(START, json.dumps({"snapshot": chosen, **definition}, indent=1).encode())
            return chosen
        except AlreadyExistsError:
            there = _read_json(storage, START) or {}
    differing = [name for name, value in definition.items() if there.get(name) != value]
    if snapshot is not None and there.get("snapshot") != snapshot:
        differing.append("snapshot")
    if differing:
        raise AlreadyExistsError(
            f"{storage.url} holds another export: its {differing[0]} is {there.get(differing[0])!r}, not "
            f"{(definition | {'snapshot': snapshot})[differing[0]]!r}: choose an empty place, or repeat that export"
        )
    return int(there["snapshot"])


def export(
    view: SnapshotView,
    storage: Storage,
    source: BatchSource,
    segments: Sequence[Any],
    options: ExportOptions,
    *,
    expected_rows: int | None,
    progress: Progress,
) -> ExportReport:
    """Write what is missing of an export, and its manifest.

    Args:
        view: The snapshot.
        storage: The target.
        source: Reads the rows that are wanted.
        segments: That may hold one.
        options: How.
        expected_rows: Of all files, where it is known.
        progress: Called with (rows of segments done, rows there are) after each file.

    Raises:
        StorageError: A file does not hold the rows that were read, or all together not the expected ones.
    """
    complete = _read_json(storage, MANIFEST)
    if complete is not None:
        files = tuple(file["name"] for file in complete["files"])
        return _report(storage, view, files, [(file["rows"], file["bytes"]) for file in complete["files"]], 0)
    schema = parquet_schema(source.schema)
    parts = list(_parts(pieces_of(segments), options.file_bytes)) or [[]]
    total, done, written = sum(piece.num_rows for part in parts for piece in part), 0, 0
    names, counts = [], []
    for number, part in enumerate(parts):
        name = f"part-{number:06d}.parquet"
        if not storage.exists(name):
            data, rows = _write_part(source, part, schema, options)
            try:
                storage.put(name, data)
                written += 1
            except AlreadyExistsError:
                pass  # another run of the same export was first
            if _num_rows(storage, name) != rows:
                raise StorageError(f"{storage.url}/{name} has {_num_rows(storage, name):,} rows, and {rows:,} were read: delete it and export again")
            failpoints.hit("export.part")
        names.append(name)
        counts.append((_num_rows(storage, name), storage.size(name)))
        done += sum(piece.num_rows for piece in part)
        progress(done, total)
    rows = sum(count for count, _ in counts)
    if expected_rows is not None and rows != expected_rows:
        raise StorageError(f"the files at {storage.url} have {rows:,} rows, and snapshot {view.snapshot_id} of {view.table!r} has {expected_rows:,}")
    described = [{"name": name, "rows": count, "bytes": size} for name, (count, size) in zip(names, counts, strict=True)]
    try:
        storage.put(MANIFEST, json.dumps({"table": view.table, "snapshot": view.snapshot_id, "rows": rows, "files": described}, indent=1).encode())
    except AlreadyExistsError:
        pass
    return _report(storage, view, tuple(names), counts, written)


def _report(storage: Storage, view: SnapshotView, files: tuple[str, ...], counts: Sequence[tuple[int, int]], written: int) -> ExportReport:
    return ExportReport(
        location=storage.url,
        snapshot=view.snapshot_id,
        files=files,
        num_rows=sum(rows for rows, _ in counts),
        num_bytes=sum(size for _, size in counts),
        files_written=written,
    )


def _parts(pieces: Iterator[Piece], file_bytes: int) -> Iterator[list[Piece]]:
    """Pieces of one file each, in order, by their share of the stored bytes."""
    part: list[Piece] = []
    held = 0.0
    for piece in pieces:
        size = piece.ref.num_bytes * piece.num_rows / max(piece.ref.num_rows, 1)
        if part and held + size > file_bytes:
            yield part
            part, held = [], 0.0
        part.append(piece)
        held += size
    if part:
        yield part


def _write_part(source: BatchSource, pieces: Sequence[Piece], schema: pa.Schema, options: ExportOptions) -> tuple[pa.Buffer, int]:
    """One Parquet file in memory, and its rows."""
    sink, rows = pa.BufferOutputStream(), 0
    waiting: list[pa.Table] = []
    with parquet.ParquetWriter(sink, schema, compression=options.compression) as writer:
        for table in source.stream(iter(pieces)):
            rows += table.num_rows
            waiting.append(table.cast(schema))
            if sum(part.num_rows for part in waiting) >= options.row_group_rows:
                writer.write_table(pa.concat_tables(waiting), row_group_size=options.row_group_rows)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=options.row_group_rows)
    return sink.getvalue(), rows


def _num_rows(storage: Storage, name: str) -> int:
    """Rows of a stored Parquet file, from its footer alone."""
    size = storage.size(name)
    (tail,) = storage.read_ranges(name, [(max(0, size - _FOOTER_BYTES), size)])
    needed = int.from_bytes(bytes(tail[-8:-4]), "little") + 8
    if needed > len(tail):
        (tail,) = storage.read_ranges(name, [(max(0, size - needed), size)])
    try:
        return int(parquet.read_metadata(pa.BufferReader(pa.py_buffer(tail))).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{storage.url}/{name} is not a whole Parquet file ({error}): delete it and export again") from error


def parquet_schema(schema: pa.Schema) -> pa.Schema:
    """The types in which Parquet takes the columns: views and dictionaries become the plain types of the same values."""
    return pa.schema([field.with_type(_parquet_type(field.type)) for field in schema], metadata=schema.metadata)


def _parquet_type(kind: pa.DataType) -> pa.DataType:
    plain = plain_type(kind)
    if pa.types.is_list(plain) or pa.types.is_list_view(plain):
        return pa.list_(plain.value_field.with_type(_parquet_type(plain.value_type)))
    if pa.types.is_large_list(plain) or pa.types.is_large_list_view(plain):
        return pa.large_list(plain.value_field.with_type(_parquet_type(plain.value_type)))
    return plain


def _read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(bytes(storage.read(name)))
        return found
    except NotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"{storage.url}/{name} is damaged ({error}): delete the export and begin again") from error


def open_target(location: str | os.PathLike[str]) -> Storage:
    """The folder or object store that an export goes to."""
    return Storage.open(location)
