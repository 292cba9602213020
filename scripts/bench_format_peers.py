"""The formats that `scripts/bench_format` compares, each behind the same few calls. Imports a peer only when it is used.

`write` makes a file, `scan` yields its rows as lists of torch tensors, batch by batch, each batch let go before the next: every format may use its memory
again. Options are the fastest or smallest that the peer's own documentation names; nobody pays for what the others skip, except that Headrace compares
checksums and the others, Lance and Vortex among them, do not.
"""

from __future__ import annotations

import io
import pathlib
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

ROW_GROUP = 8_192  # rows of a batch where a format lets its reader choose
SCAN_ROWS = 2_048  # and where it has memory of its own: about 10 MB of these tensors, two of which stay in a large cache until they are written again
ROW_GROUPS = (4_096, 8_192, 16_384, 32_768, 131_072)  # what Parquet may choose from
Tensors = list[Any]
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to what a scan shows


def tensors_of(batch: pa.RecordBatch | pa.Table) -> Tensors:
    """Tensors over the memory of Arrow arrays; only bits become bytes, because torch has no bits."""
    found: Tensors = []
    for column in batch.columns:
        for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            _add(array, found)
    return found


def _add(array: pa.Array, found: Tensors) -> None:
    import torch

    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    if array.null_count:
        found.append(torch.from_numpy(_bits(array.buffers()[0], array.offset, len(array))))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        offsets = array.offsets.to_numpy()
        found.append(torch.from_numpy(offsets))
        first = int(offsets[0]) if len(offsets) else 0
        _add(array.values.slice(first, (int(offsets[-1]) if len(offsets) else 0) - first), found)
    elif pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        found += [torch.from_numpy(array.offsets.to_numpy()), torch.from_numpy(array.sizes.to_numpy())]
        _add(array.flatten(), found)  # lists end to end, as everybody else hands them out
    elif pa.types.is_boolean(array.type):
        found.append(torch.from_numpy(_bits(array.buffers()[1], array.offset, len(array))))
    else:
        kind = array.type.to_pandas_dtype() if not pa.types.is_temporal(array.type) else np.int64
        values = np.frombuffer(array.buffers()[1], kind) if len(array) else np.zeros(0, kind)
        found.append(torch.from_numpy(values[array.offset : array.offset + len(array)]))


def _bits(buffer: pa.Buffer, offset: int, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(buffer, np.uint8), count=offset + count, bitorder="little")[offset:].view(np.bool_)


def whole(batches: Iterator[pa.RecordBatch | pa.Table]) -> pa.Table:
    return pa.concat_tables([pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch for batch in batches])


class Format:
    """A peer. `compressed` ones are those that the targets are measured against; `options` are what `tune` found for the table at hand."""

    compressed = True
    tuned = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.options: dict[str, Any] | None = None

    def tune(self, table: pa.Table, path: pathlib.Path) -> dict[str, Any] | None:
        """Writer options that suit the table, as JSON values; None where there is nothing to choose. May write to `path`."""
        return None

    def write(self, table: pa.Table, path: pathlib.Path, threads: int) -> None:
        raise NotImplementedError

    def scan(self, path: pathlib.Path, columns: Sequence[str] | None, threads: int) -> Iterator[Tensors]:
        for batch in self.batches(path, columns, threads):
            tensors = tensors_of(batch)
            del batch  # nothing of a batch outlives it
            yield tensors
            del tensors

    def batches(self, path: pathlib.Path, columns: Sequence[str] | None, threads: int) -> Iterator[pa.RecordBatch | pa.Table]:
        raise NotImplementedError

    def shuffled(self, path: pathlib.Path, order: np.ndarray, batch_rows: int, threads: int) -> Iterator[Tensors]:
        """All rows in a random order, a batch at a time. Arrow knows nothing better than the whole table in memory and `take`."""
        table = pa.concat_tables(
            [pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch for batch in self.batches(path, None, threads)]
        )
        table = table.combine_chunks()
        for start in range(0, len(order), batch_rows):
            yield tensors_of(table.take(pa.array(order[start : start + batch_rows])))

    def look_up(self, path: pathlib.Path, rows: np.ndarray) -> pa.Table:
        """A few rows by number (sorted), all columns."""
        return whole(self.batches(path, None, 1)).take(pa.array(rows))

    def locate(self, path: pathlib.Path, names: Sequence[str]) -> Any:
        """Open the file and find out where the named columns are."""
        raise NotImplementedError

    def num_bytes(self, path: pathlib.Path) -> int:
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file()) if path.is_dir() else path.stat().st_size


class Parquet(Format):
    """Parquet as pyarrow writes it: `tuner` finds options for a table, default those of the writer itself."""

    def __init__(self, name: str, *, compression: str, tuner: Callable[[pa.Table, pathlib.Path], dict[str, Any]] | None = None) -> None:
        super().__init__(name)
        self._compression, self._tuner = compression, tuner
        self.compressed, self.tuned = compression != "none", tuner is not None

    def tune(self, table: pa.Table, path: pathlib.Path) -> dict[str, Any] | None:
        return None if self._tuner is None else self._tuner(table, path)

    def write(self, table: pa.Table, path: pathlib.Path, threads: int) -> None:
        if self.tuned and self.options is None:
            self.options = self.tune(table, path)
        pq.write_table(table, path, **({"compression": self._compression} | (self.options or {})))

    def batches(self, path: pathlib.Path, columns: Sequence[str] | None, threads: int) -> Iterator[pa.Table]:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=threads > 1)

    def look_up(self, path: pathlib.Path, rows: np.ndarray) -> pa.Table:
        with pq.ParquetFile(path, memory_map=True) as file:
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
            owner = np.searchsorted(ends, rows, side="right")
            parts = []
            for group in np.unique(owner).tolist():
                first = int(ends[group - 1]) if group else 0
                parts.append(file.read_row_group(group, use_threads=False).take(pa.array(rows[owner == group] - first)))
            return pa.concat_tables(parts)

    def locate(self, path: pathlib.Path, names: Sequence[str]) -> Any:
        with pq.ParquetFile(path, memory_map=True) as file:
            index = {file.schema.column(number).path: number for number in range(len(file.schema))} if len(names) > 1_000 else None
            schema = file.schema_arrow
            numbers = [index[name] if index else schema.get_field_index(name) for name in names]
            found = []
            for group in range(file.num_row_groups):
                record = file.metadata.row_group(group)
                found += [(record.column(number).data_page_offset, record.column(number).total_compressed_size) for number in numbers]
            return found


def fastest_row_groups(table: pa.Table, path: pathlib.Path) -> dict[str, Any]:
    """The row group that is read fastest on one core, among sizes around those that are usual."""
    seconds: dict[int, float] = {}
    for rows in ROW_GROUPS:
        pq.write_table(table, path, compression="zstd", row_group_size=rows)
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            with pq.ParquetFile(path, memory_map=True) as file:
                for group in range(file.num_row_groups):
                    tensors_of(file.read_row_group(group, use_threads=False))
            times.append(time.perf_counter() - begin)
        seconds[rows] = min(times)
    return {"row_group_size": min(seconds, key=lambda rows: seconds[rows])}


def smallest_columns(table: pa.Table, _: pathlib.Path) -> dict[str, Any]:
    """The smallest encoding of each column among what the writer offers, all with zstd at level 9."""
    encodings: dict[str, str] = {}
    dictionary = []
    for field in table.schema:
        column = table.select([field.name])
        kind, path = field.type, field.name
        if pa.types.is_list(kind):
            kind, path = kind.value_type, f"{path}.list.{kind.value_field.name}"
        names = ["PLAIN"]
        if pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
            names += ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"] if kind.bit_width >= 32 else []
        elif pa.types.is_floating(kind):
            names.append("BYTE_STREAM_SPLIT")
        sizes = {"dictionary": _size(column, use_dictionary=True)}
        for encoding in names:
            sizes[encoding] = _size(column, use_dictionary=False, column_encoding={path: encoding})
        best = min(sizes, key=lambda name: sizes[name])
        if best == "dictionary":
            dictionary.append(path)
        else:
            encodings[path] = best
    return {"compression": "zstd", "compression_level": 9, "use_dictionary": dictionary or False, "column_encoding": encodings}


def _size(table: pa.Table, **options: Any) -> int:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=9, **options)
    return sink.getbuffer().nbytes


class ArrowFile(Format):
    def __init__(self, name: str, compression: str = "uncompressed") -> None:
        super().__init__(name)
        self._compression = compression
        self.compressed = compression != "uncompressed"

    def write(self, table: pa.Table, path: pathlib.Path, threads: int) -> None:
        pa.feather.write_feather(table, path, compression=self._compression, chunksize=ROW_GROUP)

    def batches(self, path: pathlib.Path, columns: Sequence[str] | None, threads: int) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as names:
            numbers = None if columns is None else [names.schema.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=numbers, use_threads=threads > 1)
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source, options=options) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)

    def locate(self, path: pathlib.Path, names: Sequence[str]) -> Any:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            return [file.schema.get_field_index(name) for name in names]


class Lance(Format):
    def write(self, table: pa.Table, path: pathlib.Path, threads: int) -> None:
        import lance

        shutil.rmtree(path, ignore_errors=True)
        lance.write_dataset(table, str(path))

    def batches(self, path: pathlib.Path, columns: Sequence[str] | None, threads: int) -> Iterator[pa.RecordBatch]:
        import lance

        yield from lance.dataset(str(path)).to_batches(columns=None if columns is None else list(columns), batch_size=ROW_GROUP)

    def look_up(self, path: pathlib.Path, rows: np.ndarray) -> pa.Table:
        import lance

        return lance.dataset(str(path)).take(rows.tolist())

    def locate(self, path: pathlib.Path, names: Sequence[str]) -> Any:
        from lance.file import LanceFileReader

        (file,) = (path / "data").glob("*.lance")
        return LanceFileReader(str(file), columns=list(names))


class Vortex(Format):
    def __init__(self, name: str, *, compact: bool = False) -> None:
        super().__init__(name)
        self._compact = compact

    def write(self, table: pa.Table, path: pathlib.Path, threads: int) -> None:
        import vortex

        vortex.set_worker_threads(threads - 1)
        if self._compact:
            vortex.io.VortexWriteOptions.compact().write(table, str(path))
        else:
            vortex.io.write(table, str(path))

    def batches(self, path: pathlib.Path, columns: Sequence[str] | None, threads: int) -> Iterator[pa.RecordBatch]:
        import vortex

        vortex.set_worker_threads(threads - 1)
        yield from vortex.open(str(path), memory_map=True).to_arrow(None if columns is None else list(columns))

    def look_up(self, path: pathlib.Path, rows: np.ndarray) -> pa.Table:
        import vortex

        indices = vortex.array(pa.array(rows.astype(np.uint64)))
        return vortex.open(str(path), memory_map=True).to_arrow(indices=indices).read_all()

    def locate(self, path: pathlib.Path, names: Sequence[str]) -> Any:
        import vortex

        return vortex.open(str(path), memory_map=True).to_repeated_scan(list(names))


class Headrace(Format):
    def __init__(self, name: str) -> None:
        from loader.batch.buffers import BufferPool

        super().__init__(name)
        self.pool = BufferPool()  # of a process, as Arrow's memory pool is

    def write(self, table: pa.Table, path: pathlib.Path, threads: int) -> None:
        from loader.segment.writer import WriteOptions, write_segment

        path.unlink(missing_ok=True)
        write_segment(path, table, options=WriteOptions(threads=threads))

    def scan(self, path: pathlib.Path, columns: Sequence[str] | None, threads: int, batch_rows: int = SCAN_ROWS) -> Iterator[Tensors]:
        from loader.batch.whole import plain_batches
        from loader.segment.reader import SegmentReader
        from loader.segment.stream import stream_blocks

        with SegmentReader(path) as reader:
            ids = reader.resolve(columns)
            leaves = reader.leaves(ids)
            for number, block in stream_blocks(reader, ids, threads=threads, allocate=lambda num_bytes: self.pool.empty(num_bytes, np.uint8)):
                for batch in plain_batches(block, leaves, int(reader.block_rows[number]), batch_rows, self.pool, threads=threads):
                    tensors = batch.tensors()
                    del batch
                    yield tensors
                    del tensors
                del block

    def shuffled(self, path: pathlib.Path, order: np.ndarray, batch_rows: int, threads: int) -> Iterator[Tensors]:
        import torch

        from loader.batch.assemble import Part, assemble
        from loader.batch.window import Columns, WindowFill
        from loader.scan.columns import read_columns
        from loader.schema import Schema
        from loader.segment.reader import SegmentReader
        from loader.segment.stream import stream_blocks

        with SegmentReader(path) as reader:
            schema = Schema.from_arrow(reader.arrow_schema)
            columns = Columns.of(read_columns(schema, reader.arrow_schema.names))
            starts = reader.blocks["row_start"].astype(np.int64)
            piece = np.searchsorted(starts, order, side="right") - 1
            fill = WindowFill(columns, piece, order - starts[piece], reader.num_blocks, threads=threads, pool=self.pool)
            for number, block in stream_blocks(reader, threads=threads):
                fill.add(number, None, list(block), 0, int(reader.block_rows[number]))
            window = fill.finish()
            for start in range(0, len(order), batch_rows):
                part = Part(window=window, start=start, stop=min(start + batch_rows, len(order)))
                batch = assemble(columns, [part], threads=threads, pool=self.pool)
                arrays = [*batch.fixed, *batch.validity.values(), *(array for pair in batch.lists.values() for array in pair)]
                yield [torch.from_numpy(array) for array in arrays]

    def look_up(self, path: pathlib.Path, rows: np.ndarray) -> pa.Table:
        from loader.segment.reader import SegmentReader

        with SegmentReader(path) as reader:
            return reader.read(rows=rows)

    def locate(self, path: pathlib.Path, names: Sequence[str]) -> Any:
        from loader.segment.reader import SegmentReader

        with SegmentReader(path) as reader:
            return reader.chunks(reader.resolve(names), range(reader.num_blocks))


def formats() -> dict[str, Format]:
    """All of them by name, Headrace first."""
    every = [
        Headrace("Headrace"),
        Parquet("Parquet zstd", compression="zstd"),
        Parquet("Parquet zstd row groups", compression="zstd", tuner=fastest_row_groups),
        Parquet("Parquet zstd by column", compression="zstd", tuner=smallest_columns),
        Parquet("Parquet snappy", compression="snappy"),
        Parquet("Parquet plain", compression="none"),
        Vortex("Vortex"),
        Vortex("Vortex compact", compact=True),
        Lance("Lance"),
        ArrowFile("Arrow IPC"),
        ArrowFile("Arrow IPC zstd", "zstd"),
    ]
    return {item.name: item for item in every}
