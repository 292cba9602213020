"""The loaders that `scripts/bench_loader` compares, each behind the same few calls. Imports a peer only when it is used.

`write` stores the samples once, `open` gives an object whose every iteration is an epoch of batches, each a list of all its torch tensors: values and offsets
of a list, values and (from Arrow) a mask of a column with nulls. Systems that keep columns shuffle whole rows in windows of `window_rows`, the same for all,
with `take`; those that keep rows shuffle by their own sampler. What keeps rows gets its nulls filled, and lists as NumPy arrays, so it has less to deliver.
"""

from __future__ import annotations

import importlib.machinery
import itertools
import os
import pathlib
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_format_peers import tensors_of

FILES = 8
GROUP_ROWS = 8_192
KEY = "sample_id"
STORE_BYTES = 1 << 30
Tensors = list[Any]


class Peer:
    """A way to load samples. `compressed` ones are those that the targets are measured against.

    Attributes:
        title: In the table.
        how: How it is used, in a line.
        compressed: Whether what it reads is compressed.
        keeps_state: Whether it can go on in the middle of an epoch.
        orders: Whether it is timed without shuffling too.
        keeps_rows: Whether it stores row by row, which takes long: it gets fewer of them, which does not change its rate.
    """

    title = ""
    how = ""
    compressed = True
    keeps_state = False
    orders = True
    keeps_rows = False

    def __init__(self, folder: pathlib.Path, job: dict[str, Any]) -> None:
        self.folder, self.batch_rows, self.window_rows = folder, job["batch_rows"], job["window_rows"]
        self.cores, self.columns, self.shuffled, self.seed = job["cores"], job.get("columns"), job.get("shuffled", True), 17

    def write(self, table: pa.Table) -> None:
        raise NotImplementedError

    def open(self, state: Any = None) -> Iterable[Tensors]:
        """Batches of an epoch at every iteration; from a state, the rest of the epoch first."""
        raise NotImplementedError

    def state(self, opened: Any) -> Any:
        """The state of what `open` gave, in the middle of an epoch; plain JSON values."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop what `open` started."""


class Epochs:
    """An epoch at each iteration, made by a function of its number."""

    def __init__(self, epoch: Any) -> None:
        self._epoch, self._number = epoch, itertools.count()

    def __iter__(self) -> Iterator[Tensors]:
        return iter(self._epoch(next(self._number)))


def headrace_tensors(batch: Any) -> Tensors:
    """All the tensors of a batch, named one by one as a training step does."""
    found: Tensors = []
    for name in batch:
        value = batch[name]
        found += [value.values, value.offsets] if hasattr(value, "offsets") else [value]
    return found + list(batch.validity.values())


class Headrace(Peer):
    title = "Headrace"
    how = "loader.DataLoader, threads in process"
    keeps_state = True

    def write(self, table: pa.Table) -> None:
        import loader

        fields = [pa.field(field.name, field.type, nullable=field.name != KEY) for field in table.schema]
        with loader.connect(self.folder / "lake") as lake:
            made = lake.create_table("samples", pa.schema(fields), primary_key=[KEY], durability="relaxed")
            made.append(table.cast(pa.schema(fields)), on_conflict="trust")

    def scan(self) -> Any:
        import loader

        self.lake = loader.connect(self.folder / "lake", create=False)
        table = self.lake.table("samples")
        return table.scan(columns=self.columns or [name for name in table.schema.names if name != KEY])

    def loader(self, scan: Any, **options: Any) -> Any:
        import loader

        return loader.DataLoader(
            scan,
            **{
                "global_batch_size": self.batch_rows,
                "shuffle": "windows" if self.shuffled else "none",
                "window_rows": self.window_rows,
                "seed": self.seed,
                "rank": 0,
                "world_size": 1,
                "threads": self.cores,
                **options,
            },
        )

    def open(self, state: Any = None) -> Any:
        self.batches = self.loader(self.scan())
        if state is not None:
            self.batches.load_state_dict(state)
        return Epochs(lambda _: map(headrace_tensors, self.batches))

    def state(self, opened: Any) -> Any:
        return self.batches.state_dict()

    def close(self) -> None:
        self.batches.close()
        self.lake.close()


class HeadraceRay(Headrace):
    title = "Headrace, Ray"
    how = "loader.DataLoader over RayBlockStream: an actor fetches, the rank decodes"

    def write(self, table: pa.Table) -> None:
        """The same lake."""

    def open(self, state: Any = None) -> Any:
        from loader.distributed import RayBlockStream
        from loader.distributed.ahead import expect

        start_ray(self.cores)
        scan = self.scan()
        self.stream = RayBlockStream(scan.plan().fetch_spec())
        self.batches = self.loader(scan, stream=self.stream)
        if state is not None:
            self.batches.load_state_dict(state)
        expect(self.stream, self.batches, epochs=range(self.batches.epoch, self.batches.epoch + 64), position=self.batches.position)
        return Epochs(lambda _: map(headrace_tensors, self.batches))

    def close(self) -> None:
        import ray

        self.stream.close()
        super().close()
        ray.shutdown()


def start_ray(cores: int) -> None:
    """A Ray of this process, on its cores."""
    import logging

    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=cores, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def in_windows(tables: Iterable[pa.Table], window_rows: int, batch_rows: int, generator: np.random.Generator | None) -> Iterator[pa.Table]:
    """Batches of tables that follow each other; with a generator, permuted within windows. Fewer rows than a batch at the end are left out."""
    held: list[pa.Table] = []
    for table in itertools.chain(tables, [None]):
        rows = sum(part.num_rows for part in held)
        if table is not None and rows + table.num_rows < window_rows:
            held.append(table)
            continue
        window = pa.concat_tables([*held, table] if table is not None else held)
        usable = window.num_rows // batch_rows * batch_rows
        if generator is not None and window.num_rows:
            window = window.combine_chunks()
            order = generator.permutation(window.num_rows)
            for start in range(0, usable, batch_rows):
                yield window.take(pa.array(order[start : start + batch_rows]))
            held = [window.take(pa.array(order[usable:]))]
        else:
            for start in range(0, usable, batch_rows):
                yield window.slice(start, batch_rows).combine_chunks()
            held = [window.slice(usable)]


class ParquetFiles:
    """An iterable dataset of torch over Parquet: the row groups of this worker, in an order of the epoch, shuffled in windows."""

    def __init__(self, peer: Peer, workers: int) -> None:
        self.paths = sorted(map(str, (peer.folder / "parquet").glob("*.parquet")))
        self.columns, self.shuffled, self.seed = peer.columns, peer.shuffled, peer.seed
        self.batch_rows, self.window_rows, self.threads = peer.batch_rows, peer.window_rows // max(workers, 1), workers == 0
        self.epoch = 0

    def __iter__(self) -> Iterator[Tensors]:
        import torch.utils.data

        info = torch.utils.data.get_worker_info()
        groups = [(path, group) for path in self.paths for group in range(pq.ParquetFile(path).num_row_groups)]
        generator = np.random.default_rng((self.seed, self.epoch)) if self.shuffled else None
        self.epoch += 1
        if generator is not None:
            groups = [groups[at] for at in generator.permutation(len(groups))]
        if info is not None:
            groups = groups[info.id :: info.num_workers]
        for batch in in_windows(self._read(groups), self.window_rows, self.batch_rows, generator):
            yield tensors_of(batch)

    def _read(self, groups: Sequence[tuple[str, int]]) -> Iterator[pa.Table]:
        for path, group in groups:
            with pq.ParquetFile(path, memory_map=True) as file:
                yield file.read_row_group(group, columns=self.columns, use_threads=self.threads)


class ParquetWorkers(Peer):
    title = "Parquet, torch workers"
    how = "zstd; torch DataLoader, a worker a core, each permutes windows of its row groups with take"

    @property
    def workers(self) -> int:
        return self.cores

    def write(self, table: pa.Table) -> None:
        folder = self.folder / "parquet"
        folder.mkdir()
        step = -(-table.num_rows // FILES)
        for number, start in enumerate(range(0, table.num_rows, step)):
            pq.write_table(table.slice(start, step).drop_columns([KEY]), folder / f"{number}.parquet", compression="zstd", row_group_size=GROUP_ROWS)

    def open(self, state: Any = None) -> Any:
        import torch.utils.data

        class Rows(ParquetFiles, torch.utils.data.IterableDataset):
            pass

        return torch.utils.data.DataLoader(Rows(self, self.workers), batch_size=None, num_workers=self.workers, persistent_workers=self.workers > 0)


class ParquetThreads(ParquetWorkers):
    title = "Parquet, torch threads"
    how = "zstd; torch DataLoader in process, pyarrow's threads read columns"
    workers = 0

    def write(self, table: pa.Table) -> None:
        """The same files."""


class RayData(Peer):
    title = "Parquet, Ray Data"
    how = "zstd; read_parquet(…, shuffle='files').iter_batches(local_shuffle_buffer_size=window), Arrow batches"

    def write(self, table: pa.Table) -> None:
        """The same files."""

    def open(self, state: Any = None) -> Any:
        import ray

        start_ray(self.cores)
        more = {"local_shuffle_buffer_size": self.window_rows, "local_shuffle_seed": self.seed} if self.shuffled else {}
        source = ray.data.read_parquet(str(self.folder / "parquet"), columns=self.columns, shuffle="files" if self.shuffled else None)

        def epoch(_: int) -> Iterator[Tensors]:
            for batch in source.iter_batches(batch_size=self.batch_rows, batch_format="pyarrow", prefetch_batches=2, drop_last=True, **more):
                yield tensors_of(batch.combine_chunks())

        return Epochs(epoch)

    def close(self) -> None:
        import ray

        ray.shutdown()


class Lance(Peer):
    title = "Lance"
    how = "scanner over shuffled fragments, windows permuted with take"

    def write(self, table: pa.Table) -> None:
        import lance

        lance.write_dataset(table.drop_columns([KEY]), str(self.folder / "lance"), max_rows_per_file=-(-table.num_rows // FILES))

    def open(self, state: Any = None) -> Any:
        import lance

        source = lance.dataset(str(self.folder / "lance"))

        def epoch(number: int) -> Iterator[Tensors]:
            fragments = source.get_fragments()
            generator = np.random.default_rng((self.seed, number)) if self.shuffled else None
            if generator is not None:
                fragments = [fragments[at] for at in generator.permutation(len(fragments))]
            read = (
                pa.Table.from_batches([batch])
                for fragment in fragments
                for batch in fragment.scanner(columns=self.columns, batch_size=self.batch_rows).to_batches()
            )
            for batch in in_windows(read, self.window_rows, self.batch_rows, generator):
                yield tensors_of(batch)

        return Epochs(epoch)


class HuggingFace(Peer):
    title = "Hugging Face datasets"
    how = "memory-mapped Arrow, not compressed; with_format('arrow').shuffle(seed).iter(batch)"
    compressed = False
    keeps_state = True

    def write(self, table: pa.Table) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset(table.drop_columns([KEY])).save_to_disk(str(self.folder / "hugging-face"), num_shards=FILES)

    def open(self, state: Any = None) -> Any:
        import datasets

        datasets.disable_progress_bars()
        source = datasets.load_from_disk(str(self.folder / "hugging-face")).with_format("arrow")
        if self.columns is not None:
            source = source.select_columns(self.columns)

        def epoch(number: int) -> Iterator[Tensors]:
            order = source.shuffle(seed=self.seed + number) if self.shuffled else source
            if state is not None and number == 0:
                order = order.select(range(state["row"], len(order)))
            for batch in order.iter(self.batch_rows, drop_last_batch=True):
                yield tensors_of(batch.combine_chunks())

        self._rows = len(source)
        return Epochs(epoch)

    def state(self, opened: Any) -> Any:
        """It has none of its own: the trainer keeps the row."""
        return {"row": self._rows // 2 // self.batch_rows * self.batch_rows}


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Each sample as a dict of NumPy scalars and arrays, nulls filled with zeros."""
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name == KEY:
            continue
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            columns[name] = (column.flatten().to_numpy(zero_copy_only=False), column.offsets.to_numpy())
        else:
            plain = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
            columns[name] = (plain.fill_null(False if pa.types.is_boolean(plain.type) else 0).to_numpy(zero_copy_only=False), None)
    for row in range(table.num_rows):
        yield {name: values[row] if offsets is None else values[offsets[row] : offsets[row + 1]] for name, (values, offsets) in columns.items()}


class Collate:
    """Rows to one batch of tensors.

    Args:
        columns: To take; None for all.
        kinds: Of lists that come as bytes.
    """

    def __init__(self, columns: Sequence[str] | None, kinds: dict[str, np.dtype[Any]] | None = None) -> None:
        self.columns, self.kinds = columns, kinds or {}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Tensors:
        import torch

        found: Tensors = []
        for name in self.columns or [name for name in rows[0] if not name.startswith("__")]:
            values = [row[name] for row in rows]
            if isinstance(values[0], torch.Tensor):
                values = [value.numpy() for value in values]
            if name in self.kinds:
                offsets = np.zeros(len(rows) + 1, np.int64)
                np.cumsum([len(value) // self.kinds[name].itemsize for value in values], out=offsets[1:])
                found += [torch.from_numpy(np.frombuffer(bytearray(b"".join(values)), self.kinds[name])), torch.from_numpy(offsets)]
            elif isinstance(values[0], np.ndarray) and values[0].ndim:
                offsets = np.zeros(len(rows) + 1, np.int64)
                np.cumsum([len(value) for value in values], out=offsets[1:])
                found += [torch.from_numpy(np.concatenate(values)), torch.from_numpy(offsets)]
            else:
                found.append(torch.from_numpy(np.array(values)))
        return found


class Mosaic(Peer):
    title = "Mosaic Streaming"
    how = "MDS shards, not compressed once they are local; StreamingDataLoader, a worker a core, its own shuffle"
    compressed = False
    keeps_state = True
    orders = False
    keeps_rows = True

    def write(self, table: pa.Table) -> None:
        streaming = import_streaming()
        kinds = {name: _mds_kind(table.schema.field(name).type) for name in table.column_names if name != KEY}
        with streaming.MDSWriter(out=str(self.folder / "mosaic"), columns=kinds, size_limit=1 << 25) as writer:
            for row in rows_of(table):
                writer.write({name: value.tobytes() if kinds[name] == "bytes" else value for name, value in row.items()})  # it refuses empty arrays

    def open(self, state: Any = None) -> Any:
        streaming = import_streaming()
        streaming.base.util.clean_stale_shared_memory()
        schema = pq.ParquetFile(self.folder / "parquet" / "0.parquet").schema_arrow
        kinds = {field.name: np.dtype(field.type.value_type.to_pandas_dtype()) for field in schema if pa.types.is_list(field.type)}
        source = streaming.StreamingDataset(local=str(self.folder / "mosaic"), shuffle=self.shuffled, shuffle_seed=self.seed, batch_size=self.batch_rows)
        opened = streaming.StreamingDataLoader(
            source, batch_size=self.batch_rows, num_workers=self.cores, collate_fn=Collate(self.columns, kinds), persistent_workers=True, drop_last=True
        )
        opened._get_batch_size = lambda _: self.batch_rows  # it counts rows by the batch's first key, and these are lists
        if state is not None:
            opened.load_state_dict(state)
        return opened

    def state(self, opened: Any) -> Any:
        return opened.state_dict()


def import_streaming() -> Any:
    """Mosaic's package imports torchvision for its images; where that has no build for this PyTorch, empty classes stand in for what it names."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [known for known in sys.modules if known.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        for module, name in (("datasets", "VisionDataset"), ("transforms.functional", "to_tensor")):
            setattr(sys.modules[f"torchvision.{module}"], name, type(name, (), {}))
    import streaming
    import streaming.base.util

    return streaming


def _mds_kind(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return "bytes"
    return {"bool": "uint8", "timestamp[s]": "int64", "float": "float32"}.get(str(kind), str(kind))


class LitData(Peer):
    title = "LitData"
    how = "whole chunks with zstd; StreamingDataLoader, a worker a core, its own shuffle"
    keeps_state = True
    orders = False
    keeps_rows = True

    def write(self, table: pa.Table) -> None:
        from litdata.streaming.writer import BinaryWriter

        folder = self.folder / "litdata"
        folder.mkdir()
        writer = BinaryWriter(str(folder), chunk_bytes=1 << 25, compression="zstd", compression_level="chunk")
        for number, row in enumerate(rows_of(table)):
            writer[number] = {name: np.atleast_1d(value) for name, value in row.items()}
        writer.done()
        writer.merge(1)

    def open(self, state: Any = None) -> Any:
        import litdata

        source = litdata.StreamingDataset(str(self.folder / "litdata"), shuffle=self.shuffled, seed=self.seed, drop_last=True)
        opened = litdata.StreamingDataLoader(source, batch_size=self.batch_rows, num_workers=self.cores, collate_fn=Collate(self.columns))
        if state is not None:
            opened.load_state_dict(state)
        return opened

    def state(self, opened: Any) -> Any:
        return opened.state_dict()


class WebDataset(Peer):
    title = "WebDataset"
    how = "tar shards of MessagePack rows, not compressed; WebLoader, a worker a core, a shuffle buffer of the window"
    compressed = False
    orders = False
    keeps_rows = True

    def write(self, table: pa.Table) -> None:
        import webdataset

        folder = self.folder / "webdataset"
        folder.mkdir()
        with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=-(-table.num_rows // FILES), verbose=0) as writer:
            for number, row in enumerate(rows_of(table)):
                writer.write({"__key__": f"{number:09}", "row.mp": {name: np.atleast_1d(value).tobytes() for name, value in row.items()}})

    def open(self, state: Any = None) -> Any:
        import webdataset

        schema = pq.ParquetFile(self.folder / "parquet" / "0.parquet").schema_arrow
        kinds = {name: schema.field(name).type for name in self.columns or schema.names}
        paths = sorted(map(str, (self.folder / "webdataset").glob("*.tar")))
        source = webdataset.WebDataset(paths, shardshuffle=len(paths) if self.shuffled else False, seed=self.seed)
        rows = source.shuffle(self.window_rows // self.cores if self.shuffled else 0).decode().map(Unpack(kinds))
        batches = rows.batched(self.batch_rows, collation_fn=Collate(list(kinds)), partial=False)
        return webdataset.WebLoader(batches, batch_size=None, num_workers=self.cores, persistent_workers=True)


class Unpack:
    """The columns of a row of MessagePack: arrays over its bytes."""

    def __init__(self, kinds: dict[str, pa.DataType]) -> None:
        self.kinds = {
            name: (np.dtype(np.int64 if pa.types.is_timestamp(kind) else (kind.value_type if pa.types.is_list(kind) else kind).to_pandas_dtype()), kind)
            for name, kind in kinds.items()
        }

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        row = sample["row.mp"]
        return {
            name: np.frombuffer(row[name], kind) if pa.types.is_list(whole) else np.frombuffer(row[name], kind)[0] for name, (kind, whole) in self.kinds.items()
        }


PEERS: dict[str, type[Peer]] = {
    kind.title: kind for kind in (Headrace, HeadraceRay, ParquetWorkers, ParquetThreads, RayData, Lance, HuggingFace, LitData, Mosaic, WebDataset)
}
