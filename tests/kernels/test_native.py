"""Gathers, checksums and packing against NumPy; records, loading, and the checks of arguments."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.decode.program import PROGRAM_OP, PROGRAM_SOURCE
from loader.encodings import bitpack
from loader.errors import CorruptSegmentError
from loader.kernels import build, native
from loader.kernels.native_lists import ListPool, ListTable
from loader.segment import layout

ROOT = pathlib.Path(__file__).parents[2]


def test_records_of_cpp_equal_those_of_python(library: native.NativeLibrary) -> None:
    lines = library.records().splitlines()
    assert lines[0] == f"VECTOR={layout.VECTOR} PADDING_BYTES={layout.PADDING_BYTES}"
    for line, dtype in zip(lines[1:], (layout.VECTOR_META, PROGRAM_OP, PROGRAM_SOURCE), strict=True):
        fields = " ".join(f"{name}={dtype.fields[name][1]}" for name in dtype.names or ())
        assert line.split(":", 1)[1] == f"{dtype.itemsize} {fields}"
    assert (layout.VECTOR_META, PROGRAM_OP.itemsize, PROGRAM_SOURCE.itemsize) == (native.VECTOR_META, native.OP_BYTES, native.SOURCE_BYTES)
    assert (layout.PADDING_BYTES, layout.VECTOR) == (native.PADDING_BYTES, native.VECTOR)


@given(count=st.integers(0, 5000), width=st.integers(0, 32), seed=st.integers(0, 1000))
def test_packing_equals_numpy_bit_for_bit(library: native.NativeLibrary, count: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.integers(0, 1 << width, count, dtype=np.uint64) >> np.uint64(rng.integers(0, width + 1))).astype(np.uint32)
    words, meta = bitpack.pack_reference(values, bitpack.plan(values))
    for portable in (False, True):
        library.force_portable(portable)
        got_words, got_meta = library.pack(values)
        np.testing.assert_array_equal(got_words, words)
        assert got_meta.tobytes() == meta.tobytes()
    library.force_portable(False)
    np.testing.assert_array_equal(bitpack.unpack(got_words, got_meta, count), values)


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 255, 767, 768, 769, 5000, 12288, 12289, 100_003])
def test_crc32c_equals_google_and_continues_from_a_seed(each_library: native.NativeLibrary, num_bytes: int) -> None:
    data = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8).tobytes()
    want = google_crc32c.value(data)
    assert each_library.crc32c(data) == want
    assert each_library.crc32c(memoryview(data)) == want
    for cut in (0, num_bytes // 3, num_bytes):
        assert each_library.crc32c(data[cut:], each_library.crc32c(data[:cut])) == want
    if num_bytes > 9:
        assert each_library.crc32c(np.frombuffer(data, np.uint8)[3:]) == google_crc32c.value(data[3:])


@given(item_bytes=st.sampled_from([1, 2, 4, 8]), wide_rows=st.booleans(), num_rows=st.sampled_from([0, 1, 31, 1024, 1025, 40_000]), seed=st.integers(0, 99))
def test_gather_fixed_equals_numpy(library: native.NativeLibrary, item_bytes: int, wide_rows: bool, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, 777 * item_bytes, dtype=np.uint8).view(f"<u{item_bytes}")
    rows = rng.integers(0, values.size, num_rows).astype(np.int64 if wide_rows else np.uint32)
    for portable in (False, True):
        library.force_portable(portable)
        out = np.full(num_rows, 7, values.dtype)
        library.gather_fixed(values, rows, out, threads=3)
        np.testing.assert_array_equal(out, values[rows])
    library.force_portable(False)


@pytest.mark.parametrize("bad", [777, -1, 1 << 40])
def test_gather_fixed_names_the_first_row_outside(each_library: native.NativeLibrary, bad: int) -> None:
    rows = np.zeros(50_000, np.int64)
    rows[[31_234, 31_240, 49_999]] = bad
    with pytest.raises(ValueError, match=rf"rows\[31234\] = {bad} lies outside of the column's 777 rows"):
        each_library.gather_fixed(np.zeros(777, np.float32), rows, np.empty(rows.size, np.float32), threads=3)
    with pytest.raises(ValueError, match="outside of the column's 0 rows"):
        each_library.gather_fixed(np.zeros(0, np.uint8), rows[:1], np.empty(1, np.uint8))


def random_lists(seed: int, num_lists: int, pool_items: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, pool_items + 1, num_lists)
    lengths = np.minimum(rng.integers(0, 40, num_lists), pool_items - starts)
    return (starts | lengths << 32).astype(np.uint64)


@given(pool_bytes=st.sampled_from([1, 2, 4, 8]), grow=st.integers(0, 3), num_lists=st.sampled_from([0, 1, 100, 9000]), seed=st.integers(0, 99))
def test_gather_lists_equals_numpy_with_widening(library: native.NativeLibrary, pool_bytes: int, grow: int, num_lists: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, 500 * pool_bytes, dtype=np.uint8).view(f"<u{pool_bytes}")
    out_type, base, views = np.dtype(f"<u{min(pool_bytes << grow, 8)}"), int(rng.integers(-(1 << 63), 1 << 63)), random_lists(seed, num_lists, pool.size)
    starts, lengths = (views & np.uint64(0xFFFF_FFFF)).astype(np.int64), (views >> np.uint64(32)).astype(np.int64)
    offsets = library.list_offsets(views)
    np.testing.assert_array_equal(offsets, np.concatenate([[0], np.cumsum(lengths)]))
    positions = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    want = (pool[positions].astype(np.uint64) + np.uint64(base % (1 << 64))).astype(out_type)
    for portable in (False, True):
        library.force_portable(portable)
        out = np.full(int(offsets[-1]), 7, out_type)
        library.gather_lists(pool, base, views, out, threads=3)
        np.testing.assert_array_equal(out, want)
    library.force_portable(False)


@pytest.mark.parametrize("num_lists", [100, 9000])
def test_gather_lists_refuses_views_outside_the_pool_and_short_outputs(each_library: native.NativeLibrary, num_lists: int) -> None:
    views = random_lists(1, num_lists, 500)
    total, pool = int(each_library.list_offsets(views)[-1]), np.zeros(500, np.uint32)
    with pytest.raises(ValueError, match="has room for"):
        each_library.gather_lists(pool, 0, views, np.empty(total - 1, np.uint32), threads=3)
    views[num_lists - 7] = 499 | 2 << 32
    out = np.empty(int(each_library.list_offsets(views)[-1]), np.uint32)
    with pytest.raises(CorruptSegmentError, match=f"view {num_lists - 7} reaches from item 499 to 501 of a pool of 500 items"):
        each_library.gather_lists(pool, 0, views, out, threads=3)
    views[3] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
    with pytest.raises(CorruptSegmentError, match="view 3 reaches"):
        each_library.gather_lists(pool, 0, views, out, threads=3)


@given(seed=st.integers(0, 99), num_rows=st.sampled_from([0, 1, 300]))
def test_ranges_end_to_end_equal_numpy(library: native.NativeLibrary, seed: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, first = rng.integers(0, 6, num_rows), rng.integers(0, 495, num_rows)
    positions = np.concatenate([np.arange(0), *(np.arange(start, start + length) for start, length in zip(first, lengths, strict=True))])
    np.testing.assert_array_equal(library.ranges(first, lengths), positions)


def test_negative_lengths_are_refused(library: native.NativeLibrary) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        library.ranges(np.array([0, 7], np.int64), np.array([3, -4], np.int64))


def test_arguments_are_checked_before_the_call(library: native.NativeLibrary) -> None:
    values, rows, out = np.zeros(10, np.uint32), np.zeros(4, np.uint32), np.zeros(4, np.uint32)
    frozen = np.zeros(4, np.uint32)
    frozen.flags.writeable = False
    for arguments, message in (
        ((values[::2], rows, out), "values must be contiguous"),
        ((values, rows.astype(np.int32), out), "rows must have dtype <u4 or <i8, got <i4"),
        ((values, rows, out[:3]), "out must hold 4 items of 4 bytes"),
        ((values, rows, frozen), "out is read-only"),
        ((values.view(np.uint8)[1:37].view(np.uint32), rows, out), "not a multiple of 4 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            library.gather_fixed(*arguments)
    with pytest.raises(ValueError, match="narrower than the pool's 4"):
        library.gather_lists(values, 0, np.zeros(1, np.uint64), np.zeros(0, np.uint16))
    with pytest.raises(ValueError, match="fewer than the 8192 of padding"):
        library.decode(np.zeros(100, np.uint8), np.zeros(9000, np.uint8), np.zeros(0, PROGRAM_OP), np.zeros(0, PROGRAM_SOURCE))
    with pytest.raises(ValueError, match="PROGRAM_OP"):
        library.decode(np.zeros(9000, np.uint8), np.zeros(9000, np.uint8), np.zeros(1, np.uint32), np.zeros(0, PROGRAM_SOURCE))


def test_loading_can_be_forbidden_or_pointed_elsewhere_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    caplog.set_level(logging.INFO)
    for setting, found, message in (
        ("0", False, "HEADRACE_NATIVE=0"),
        (str(library_path), True, ""),
        (str(tmp_path / "none.so"), False, "no native library at"),
    ):
        native._load.cache_clear()
        caplog.clear()
        monkeypatch.setenv("HEADRACE_NATIVE", setting)
        assert [native.load() is not None for _ in range(3)] == [found] * 3
        assert [message in record.message for record in caplog.records] == [True] * (not found)
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setenv("HEADRACE_NATIVE", str(broken))
    assert native.load() is None
    assert "does not load" in caplog.text


def test_a_library_of_other_sources_is_not_called(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library_path: pathlib.Path) -> None:
    """Arguments may have changed since it was compiled, as after a pull without building again."""
    monkeypatch.setenv("HEADRACE_NATIVE", str(library_path))
    monkeypatch.setattr(build, "source_hash", lambda: "0" * 16)
    native._load.cache_clear()
    assert native.load() is None
    assert "compiled from other sources" in caplog.text and native.COMPILE in caplog.text
    native._load.cache_clear()


def test_native_imports_nothing_but_numpy_and_errors() -> None:
    script = "import sys, loader.kernels.native; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    modules = set(result.stdout.split())
    assert {name for name in modules if name.startswith("loader")} == {
        "loader",
        "loader.errors",
        "loader.kernels",
        "loader.kernels.arrays",
        "loader.kernels.build",
        "loader.kernels.native",
        "loader.kernels.native_columns",
        "loader.kernels.native_encoder",
        "loader.kernels.native_keys",
        "loader.kernels.native_lists",
        "loader.kernels.native_pages",
        "loader.kernels.native_program",
        "loader.kernels.native_rows",
        "loader.kernels.native_segments",
    }
    assert not modules & {"pyarrow", "torch", "ray", "cupy", "sqlalchemy"}


def test_build_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="install g\\+\\+"):
        build.ensure(tmp_path)
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(build.BuildError, match="could not compile"):
        build.compile_library(tmp_path / "library.so")


def list_pools(rng: np.random.Generator, num_lists: int) -> list[ListPool]:
    columns = []
    for pool_type, dtype in (("u1", "<i8"), ("<u4", "<i8"), ("<u4", "<u4"), ("<u8", "<f8"), ("<u2", "<i4"), ("i1", "i1")):
        pool = rng.integers(0, 100, int(rng.integers(1, 3000))).astype(pool_type)
        lengths = rng.integers(0, min(pool.size, 90) + 1, num_lists)
        starts = rng.integers(0, pool.size - lengths + 1)
        narrow = np.dtype(dtype).itemsize > pool.itemsize
        views = (starts | lengths << 32).astype(np.uint64)
        columns.append(ListPool(pool=pool, base=int(rng.integers(-(1 << 40), 1 << 40)) if narrow else 0, views=views, dtype=np.dtype(dtype)))
    return columns


@given(seed=st.integers(0, 999), threads=st.sampled_from([1, 3]))
def test_many_list_columns_in_one_call_equal_one_by_one(library: native.NativeLibrary, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    num_lists = int(rng.integers(0, 9000))
    table = ListTable(list_pools(rng, num_lists))
    first = int(rng.integers(0, num_lists + 1))
    rows = library.measure_lists(table, first, int(rng.integers(0, num_lists - first + 1)))
    memory = np.empty(rows.num_bytes, np.uint8)
    library.lay_lists(rows, memory, threads)
    offsets = rows.offsets(memory)
    for number, column in enumerate(table.columns):
        views = column.views[first : first + rows.num_rows]
        np.testing.assert_array_equal(offsets[number], library.list_offsets(views))
        want = np.empty(int(offsets[number, -1]), column.dtype)
        library.gather_lists(column.pool, column.base, views, want)
        assert rows.values(memory, number, number + 1).tobytes() == want.tobytes()


def test_list_columns_of_one_dtype_lie_end_to_end(library: native.NativeLibrary) -> None:
    table = ListTable(list_pools(np.random.default_rng(1), 300))
    rows = library.measure_lists(table, 0, 300)
    memory = np.empty(rows.num_bytes, np.uint8)
    library.lay_lists(rows, memory)
    assert [(dtype.str, first, stop) for dtype, first, stop in table.groups][0] == ("<i8", 0, 2)
    both = np.concatenate([rows.values(memory, 0, 1), rows.values(memory, 1, 2)])
    np.testing.assert_array_equal(rows.values(memory, 0, 2), both)


def test_many_list_columns_name_the_one_that_leaves_its_pool(library: native.NativeLibrary) -> None:
    good = ListPool(pool=np.zeros(9, np.uint32), base=0, views=np.array([2 << 32, 0], np.uint64), dtype=np.dtype("<i8"))
    bad = ListPool(pool=np.zeros(9, np.uint32), base=0, views=np.array([2 << 32, 8 | 2 << 32], np.uint64), dtype=np.dtype("<i8"))
    for first, num_rows in ((0, 2), (1, 1)):
        rows = library.measure_lists(ListTable([good, bad]), first, num_rows)
        with pytest.raises(CorruptSegmentError, match="list column 1 of the request is corrupt: list 1 reaches outside"):
            library.lay_lists(rows, np.empty(rows.num_bytes, np.uint8))


def test_list_columns_that_do_not_fit_are_refused(library: native.NativeLibrary) -> None:
    columns = list_pools(np.random.default_rng(1), 50)
    rows = library.measure_lists(ListTable(columns), 0, 20)
    with pytest.raises(ValueError, match="the rows take"):
        library.lay_lists(rows, np.empty(rows.num_bytes - 1, np.uint8))
    with pytest.raises(ValueError, match="rows 40 to 60 of 50"):
        library.measure_lists(rows.table, 40, 20)
    with pytest.raises(ValueError, match="50 and 3 lists"):
        ListTable([columns[0], dataclasses.replace(columns[0], views=columns[0].views[:3])])
    with pytest.raises(ValueError, match="narrower"):
        ListTable([dataclasses.replace(columns[0], dtype=np.dtype("u1"), pool=columns[1].pool)])


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_range_with_another_checksum_is_found(library: native.NativeLibrary, threads: int) -> None:
    data = np.random.default_rng(2).integers(0, 256, 9_000_000, dtype=np.uint8)
    starts, sizes = np.array([0, 64, 4096, 0, 9_000_000]), np.array([64, 4_000_000, 8_000_000, 0, 0])
    sums = np.array([library.crc32c(data[start : start + size]) for start, size in zip(starts, sizes, strict=True)], np.uint32)
    assert library.first_mismatch(data, starts, sizes, sums, threads) is None
    sums[[1, 4]] ^= 1
    assert library.first_mismatch(data, starts, sizes, sums, threads) == 1
    with pytest.raises(ValueError, match="do not fit"):
        library.first_mismatch(data, starts, sizes + 9_000_000, sums)
