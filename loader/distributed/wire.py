"""How an encoded block, or anything of flat buffers, travels as a row of a Ray Data block: end to end in one binary value, with their bounds beside it.

Every buffer starts on 64 bytes and every payload is a multiple of 64, so that slabs stay aligned even where Ray lays rows end to end. The
receiver makes views of Ray's shared memory; only what Ray sends inline (under 100 KB) may lie askew and is copied. Nothing of ours is pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from loader.scan.encoded import Buffer, EncodedBlock

ALIGNMENT = 64
NEEDED_ALIGNMENT = 8  # what decoding and NumPy ask of an address; Ray's shared memory keeps 16

PAYLOAD = [pa.field("starts", pa.list_(pa.int64())), pa.field("sizes", pa.list_(pa.int64())), pa.field("payload", pa.large_binary())]
SCHEMA = pa.schema([pa.field(name, pa.int64()) for name in ("sequence", "shard", "block")] + PAYLOAD)


def pack(block: EncodedBlock) -> pa.Table:
    """One row of `SCHEMA`. Copies the encoded bytes once, into one buffer."""
    request = block.request
    numbers = [pa.array([value], pa.int64()) for value in (request.sequence, request.shard, request.block)]
    return pa.Table.from_arrays([*numbers, *pack_buffers(block.to_buffers())], schema=SCHEMA)


def unpack(rows: pa.Table) -> Iterator[EncodedBlock]:
    """The blocks of some rows, as views that keep Ray's shared memory alive until they die."""
    return map(EncodedBlock.from_buffers, unpack_buffers(rows))


def pack_buffers(buffers: Sequence[Buffer]) -> list[pa.Array]:
    """The columns `starts`, `sizes` and `payload` of one row."""
    arrays = [np.frombuffer(memoryview(buffer), np.uint8) for buffer in buffers]
    sizes = np.array([array.nbytes for array in arrays], np.int64)
    ends = np.cumsum(-(-sizes // ALIGNMENT) * ALIGNMENT)
    starts = np.concatenate([[0], ends[:-1]])
    payload = np.empty(int(ends[-1]), np.uint8)
    for start, end, size, array in zip(starts, ends, sizes, arrays, strict=True):
        payload[start : start + size] = array
        payload[start + size : end] = 0
    values = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, payload.nbytes], np.int64)), pa.py_buffer(payload)])
    return [*(pa.array([value], pa.list_(pa.int64())) for value in (starts, sizes)), values]


def unpack_buffers(rows: pa.Table) -> Iterator[list[pa.Buffer]]:
    """The buffers of each row, each on 64 bytes from where its payload starts, which is on 8."""
    for batch in rows.to_batches():
        starts, sizes, payloads = batch.column("starts"), batch.column("sizes"), batch.column("payload")
        for row in range(batch.num_rows):
            payload = _aligned(payloads[row].as_buffer())
            spans = zip(starts[row].values.to_pylist(), sizes[row].values.to_pylist(), strict=True)
            yield [payload.slice(start, size) for start, size in spans]


def _aligned(payload: pa.Buffer) -> pa.Buffer:
    if payload.address % NEEDED_ALIGNMENT == 0:
        return payload
    copy = np.empty(payload.size + ALIGNMENT, np.uint8)
    start = -copy.ctypes.data % ALIGNMENT
    copy[start : start + payload.size] = np.frombuffer(payload, np.uint8)
    return pa.py_buffer(copy[start : start + payload.size])
