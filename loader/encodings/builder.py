"""The byte layout of one chunk while it is being encoded: header, regions, ops, sources and streams.

Owns offsets and alignment inside a chunk; encoders say what they need and never compute an offset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from loader.segment.layout import (
    ALIGNMENT,
    CHUNK_HEADER,
    CHUNK_USES_SHARED,
    NO_REGION,
    OP,
    REGION,
    SHARED_REGION,
    SOURCE,
    Feature,
    OpKind,
    OutKind,
    Role,
    Scan,
    SourceKind,
    ValueType,
    round_up,
)

Array = np.ndarray[Any, np.dtype[Any]]
STREAM_ALIGNMENT = 8
_KIND_FEATURES = {int(OpKind.SPLIT): Feature.CLASS_SPLIT, int(OpKind.RUNS): Feature.RUN_ENDS, int(OpKind.NULLS): Feature.NULLS}
_OP_STREAMS = ("anchors", "scan_anchors", "bits0", "bits1", "patches")


def as_i64(pattern: int) -> int:
    """A 64-bit pattern as the signed number that an i64 field holds."""
    pattern &= (1 << 64) - 1
    return pattern - (1 << 64) if pattern >> 63 else pattern


class ChunkBuilder:
    """Collects the parts of a chunk. A stream handle is what `stream` returns; region and source numbers count from 0."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, ...]] = []
        self._ops: list[dict[str, int | None]] = []
        self._sources: list[tuple[int | None, ...]] = []
        self._streams: list[tuple[int, Array]] = []
        self._data_bytes = 0
        self._arena_bytes = 0
        self._in_weights = False

    @contextlib.contextmanager
    def weights(self) -> Iterator[None]:
        """Regions added meanwhile belong to the second list of a map."""
        self._in_weights = True
        try:
            yield
        finally:
            self._in_weights = False

    def stream(self, values: Array) -> int:
        """Add raw bytes; returns their handle."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        offset = round_up(self._data_bytes, STREAM_ALIGNMENT)
        self._streams.append((offset, raw))
        self._data_bytes = offset + raw.nbytes
        return offset

    def region(self, role: Role, *, depth: int, item_bytes: int, value_type: ValueType, count: int, base: int = 0) -> int:
        """Add an output buffer of `count` items."""
        role = Role(role + Role.WEIGHT_VALUES) if self._in_weights and role < Role.SCRATCH else role
        self._regions.append((int(role), depth, item_bytes, int(value_type), 0, count, as_i64(base)))
        self._arena_bytes += round_up(count * item_bytes, ALIGNMENT)
        return len(self._regions) - 1

    def source(
        self, kind: SourceKind, *, count: int, value: int = 0, data: int | None = None, meta: int | None = None, region: int = 0, num_words: int = 0
    ) -> int:
        """Add a stream of 32-bit values, `data` and `meta` being handles."""
        self._sources.append((int(kind), region, data, meta, value, count, num_words))
        return len(self._sources) - 1

    def op(
        self,
        kind: OpKind,
        *,
        out: int,
        out_kind: OutKind,
        count: int,
        level: int,
        source: int = 0,
        num_sources: int = 1,
        scan: Scan = Scan.NONE,
        base: int = 0,
        dictionary: int = NO_REGION,
        dict_count: int = 0,
        bits: int | None = None,
        bits1: int | None = None,
        anchors: int | None = None,
        scan_anchors: int | None = None,
        scale: int = 0,
        flags: int = 0,
        patches: int | None = None,
        num_patches: int = 0,
    ) -> None:
        """Add an op that fills `count` items of region `out` from its start; bits, anchors and patches are handles."""
        self._ops.append(
            {
                "kind": int(kind),
                "out_kind": int(out_kind),
                "scan": int(scan),
                "num_sources": num_sources,
                "level": level,
                "out_region": out,
                "count": count,
                "first_source": source,
                "dict_region": dictionary,
                "dict_count": dict_count,
                "anchors": anchors,
                "scan_anchors": scan_anchors,
                "bits0": bits,
                "bits1": bits1,
                "scale": scale,
                "flags": flags,
                "patches": patches,
                "num_patches": num_patches,
                "base": as_i64(base),
            }
        )

    @property
    def features(self) -> int:
        """The feature bits that the ops and sources so far need, NULLS and LIST_VIEWS apart: those are the type's."""
        used = Feature(0)
        for op in self._ops:
            used |= _KIND_FEATURES.get(op["kind"] or 0, Feature(0))
            if op["dict_region"] != NO_REGION:
                used |= Feature.DICTIONARY
            if op["dict_region"] == SHARED_REGION:
                used |= Feature.SHARED_DICTIONARIES
            if (op["out_kind"] or 0) >= OutKind.F32_FROM_F16:
                used |= Feature.QUANTISED
            elif (op["out_kind"] or 0) >= OutKind.F32_DECIMAL:
                used |= Feature.DECIMAL_FLOATS
            if op["kind"] == OpKind.COPY and op["flags"]:
                used |= Feature.COMPRESSED_BYTES
            if op["scan"] != Scan.NONE and op["out_kind"] != OutKind.VIEW:
                used |= Feature.DELTA
        if any(source[0] == SourceKind.PACKED_EXCEPTIONS for source in self._sources):
            used |= Feature.EXCEPTIONS
        return int(used)

    def finish(self, num_rows: int) -> Array:
        """The chunk's bytes, uint8.

        Raises:
            ValueError: The chunk would pass 4 GiB, which its offsets cannot address.
        """
        tables = CHUNK_HEADER.itemsize + len(self._regions) * REGION.itemsize + len(self._ops) * OP.itemsize + len(self._sources) * SOURCE.itemsize
        data_start = round_up(tables, STREAM_ALIGNMENT)
        num_bytes = data_start + self._data_bytes
        if num_bytes >= 1 << 32:
            raise ValueError(f"a chunk of {num_bytes:,} bytes passes the limit of 4 GiB: write smaller blocks (WriteOptions.block_bytes)")
        chunk = np.zeros(num_bytes, np.uint8)
        header = np.zeros(1, CHUNK_HEADER)
        flags = CHUNK_USES_SHARED if any(op["dict_region"] == SHARED_REGION for op in self._ops) else 0
        levels = 1 + max((op["level"] or 0 for op in self._ops), default=0)
        header[0] = (num_rows, len(self._regions), len(self._ops), len(self._sources), levels, flags, num_bytes, self._arena_bytes, 0)
        regions = np.array(self._regions, REGION)
        ops = np.zeros(len(self._ops), OP)
        for record, op in zip(ops, self._ops, strict=True):
            for name, value in op.items():
                record[name] = 0 if value is None else value + data_start if name in _OP_STREAMS else value
        sources = np.array(
            [
                (kind, 0, region, 0 if data is None else data + data_start, 0 if meta is None else meta + data_start, value, count, num_words)
                for kind, region, data, meta, value, count, num_words in self._sources
            ],
            SOURCE,
        )
        position = 0
        for table in (header, regions, ops, sources):
            chunk[position : position + table.nbytes] = table.view(np.uint8)
            position += table.nbytes
        for offset, raw in self._streams:
            chunk[data_start + offset : data_start + offset + raw.nbytes] = raw
        return chunk
