"""The NumPy executor of a decode program: the meaning of the op table. Every other executor is held equal to it, bit for bit.

Works op by op and checks what a program cannot: packed vectors, ranks and dictionary codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.decode.inflate import inflate
from loader.decode.program import NO_OFFSET, Program
from loader.encodings.bitpack import num_vectors, unpack
from loader.encodings.bits import rank_anchors, unpack_bits
from loader.encodings.split import class_anchors
from loader.errors import CorruptSegmentError
from loader.segment.layout import OUT_ITEM_BYTES, PATCH_F32, PATCH_F64, VECTOR, VECTOR_META, OpKind, OutKind, Scan, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]
_STORED: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


def execute(program: Program, slab: Array, arena: Array) -> None:
    """Run all ops of a program.

    Args:
        program: From `build` on this slab.
        slab: uint8, the encoded chunks.
        arena: uint8, at least `program.arena_bytes`, written in place.

    Raises:
        CorruptSegmentError: A stream holds what its op cannot use; names the chunk by its position in the request.
    """
    for op in inflate(program, slab, arena).ops:
        try:
            _run(op, program.sources, slab, arena)
        except CorruptSegmentError as error:
            raise CorruptSegmentError(f"chunk {int(op['chunk'])} of the request is corrupt: {error}") from None


def _words(slab: Array, offset: int, count: int) -> Array:
    return slab[offset : offset + 4 * count].view("<u4")


def _stream(sources: Array, index: int, slab: Array, arena: Array) -> Array:
    """All values of a source, uint32."""
    source = sources[index]
    count, kind, data = int(source["count"]), int(source["kind"]), int(source["data"])
    if kind == SourceKind.CONSTANT:
        return np.full(count, source["value"], np.uint32)
    if not count:
        return np.zeros(0, np.uint32)
    if kind in (SourceKind.PACKED, SourceKind.PACKED_EXCEPTIONS):
        at = int(source["meta"])
        meta = slab[at : at + num_vectors(count) * VECTOR_META.itemsize].view(VECTOR_META)
        return unpack(_words(slab, data, int(source["num_words"])), meta, count, exceptions=kind == SourceKind.PACKED_EXCEPTIONS)
    if kind == SourceKind.PLAIN:
        return arena[data : data + 4 * count].view("<u4")
    return unpack_bits(_words(slab, data, num_vectors(count) * (VECTOR // 32)), count).astype(np.uint32)


def _bits(op: Any, slab: Array) -> Array:
    """The op's bitmap, its rank anchors checked."""
    count = int(op["count"])
    words = _words(slab, int(op["bits0"]), num_vectors(count) * (VECTOR // 32))
    if not np.array_equal(rank_anchors(words), _words(slab, int(op["anchors"]), num_vectors(count))):
        raise CorruptSegmentError("rank anchors do not count the bits before them")
    if count % 32 and int(words[count // 32]) >> (count % 32) or words[-(-count // 32) :].any():
        raise CorruptSegmentError("a bitmap has bits past its end")
    return unpack_bits(words, count)


def _plane(op: Any, slab: Array, name: str) -> Array:
    """One selector plane of a split, as 0 and 1."""
    count = int(op["count"])
    words = _words(slab, int(op[name]), num_vectors(count) * (VECTOR // 32))
    if count % 32 and int(words[count // 32]) >> (count % 32) or words[-(-count // 32) :].any():
        raise CorruptSegmentError("a bitmap has bits past its end")
    return unpack_bits(words, count).view(np.uint8)


def _split(op: Any, sources: Array, slab: Array, arena: Array) -> Array:
    """x(i) of a class split: each class has its own stream, two planes say whose turn it is."""
    num_classes, first = int(op["num_sources"]), int(op["first_source"])
    classes = _plane(op, slab, "bits0")
    if num_classes > 2:
        classes = classes | (_plane(op, slab, "bits1") << 1)
    anchors = _words(slab, int(op["anchors"]), num_vectors(classes.size) * (num_classes - 1))
    if not np.array_equal(class_anchors(classes, num_classes), anchors):
        raise CorruptSegmentError("rank anchors do not count the classes before them")
    values = np.empty(classes.size, np.uint32)
    for number in range(max(num_classes, int(classes.max()) + 1)):
        chosen = np.flatnonzero(classes == number)
        if number >= num_classes or chosen.size != int(sources[first + number]["count"]):
            raise CorruptSegmentError("a class has another number of values than its planes say")
        values[chosen] = _stream(sources, first + number, slab, arena)
    return values


def _runs(op: Any, values: Array, slab: Array) -> Array:
    """Each run's value, as often as the run is long."""
    mask = _bits(op, slab)
    if not mask[0]:
        raise CorruptSegmentError("the first run does not start at the first item")
    if int(np.count_nonzero(mask)) != values.size:
        raise CorruptSegmentError("a stream has another number of values than its bitmap has set bits")
    return np.asarray(values[np.cumsum(mask) - 1])


def _input(op: Any, sources: Array, slab: Array, arena: Array) -> tuple[Array, Array | None]:
    """x(i), uint32 or uint64, and for NULLS the bitmap (x then has present values only)."""
    first = int(op["first_source"])
    if op["kind"] == OpKind.RANK:
        ranks = np.cumsum(_bits(op, slab), dtype=np.uint32) - np.uint32(1)
        return ranks, None
    if op["kind"] == OpKind.SPLIT:
        return _split(op, sources, slab, arena), None
    values = _stream(sources, first, slab, arena)
    if op["num_sources"] == 2 and op["scan"] == Scan.NONE:
        high = _stream(sources, first + 1, slab, arena)
        if high.size != values.size:
            raise CorruptSegmentError("the low and the high halves of a stream differ in number")
        values = values.astype(np.uint64) + (high.astype(np.uint64) << np.uint64(32))
    if op["kind"] == OpKind.RUNS:
        return _runs(op, values, slab), None
    if op["kind"] != OpKind.NULLS:
        return values, None
    mask = _bits(op, slab)
    if int(np.count_nonzero(mask)) != values.size:
        raise CorruptSegmentError("a stream has another number of values than its bitmap has set bits")
    return values, mask


def _scan(op: Any, values: Array, slab: Array) -> Array:
    """Running sums modulo 2^32 inside each vector, from its anchor."""
    vectors = num_vectors(values.size)
    padded = np.zeros(vectors * VECTOR, np.uint32)
    padded[: values.size] = values
    rows = padded.reshape(vectors, VECTOR)
    if op["scan"] == Scan.ZIGZAG_SUM:
        rows = (rows >> np.uint32(1)) ^ (np.uint32(0) - (rows & np.uint32(1)))
    sums = np.cumsum(rows, axis=1, dtype=np.uint32)
    if op["scan"] == Scan.EXCLUSIVE_SUM:
        sums -= rows
    sums += _words(slab, int(op["scan_anchors"]), vectors)[:, None]
    return sums.reshape(-1)[: values.size]


def _run(op: Any, sources: Array, slab: Array, arena: Array) -> None:
    count, size = int(op["count"]), int(OUT_ITEM_BYTES[op["out_kind"]])
    if not count:
        return
    stored = _STORED[size]
    out = arena[int(op["out"]) : int(op["out"]) + count * size].view(stored)
    if op["kind"] == OpKind.COPY:
        data = int(sources[int(op["first_source"])]["data"])
        out[:] = slab[data : data + count * size].view(stored)
        return
    values, mask = _input(op, sources, slab, arena)
    if int(op["dict"]) != NO_OFFSET:
        items = _look_up(op, values, arena, stored)
    elif op["out_kind"] >= OutKind.F32_FROM_F16:
        items = quantised(op, values)
    elif op["out_kind"] >= OutKind.F32_DECIMAL:
        items = decimals(op, values if op["scan"] == Scan.NONE else _scan(op, values, slab)).view(stored)
    elif op["scan"] != Scan.NONE:
        items = _store_scan(op, values, _scan(op, values, slab), sources, slab, arena).astype(stored)
    else:
        items = (values.astype(np.uint64) + np.uint64(int(op["base"]) % (1 << 64))).astype(stored)
    if mask is None:
        out[:] = items
    else:
        out[:] = 0
        out[mask] = items
    if op["num_patches"]:
        _patch(op, slab, out)


def decimals(op: Any, values: Array) -> Array:
    """The integers divided by the scale, correctly rounded."""
    exact = values.astype(np.uint64) + np.uint64(int(op["base"]) % (1 << 64))
    if op["out_kind"] == OutKind.F64_DECIMAL:
        return exact.view(np.int64).astype(np.float64) / np.float64(op["scale"])
    return exact.astype(np.uint32).view(np.int32).astype(np.float32) / np.float32(op["scale"])


def quantised(op: Any, values: Array) -> Array:
    """float32 bits of float16, bfloat16 or scaled int8 values."""
    bits = (values.astype(np.uint64) + np.uint64(int(op["base"]) % (1 << 64))).astype(np.uint32)
    if op["out_kind"] == OutKind.F32_FROM_BF16:
        return bits << np.uint32(16)
    if op["out_kind"] == OutKind.F32_SCALED_I8:
        with np.errstate(over="ignore"):
            return np.asarray((bits.astype(np.uint8).view(np.int8).astype(np.float32) * op["scale"].view(np.float32)).view(np.uint32))
    half = bits.astype(np.uint16)
    # a NaN keeps its bits: conversions may change them
    nan = ((half & np.uint16(0x7FFF)) > 0x7C00).astype(np.bool_)
    wide = half.astype(np.uint32)
    kept = ((wide & np.uint32(0x8000)) << np.uint32(16)) | np.uint32(0x7F80_0000) | ((wide & np.uint32(0x3FF)) << np.uint32(13))
    with np.errstate(invalid="ignore"):
        return np.where(nan, kept, half.view(np.float16).astype(np.float32).view(np.uint32))


def _patch(op: Any, slab: Array, out: Array) -> None:
    """The items that no decimal gives, bit by bit."""
    record = PATCH_F64 if op["out_kind"] == OutKind.F64_DECIMAL else PATCH_F32
    patches = slab[int(op["patches"]) : int(op["patches"]) + int(op["num_patches"]) * record.itemsize].view(record)
    at = patches["position"].astype(np.int64)
    if (np.diff(at) <= 0).any() or int(at[-1]) >= out.size:
        raise CorruptSegmentError("patches are not in order or lie past the items")
    out[at] = patches["bits"]


def _look_up(op: Any, codes: Array, arena: Array, stored: np.dtype[Any]) -> Array:
    entries = int(op["dict_count"])
    if codes.size and int(codes.max()) >= entries:
        raise CorruptSegmentError(f"code {int(codes.max())} has no entry in a dictionary of {entries}")
    at = int(op["dict"])
    items = arena[at : at + entries * stored.itemsize].view(stored)[codes]
    if op["out_kind"] == OutKind.VIEW:
        items = _shift(items, op)
    return items


def _shift(views: Array, op: Any) -> Array:
    """Views with `view_base` added to their starts, modulo 2^32."""
    base = np.uint64(int(op["view_base"]))
    low = np.uint64(0xFFFF_FFFF)
    return (views & ~low) | (((views & low) + base) & low)


def _store_scan(op: Any, values: Array, sums: Array, sources: Array, slab: Array, arena: Array) -> Array:
    if op["out_kind"] != OutKind.VIEW:
        return sums.astype(np.uint64) + np.uint64(int(op["base"]) % (1 << 64))
    lengths = values if op["scan"] == Scan.EXCLUSIVE_SUM else _stream(sources, int(op["first_source"]) + 1, slab, arena)
    return _shift(sums.astype(np.uint64) | (lengths.astype(np.uint64) << np.uint64(32)), op)
