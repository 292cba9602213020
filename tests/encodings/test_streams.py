"""Every stream, whether the chooser would take it or not, decodes to what went in: alone, under nulls, as codes, steps, runs and decimals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.decode import cpu, reference
from loader.decode.program import build
from loader.encodings import bitpack, decimals, runs, split
from loader.encodings.bits import Bitmap
from loader.encodings.builder import ChunkBuilder
from loader.encodings.delta import Delta, differences, zigzag
from loader.encodings.dictionary import by_frequency, distinct
from loader.encodings.runs import Runs
from loader.encodings.split import Split
from loader.encodings.stream import Excepted, Packed, Pair, Stream
from loader.encodings.target import Scaled, Target
from loader.segment.layout import PADDING_BYTES, OutKind, Role, Scan, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
COUNTS = st.sampled_from([1, 2, 31, 33, 1000, 1023, 1024, 1025, 3000])
SHAPES = st.sampled_from(["zipf", "full", "rising", "runs", "rare", "constant"])


def values_of(shape: str, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    made = {
        "zipf": lambda: np.minimum(rng.zipf(1.2, count), 1 << 31),
        "full": lambda: rng.choice([0, 1, (1 << 32) - 1, 1 << 31, 12345], count),
        "rising": lambda: np.cumsum(rng.integers(0, 50, count)) % (1 << 32),
        "runs": lambda: np.repeat(rng.integers(0, 1 << 32, count // 7 + 1), 7)[:count],
        "rare": lambda: np.where(rng.random(count) < 0.02, rng.integers(0, 1 << 32, count), 5),
        "constant": lambda: np.full(count, 77),
    }
    return np.asarray(made[shape]()).astype(np.uint32)


def thresholds_of(values: Array, num_classes: int) -> Array:
    found = np.unique(np.quantile(values, np.linspace(0, 1, num_classes + 1)[1:-1], method="nearest"))
    return np.resize(np.append(found, [values.max(), (1 << 32) - 1]), num_classes - 1).astype(np.uint32)


def ordered(values: Array, num_classes: int) -> Array:
    return np.sort(thresholds_of(values, num_classes))


def delta(values: Array, scan: Scan, steps: Callable[[Array], Stream]) -> Stream:
    found, anchors = differences(values)
    return Delta(anchors, steps(zigzag(found) if scan == Scan.ZIGZAG_SUM else found), scan)


def run_stream(values: Array, inner: Callable[[Array], Stream]) -> Stream:
    mask = runs.starts(values)
    return Runs(mask, inner(values[mask]))


STREAMS: dict[str, Callable[[Array], Stream]] = {
    "packed": Packed,
    "exceptions": Excepted,
    "two classes": lambda values: Split(values, ordered(values, 2)),
    "three classes": lambda values: Split(values, ordered(values, 3)),
    "four classes": lambda values: Split(values, ordered(values, 4)),
    "nested classes": lambda values: Split(values, ordered(values, 2), nested=True),
    "steps": lambda values: delta(values, Scan.SUM, Packed),
    "zigzag steps": lambda values: delta(values, Scan.ZIGZAG_SUM, Packed),
    "steps with exceptions": lambda values: delta(values, Scan.SUM, Excepted),
    "split steps": lambda values: delta(values, Scan.ZIGZAG_SUM, lambda steps: Split(steps, ordered(steps, 4))),
    "runs": lambda values: run_stream(values, Packed),
    "runs of classes": lambda values: run_stream(values, lambda inner: Split(inner, ordered(inner, 2))),
    "runs of steps": lambda values: run_stream(values, lambda inner: delta(inner, Scan.SUM, Excepted)),
}


def decode(builder: ChunkBuilder, num_rows: int, region: int, dtype: str) -> list[Array]:
    """The region by the reference and by whatever executor there is."""
    chunk = builder.finish(num_rows)
    slab = np.zeros(-(-chunk.size // 64) * 64 + PADDING_BYTES, np.uint8)
    slab[: chunk.size] = chunk
    program = build(slab, np.zeros(1, np.int64), np.array([chunk.size]))
    assert program.features & ~builder.features == 0
    found = []
    for run in (reference.execute, cpu.execute):
        arena = np.full(program.arena_bytes + PADDING_BYTES, 0xA5, np.uint8)
        run(program, slab, arena)
        start, size = int(program.regions["arena"][region]), int(program.regions["count"][region]) * np.dtype(dtype).itemsize
        found.append(arena[start : start + size].view(dtype).copy())
    return found


def target_of(item_bytes: int, count: int, seed: int, *, spread: bool) -> tuple[Target, Array]:
    """A region with or without nulls, and where its present values stand."""
    builder = ChunkBuilder()
    mask = np.ones(count, np.bool_)
    if spread:
        rng = np.random.default_rng(seed + 1)
        mask = np.zeros(2 * count + 5, np.bool_)
        mask[np.sort(rng.permutation(mask.size)[:count])] = True
    out_kind = {4: OutKind.U32, 8: OutKind.U64}[item_bytes]
    region = builder.region(Role.VALUES, depth=0, item_bytes=item_bytes, value_type=ValueType.INT64, count=mask.size)
    return Target(builder=builder, region=region, out_kind=out_kind, count=mask.size, nulls=Bitmap(builder, mask) if spread else None), mask


@pytest.mark.parametrize("name", STREAMS)
@given(shape=SHAPES, count=COUNTS, seed=st.integers(0, 1 << 20), spread=st.booleans())
@settings(max_examples=25, deadline=None)
def test_values_come_back(name: str, shape: str, count: int, seed: int, spread: bool) -> None:
    values = values_of(shape, count, seed)
    target, mask = target_of(8, count, seed, spread=spread)
    stream = STREAMS[name](values)
    assert stream.count == count
    assert stream.text
    target.read(stream, base=-3)
    expected = np.zeros(mask.size, np.int64)
    expected[mask] = values.astype(np.int64) - 3
    for found in decode(target.builder, mask.size, target.region, "<i8"):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", STREAMS)
@given(shape=SHAPES, count=COUNTS, seed=st.integers(0, 1 << 20), spread=st.booleans())
@settings(max_examples=10, deadline=None)
def test_codes_come_back(name: str, shape: str, count: int, seed: int, spread: bool) -> None:
    classes = by_frequency(*distinct(values_of(shape, count, seed)))
    target, mask = target_of(4, count, seed, spread=spread)
    entries = classes.entries
    scratch = target.builder.region(Role.SCRATCH, depth=0, item_bytes=4, value_type=ValueType.UINT8, count=entries.size)
    level = Target(builder=target.builder, region=scratch, out_kind=OutKind.U32, count=entries.size).read(delta(entries, Scan.SUM, Excepted))
    # exceptions are not for codes: the chooser never puts them there
    stream = STREAMS["packed" if name == "exceptions" else name](classes.codes)
    target.read(stream, dictionary=scratch, dict_count=entries.size, level=level + 1)
    expected = np.zeros(mask.size, np.uint32)
    expected[mask] = values_of(shape, count, seed)
    for found in decode(target.builder, mask.size, target.region, "<u4"):
        np.testing.assert_array_equal(found, expected)


@given(shape=SHAPES, count=COUNTS, seed=st.integers(0, 1 << 20), spread=st.booleans(), as_runs=st.booleans())
@settings(max_examples=40, deadline=None)
def test_wide_values_come_back(shape: str, count: int, seed: int, spread: bool, as_runs: bool) -> None:
    low, high = values_of(shape, count, seed), values_of(shape, count, seed + 7)
    values = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    target, mask = target_of(8, count, seed, spread=spread)
    if as_runs and not spread:
        starts = runs.starts(values)
        target.read(Runs(starts, Pair(Packed(low[starts]), Packed(high[starts]))))
    else:
        target.read(Pair(Split(low, ordered(low, 4)), Packed(high)))
    expected = np.zeros(mask.size, np.uint64)
    expected[mask] = values
    for found in decode(target.builder, mask.size, target.region, "<u8"):
        np.testing.assert_array_equal(found, expected)


ODD_FLOATS = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1e-45, 1e300, 0.1, 1e7 + 0.1, -2147483648.0, 2147483647.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", STREAMS)
@given(count=COUNTS, seed=st.integers(0, 1 << 20), scale=st.sampled_from([1, 10, 1000, 10**7]), spread=st.booleans())
@settings(max_examples=10, deadline=None)
def test_decimals_come_back_to_the_bit(name: str, dtype: type, count: int, seed: int, scale: int, spread: bool) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.integers(-(10**6), 10**6, count) / scale).astype(dtype)
    odd = np.flatnonzero(rng.random(count) < 0.04)
    with np.errstate(over="ignore"):
        values[odd] = rng.choice(ODD_FLOATS, odd.size).astype(dtype)
    unsigned = np.dtype(f"<u{values.dtype.itemsize}")
    integers, exact = decimals.try_scale(values, scale)
    patches = np.flatnonzero(~exact)
    integers[patches] = 0
    out_kind = OutKind.F32_DECIMAL if dtype == np.float32 else OutKind.F64_DECIMAL
    base = int(integers.min())
    stream = STREAMS[name]((integers - base).astype(np.uint32)) if int(integers.max()) - base < 1 << 32 else None
    if stream is None:
        return
    target, mask = target_of(values.dtype.itemsize, count, seed, spread=spread)
    target.read(stream, base=base, scaled=Scaled(scale=scale, positions=patches, bits=values[patches].view(unsigned), out_kind=out_kind))
    expected = np.zeros(mask.size, unsigned)
    expected[mask] = values.view(unsigned)
    for found in decode(target.builder, mask.size, target.region, unsigned.str):
        np.testing.assert_array_equal(found, expected)


@given(count=st.integers(1, 600), seed=st.integers(0, 1 << 20), exponent=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_the_scale_is_found(count: int, seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    integers = rng.integers(-999, 1000, count) * 10 + 1
    found = decimals.find((integers / 10**exponent).astype(np.float64))
    assert found is not None
    assert found.scale == 10**exponent
    assert not found.patches.size
    np.testing.assert_array_equal(found.integers, integers)


def test_what_is_no_decimal_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    assert decimals.find(rng.standard_normal(5000).astype(np.float32)) is None
    assert decimals.find(rng.standard_normal(5000)) is None
    assert decimals.find(np.full(300, np.nan)) is None
    assert decimals.find(np.full(300, -0.0)) is None


@given(shape=SHAPES, count=COUNTS, seed=st.integers(0, 1 << 20))
@settings(max_examples=60, deadline=None)
def test_exceptions_never_cost_bytes(shape: str, count: int, seed: int) -> None:
    values = values_of(shape, count, seed)
    plain, excepted = bitpack.plan(values), bitpack.plan_exceptions(values)
    assert excepted.num_bytes <= plain.num_bytes
    words, meta = bitpack.pack_reference(values, excepted)
    assert words.size * 4 + meta.nbytes == excepted.num_bytes
    np.testing.assert_array_equal(bitpack.unpack(words, meta, count, exceptions=True), values)


@pytest.mark.parametrize("num_classes", [2, 3, 4])
@given(shape=SHAPES, count=COUNTS, seed=st.integers(0, 1 << 20))
@settings(max_examples=30, deadline=None)
def test_thresholds_are_ascending_and_inside(num_classes: int, shape: str, count: int, seed: int) -> None:
    values = values_of(shape, count, seed)
    thresholds, bits = split.search(values, num_classes)
    assert thresholds.size < num_classes
    assert (np.diff(thresholds.astype(np.int64)) > 0).all()
    assert bits <= int(values.max() - values.min()).bit_length() or bits == np.inf
    assert np.isfinite(bits) or int(values.max() - values.min()) < num_classes
    if thresholds.size:
        assert int(thresholds[0]) > int(values.min())
        assert int(thresholds[-1]) <= int(values.max())


@given(shape=SHAPES, count=COUNTS, seed=st.integers(0, 1 << 20), split_codes=st.booleans())
@settings(max_examples=60, deadline=None)
def test_entries_are_sorted_within_classes_of_frequency(shape: str, count: int, seed: int, split_codes: bool) -> None:
    values = values_of(shape, count, seed)
    found = by_frequency(*distinct(values), split_codes=split_codes)
    np.testing.assert_array_equal(found.entries[found.codes], values)
    counts = np.bincount(found.codes, minlength=found.entries.size)
    parts = np.split(np.arange(found.entries.size), found.limits.astype(np.int64))
    for part in parts:
        assert (np.diff(found.entries[part].astype(np.int64)) > 0).all()
    for before, after in zip(parts[:-1], parts[1:], strict=True):
        assert counts[before].min() >= counts[after].max()
