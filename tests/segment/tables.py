"""Arrow columns for round trips: every type, shape of data and kind of null, from a seed; and a comparison of bit patterns."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st

from loader.encodings.shred import as_lists

Array = np.ndarray[Any, np.dtype[Any]]

LEAVES = [
    pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
    pa.timestamp("us"), pa.timestamp("ns", tz="Europe/Berlin"), pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.duration("s"),
]  # fmt: skip
ODD = [pa.null(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.int64())]
BYTES = [pa.string(), pa.binary(), pa.large_string(), pa.large_binary(), pa.string_view(), pa.binary_view(), pa.binary(3)]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]
VIEWS = [pa.string_view(), pa.binary_view()]
DAY_MS = 86_400_000
SHAPES = ["constant", "few", "narrow", "any", "extreme"]
ROW_COUNTS = [0, 1, 2, 31, 33, 700, 1023, 1024, 1025, 2500]


@dataclasses.dataclass
class Maker:
    """Makes arrays of any type that segments store."""

    rng: np.random.Generator
    shape: str
    null_share: float

    def mask(self, count: int) -> Array | None:
        return self.rng.random(count) < self.null_share if self.null_share else None

    def patterns(self, count: int, num_bytes: int) -> Array:
        """`count` items of unsigned integers, by shape."""
        bits = 8 * num_bytes
        unsigned = np.dtype(f"<u{num_bytes}")
        full = self.rng.integers(0, 1 << min(bits, 63), count, dtype=np.uint64) << np.uint64(1 if bits == 64 else 0)
        if self.shape == "constant":
            return np.full(count, full[0] if count else 0).astype(unsigned)
        if self.shape == "few":
            return self.rng.choice(full[:5], count).astype(unsigned) if count else full.astype(unsigned)
        if self.shape == "narrow":
            return (self.rng.integers(0, 100, count).astype(np.uint64) + full[:1]).astype(unsigned) if count else full.astype(unsigned)
        if self.shape == "extreme":
            special = np.array([0, 1, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1, (1 << bits) - (1 << bits // 2)], np.uint64)
            return np.where(self.rng.random(count) < 0.5, self.rng.choice(special, count), full).astype(unsigned)
        return full.astype(unsigned)

    def array(self, kind: pa.DataType, count: int) -> pa.Array:
        if pa.types.is_fixed_size_list(kind):
            values = self.array(kind.value_type, count * kind.list_size)
            mask = self.mask(count)
            return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=None if mask is None else pa.array(mask))
        if pa.types.is_null(kind):
            return pa.nulls(count)
        if pa.types.is_dictionary(kind):
            few = Maker(self.rng, "few", self.null_share)
            return few.array(kind.value_type, count).dictionary_encode().cast(kind)
        if pa.types.is_map(kind):
            return self.maps(kind, count)
        if hasattr(kind, "value_type"):
            return self.lists(kind, count)
        if kind in BYTES:
            return self.bytes(kind, count)
        if pa.types.is_boolean(kind):
            return pa.array((self.patterns(count, 1) & 1).astype(np.bool_), mask=self.mask(count))
        values = self.patterns(count, kind.bit_width // 8)
        if pa.types.is_date64(kind):
            values = values % np.uint64(100_000) * np.uint64(DAY_MS)
        elif pa.types.is_time(kind):
            values %= np.array(DAY_MS if kind.bit_width == 32 else DAY_MS * 10**6, values.dtype)
        mask = self.mask(count)
        nulls = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
        return pa.Array.from_buffers(kind, count, [nulls, pa.py_buffer(values)])

    def lengths(self, count: int) -> Array:
        longest = min(int(self.rng.choice([1, 3, 12])), 20_000 // max(count, 1))
        return np.full(count, longest) if self.shape == "constant" else self.rng.integers(0, longest + 1, count)

    def lists(self, kind: pa.DataType, count: int) -> pa.Array:
        """Random lists; leaf items often repeat the row before or continue it."""
        lengths = self.lengths(count)
        items = self.array(kind.value_type, int(lengths.sum()))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        starts = offsets[:-1].copy()
        if self.shape in ("few", "narrow") and count:
            slides = self.rng.random(count) < 0.7
            window = min(int(self.rng.integers(1, 6)), 20_000 // count)
            at = np.cumsum(self.rng.integers(0, 3, count)) if self.shape == "narrow" else np.cumsum(slides) % max(len(items) - window, 1)
            starts = np.minimum(at, max(len(items) - window, 0))
            lengths = np.full(count, min(window, len(items)))
            if self.rng.random() < 0.5:
                starts = starts[::-1].copy()
        mask = self.mask(count)
        nulls = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
        if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            wide = np.int64 if pa.types.is_large_list_view(kind) else np.int32
            buffers = [nulls, pa.py_buffer(starts.astype(wide)), pa.py_buffer(lengths.astype(wide))]
            return pa.Array.from_buffers(kind, count, buffers, children=[items])
        taken = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths - starts, lengths)
        flat = items.take(pa.array(taken, pa.int64())) if len(items) else items
        ends = np.concatenate([[0], np.cumsum(lengths)])
        ends = ends.astype(np.int64 if pa.types.is_large_list(kind) else np.int32)
        return pa.Array.from_buffers(kind, count, [nulls, pa.py_buffer(ends)], children=[flat])

    def maps(self, kind: pa.DataType, count: int) -> pa.Array:
        """Maps whose keys repeat as lists do; in half of them the weights do, too, and in the others they change with every row."""
        keys = Maker(self.rng, self.shape, 0.0).lists(pa.list_(kind.key_type), count)
        entries = keys.flatten()
        if self.rng.random() < 0.5:
            # what a key weighs hangs on where in its row it stands
            at = np.arange(len(entries)) % 7
            weights = self.array(kind.item_type, 7).take(pa.array(at)) if kind.item_type not in VIEWS else self.array(kind.item_type, len(entries))
        else:
            weights = self.array(kind.item_type, len(entries))
        mask = self.mask(count)
        nulls = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
        pairs = pa.StructArray.from_arrays([entries, weights], fields=[kind.key_field, kind.item_field])
        return pa.Array.from_buffers(kind, count, [nulls, keys.buffers()[1]], children=[pairs])

    def bytes(self, kind: pa.DataType, count: int) -> pa.Array:
        words = ["", "a", "bc", "ü", "longer than the twelve bytes of a view", "x" * 300]
        if pa.types.is_fixed_size_binary(kind):
            values: list[Any] = [self.rng.bytes(kind.byte_width) for _ in range(count)]
        elif self.shape in ("constant", "few"):
            values = [words[index] for index in self.rng.integers(0, 1 if self.shape == "constant" else len(words), count).tolist()]
        else:
            values = [f"{number:x}" * int(number % 4) for number in self.rng.integers(0, 1 << 30, count).tolist()]
        mask = self.mask(count)
        values = [value.encode() if "binary" in str(kind) and isinstance(value, str) else value for value in values]
        return pa.array([None if mask is not None and mask[index] else value for index, value in enumerate(values)], kind)


@st.composite
def types(draw: st.DrawFn) -> pa.DataType:
    """Any type that segments store."""
    if draw(st.integers(0, 5)) == 0:
        return draw(maps())
    kind = draw(st.sampled_from(LEAVES + BYTES + ODD))
    if kind in VIEWS:
        return kind
    if kind not in BYTES + ODD and draw(st.booleans()):
        kind = pa.list_(kind, draw(st.integers(1, 5)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        kind = draw(st.sampled_from(LISTS))(kind)
    return kind


@st.composite
def maps(draw: st.DrawFn) -> pa.DataType:
    """Any map that segments store."""
    names = [kind for kind in LEAVES + BYTES if kind not in VIEWS]
    weight = draw(st.sampled_from(LEAVES + names[-3:-1]))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        weight = draw(st.sampled_from(LISTS))(weight)
    return pa.map_(draw(st.sampled_from(names)), weight)


@st.composite
def columns(draw: st.DrawFn, count: int | None = None, kind: pa.DataType | None = None) -> pa.Array:
    """A column of any type, sliced or not."""
    count = draw(st.sampled_from(ROW_COUNTS)) if count is None else count
    maker = Maker(np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from(SHAPES)), draw(st.sampled_from([0.0, 0.0, 0.1, 0.9, 1.0])))
    skipped = draw(st.sampled_from([0, 0, 3, 17]))
    array = maker.array(draw(types()) if kind is None else kind, count + skipped)
    array.validate(full=True)
    return array.slice(skipped)


def same(left: pa.Array, right: pa.Array) -> bool:
    """Whether two arrays hold the same values: nulls, empty lists and every bit of a float told apart."""
    if isinstance(left, pa.ExtensionArray):
        left, right = left.storage, right.storage
    if isinstance(left, pa.DictionaryArray) and left.type.equals(right.type):
        left, right = left.dictionary_decode(), right.dictionary_decode()
    if not left.type.equals(right.type) or len(left) != len(right) or not left.is_valid().equals(right.is_valid()):
        return False
    if pa.types.is_map(left.type):
        one, two = (as_lists(array) for array in (left, right))
        parts = zip(one.flatten().flatten(), two.flatten().flatten(), strict=True)
        return bool(pc.list_value_length(one).equals(pc.list_value_length(two))) and all(same(mine, theirs) for mine, theirs in parts)
    if hasattr(left.type, "value_type"):
        if not pa.types.is_fixed_size_list(left.type) and not pc.list_value_length(left).equals(pc.list_value_length(right)):
            return False
        return same(left.flatten(), right.flatten())
    if pa.types.is_floating(left.type):
        integer = {16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}[left.type.bit_width]
        return bool(left.drop_null().view(integer).equals(right.drop_null().view(integer)))
    return bool(left.equals(right))


def same_table(left: pa.Table, right: pa.Table) -> bool:
    """Whether two tables hold the same, schema metadata too."""
    if not left.schema.equals(right.schema, check_metadata=True) or left.num_rows != right.num_rows:
        return False
    return all(same(a.combine_chunks(), b.combine_chunks()) for a, b in zip(left.columns, right.columns, strict=True))
