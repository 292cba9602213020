"""A fetched block as plain buffers: encoded chunks, patches and selection. What crosses threads, the object store and the bus.

Owns the in-memory form and its flat buffers. Fetching is in `fetch.py`, decoding in `decoded.py`; this module reads nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.segment.layout import PADDING_BYTES

BUFFERS_VERSION = 3
Buffer: TypeAlias = Any  # anything with the buffer protocol: bytes, memoryview, pyarrow.Buffer, uint8 array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchRequest:
    """One block wanted by one rank.

    Attributes:
        sequence: Number of the request in the rank's stream, from 0.
        shard: Canonical shard whose window wants it.
        block: Index in the plan's list of blocks.
    """

    sequence: int
    shard: int
    block: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPatch:
    """New values of some rows of one column of a block.

    Attributes:
        rows: uint32 [n], rows of the block, ascending.
        values: Arrow array [n] of the column's type.
    """

    rows: npt.NDArray[np.uint32]
    values: pa.Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dictionaries:
    """Chunks in a block's slab that its columns share with other blocks.

    Attributes:
        offsets: int64 [dictionaries], into the slab.
        num_bytes: int64 [dictionaries].
        of_column: int64 [columns], the number of the dictionary that a column looks up, -1 where there is none.
    """

    offsets: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]
    of_column: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadBlock:
    """Why a block cannot be had.

    Attributes:
        kind: Name of the error's class.
        reason: Its message.
        column_ids: The columns that are damaged; empty where that is all, or unknown.
        known: Whether it was in quarantine already, so that nothing was tried.
    """

    kind: str
    reason: str
    column_ids: tuple[int, ...] = ()
    known: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBlock:
    """The chunks of one block, for the columns of a scan.

    Attributes:
        request: What was asked for.
        num_rows: Rows stored in the block, deleted ones too.
        slab: uint8, the chunks of the columns and their dictionaries, each on 64 bytes, then PADDING_BYTES more.
        chunk_offsets: int64 [columns], into the slab; -1 where the segment is older than the column.
        chunk_bytes: int64 [columns].
        selected: uint8, one bit a row (least significant first), or None when every row is selected.
        patches: By index of the column.
        dictionaries: What the columns share with other blocks, or None.
        bad: Why it has no chunks, where it cannot be had; every row of it is masked then.
        masked: uint8, one bit a stored row: rows that were erased since the snapshot, and are masked in batches. None for none.
    """

    request: FetchRequest
    num_rows: int
    slab: npt.NDArray[np.uint8]
    chunk_offsets: npt.NDArray[np.int64]
    chunk_bytes: npt.NDArray[np.int64]
    selected: npt.NDArray[np.uint8] | None = None
    patches: dict[int, BlockPatch] = dataclasses.field(default_factory=dict)
    dictionaries: Dictionaries | None = None
    bad: BadBlock | None = None
    masked: npt.NDArray[np.uint8] | None = None

    def program_chunks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """What `program.build` takes: the indices of the columns that the block has, then the offsets and bytes of their chunks and of their dictionaries, and
        the position of each column's dictionary."""
        present = np.flatnonzero(self.chunk_offsets >= 0)
        offsets, sizes, dictionaries = self.chunk_offsets[present], self.chunk_bytes[present], self.dictionaries
        if dictionaries is None:
            return present, offsets, sizes, None
        shared = dictionaries.of_column[present]
        shared = np.where(shared >= 0, shared + present.size, -1)
        return present, np.concatenate([offsets, dictionaries.offsets]), np.concatenate([sizes, dictionaries.num_bytes]), shared

    @property
    def num_bytes(self) -> int:
        """Bytes held in memory, patches not counted."""
        return self.slab.nbytes + (0 if self.selected is None else self.selected.nbytes)

    def selected_rows(self) -> npt.NDArray[np.int64] | None:
        """Rows of the block by ordinal, int64 [selected]; None when ordinals are rows."""
        if self.selected is None:
            return None
        return np.flatnonzero(np.unpackbits(self.selected, count=self.num_rows, bitorder="little"))

    def to_buffers(self) -> list[Buffer]:
        """The block as flat buffers: a JSON header, slab, chunk table, selection, dictionaries, masked rows, then an Arrow IPC stream for each patch."""
        header = {
            "version": BUFFERS_VERSION,
            "request": [self.request.sequence, self.request.shard, self.request.block],
            "num_rows": self.num_rows,
            "all_selected": self.selected is None,
            "patches": list(self.patches),
            "bad": None if self.bad is None else dataclasses.asdict(self.bad),
            "has_masked": self.masked is not None,
        }
        selected = np.zeros(0, np.uint8) if self.selected is None else self.selected
        chunks, shared = np.concatenate([self.chunk_offsets, self.chunk_bytes]), np.zeros(0, np.int64)
        if self.dictionaries is not None:
            shared = np.concatenate([self.dictionaries.of_column, self.dictionaries.offsets, self.dictionaries.num_bytes])
        masked = np.zeros(0, np.uint8) if self.masked is None else self.masked
        tables = [chunks.view(np.uint8), selected, shared.view(np.uint8), masked]
        return [json.dumps(header).encode(), self.slab, *tables, *(_to_stream(patch) for patch in self.patches.values())]

    @classmethod
    def from_buffers(cls, buffers: Sequence[Buffer]) -> EncodedBlock:
        """Rebuild a block without copying its bytes."""
        header = json.loads(bytes(memoryview(buffers[0])))
        if header["version"] != BUFFERS_VERSION:
            raise ValueError(f"block buffers of version {header['version']} met a loader of version {BUFFERS_VERSION}: run the same Headrace on every host")
        slab, chunks, selected, shared, masked = (np.frombuffer(memoryview(buffer), np.uint8) for buffer in buffers[1:6])
        offsets, num_bytes = chunks.view("<i8").reshape(2, -1)
        of_column, places = np.split(shared.view("<i8"), [offsets.size])
        starts, sizes = places.reshape(2, -1)
        sequence, shard, block = header["request"]
        bad = header["bad"]
        return cls(
            request=FetchRequest(sequence=sequence, shard=shard, block=block),
            num_rows=header["num_rows"],
            slab=slab,
            chunk_offsets=offsets,
            chunk_bytes=num_bytes,
            selected=None if header["all_selected"] else selected,
            patches={column: _from_stream(buffer) for column, buffer in zip(header["patches"], buffers[6:], strict=True)},
            dictionaries=Dictionaries(offsets=starts, num_bytes=sizes, of_column=of_column) if shared.size else None,
            bad=None if bad is None else BadBlock(**{**bad, "column_ids": tuple(bad["column_ids"])}),
            masked=masked if header["has_masked"] else None,
        )


def empty_slab(num_bytes: int, empty: Callable[[int], npt.NDArray[np.uint8]] | None = None) -> npt.NDArray[np.uint8]:
    """A slab for chunks of `num_bytes` in all; its padding is zero, since decoders may read it. `empty` is where its memory comes from."""
    slab = np.empty(num_bytes + PADDING_BYTES, np.uint8) if empty is None else empty(num_bytes + PADDING_BYTES)
    slab[num_bytes:] = 0
    return slab


def _to_stream(patch: BlockPatch) -> pa.Buffer:
    batch = pa.record_batch([pa.array(patch.rows), patch.values], names=["row", "value"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _from_stream(buffer: Buffer) -> BlockPatch:
    with pa.ipc.open_stream(pa.py_buffer(memoryview(buffer))) as reader:
        batch = reader.read_next_batch()
    return BlockPatch(rows=batch.column(0).to_numpy(), values=batch.column(1))
