"""How a part of a batch travels as a row of a Ray Data block: a JSON header that says what each flat buffer is, then the buffers. Nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.batch.assemble import BatchArrays
from loader.distributed.wire import PAYLOAD, pack_buffers, unpack_buffers
from loader.scan.encoded import BadBlock, Buffer
from loader.train.bad_blocks import MetBlock
from loader.train.batch_stream import PartBatch

VERSION = 2
SCHEMA = pa.schema(PAYLOAD)
Array = npt.NDArray[Any]


def pack(part: PartBatch) -> pa.Table:
    """One row of `SCHEMA`. Copies the arrays once, into one buffer."""
    arrays = part.arrays
    named: list[tuple[str, int, Array]] = [("fixed", number, matrix) for number, matrix in enumerate(arrays.fixed)]
    named += [("wide", column, values) for column, values in arrays.wide.items()]
    for column, (values, offsets) in arrays.lists.items():
        named += [("values", column, values), ("offsets", column, offsets)]
    named += [("inverses", column, inverse) for column, inverse in arrays.inverses.items()]
    named += [("validity", column, valid) for column, valid in arrays.validity.items()]
    named += [("blocks", 0, arrays.blocks), ("rows", 0, arrays.rows)]
    named += [] if arrays.masked is None else [("masked", 0, arrays.masked)]
    header = {
        "version": VERSION,
        "batch": [part.epoch, part.position, arrays.num_rows, arrays.num_samples],
        "read": [part.blocks, part.encoded_bytes, part.window_bytes],
        "bad": [(met.block, dataclasses.asdict(met.bad)) for met in part.bad],
        "arrays": [(kind, key, array.dtype.str, array.shape) for kind, key, array in named],
    }
    buffers: list[Buffer] = [json.dumps(header).encode(), *(np.ascontiguousarray(array).reshape(-1).view(np.uint8) for _, _, array in named)]
    return pa.Table.from_arrays(pack_buffers(buffers), schema=SCHEMA)


def unpack(rows: pa.Table) -> Iterator[PartBatch]:
    """The parts of some rows, as views that keep Ray's shared memory alive until they die."""
    return map(_from_buffers, unpack_buffers(rows))


def _from_buffers(buffers: list[pa.Buffer]) -> PartBatch:
    header = json.loads(buffers[0].to_pybytes())
    if header["version"] != VERSION:
        raise ValueError(f"batch buffers of version {header['version']} met a loader of version {VERSION}: run the same Headrace on every host")
    found: dict[str, dict[int, Array]] = {kind: {} for kind in ("fixed", "wide", "values", "offsets", "inverses", "validity", "blocks", "rows", "masked")}
    for (kind, key, dtype, shape), buffer in zip(header["arrays"], buffers[1:], strict=True):
        found[kind][key] = np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)
    epoch, position, num_rows, num_samples = header["batch"]
    blocks, encoded_bytes, window_bytes = header["read"]
    arrays = BatchArrays(
        num_rows=num_rows,
        num_samples=num_samples,
        fixed=tuple(found["fixed"][number] for number in range(len(found["fixed"]))),
        wide=found["wide"],
        lists={column: (values, found["offsets"][column]) for column, values in found["values"].items()},
        validity={column: valid.view(np.uint8) for column, valid in found["validity"].items()},
        blocks=found["blocks"][0],
        rows=found["rows"][0],
        inverses=found["inverses"],
        masked=found["masked"].get(0),
    )
    bad = tuple(MetBlock(block=block, bad=BadBlock(**{**met, "column_ids": tuple(met["column_ids"])})) for block, met in header["bad"])
    return PartBatch(epoch=epoch, position=position, arrays=arrays, blocks=blocks, encoded_bytes=encoded_bytes, window_bytes=window_bytes, bad=bad)
