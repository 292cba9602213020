"""Claims about windows and batches on a device, on the host runtime: the CPU's bytes under every schedule and timing, and refusals that name what is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from loader.batch.assemble import Part, assemble
from loader.batch.batch import Batch, BatchLayout
from loader.batch.device import BatchDevice, DeviceMemoryPlan
from loader.batch.device_assemble import DeviceAssembler
from loader.batch.device_columns import DeviceColumns
from loader.batch.device_window import DeviceWindowFill
from loader.batch.window import Columns, WindowFill
from loader.decode.inflate import inflated_bytes
from loader.decode.program import build
from loader.errors import CorruptSegmentError, DeviceMemoryError, SchemaError
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.native import NO_ERROR
from loader.scan.columns import LabelFill, read_columns
from loader.scan.decoded import decode
from loader.scan.encoded import BlockPatch
from loader.schema import Schema
from tests.batch.test_window import encode
from tests.train.device import assert_same

SCHEMA = pa.schema(
    [
        ("a", pa.int64()),
        ("b", pa.float32()),
        ("c", pa.uint16()),
        ("d", pa.bool_()),
        ("e", pa.float16()),
        ("label", pa.int8()),
        ("ts", pa.timestamp("us")),
        ("trio", pa.list_(pa.float32(), 3)),
        ("bytes", pa.list_(pa.uint8(), 2)),
        ("ids", pa.list_(pa.int64())),
        ("short", pa.list_(pa.int16())),
        ("weights", pa.list_(pa.float32())),
        ("map", pa.map_(pa.int64(), pa.float32())),
    ]
)
READ = read_columns(Schema.from_arrow(SCHEMA), SCHEMA.names)
LISTS = ("ids", "short", "weights")
SCHEDULES = ["forward", "reverse", "shuffled", "greedy", "greedy reverse", "greedy shuffled"]
MEMORY = DeviceMemoryPlan(slab_bytes=4 << 20, heap_bytes=24 << 20, pinned_bytes=4 << 20, table_bytes=4 << 20)


def some_nulls(rng, values, share=0.2):
    return [None if hole else value for value, hole in zip(values, rng.random(len(values)) < share, strict=True)]


def block_table(rng, count, nulls=0.2):
    """Rows of every type; histories slide and repeat, some lists are long, most are not."""
    start = int(rng.integers(0, 2**40))
    lengths = rng.integers(0, 6, count)
    lengths[rng.random(count) < 0.02] = 700
    history = [list(range(start + i // 4, start + i // 4 + int(n))) for i, n in enumerate(lengths)]
    columns = {
        "a": rng.integers(-(2**62), 2**62, count).tolist(),
        "b": rng.random(count).astype(np.float32).tolist(),
        "c": rng.integers(0, 2**16, count).tolist(),
        "d": (rng.random(count) < 0.5).tolist(),
        "e": rng.random(count).astype(np.float16).tolist(),
        "label": rng.integers(0, 2, count).tolist(),
        "ts": rng.integers(0, 1000, count).tolist(),
        "trio": rng.random((count, 3)).tolist(),
        "bytes": rng.integers(0, 256, (count, 2)).tolist(),
        "ids": history,
        "short": [[int(x)] * int(x % 4) for x in rng.integers(0, 5, count)],
        "weights": [list(map(float, range(int(n)))) for n in rng.integers(0, 4, count)],
        "map": [[(int(k), float(k) / 2) for k in range(int(n))] for n in rng.integers(0, 4, count)],
    }
    return pa.table({name: some_nulls(rng, values, nulls) for name, values in columns.items()}, schema=SCHEMA)


def without(block, absent):
    """The block as of a segment that is older than some columns."""
    offsets = block.chunk_offsets.copy()
    offsets[[SCHEMA.get_field_index(name) for name in absent]] = -1
    return dataclasses.replace(block, chunk_offsets=offsets)


def random_patches(rng, count):
    """Patches of some columns; lists grow, shrink and become null."""
    patches = {}
    for name in SCHEMA.names:
        if rng.random() < 0.5:
            rows = np.flatnonzero(rng.random(count) < 0.3).astype(np.uint32)
            if len(rows):
                values = block_table(rng, len(rows), nulls=0.2 if rng.random() < 0.5 else 0.0)[name].combine_chunks()
                patches[SCHEMA.get_field_index(name)] = BlockPatch(rows=rows, values=values)
    return patches


def random_window(rng, num_blocks, rows):
    """Blocks and what a window takes of them: (blocks, pieces, piece of each row, ordinal of each row)."""
    blocks, pieces, drawn = [], [], []
    for number in range(num_blocks):
        count = int(rng.integers(1, rows))
        mask = None if rng.random() < 0.5 else rng.random(count) < 0.6
        if mask is not None and not mask.any():
            mask[0] = True
        absent = [name for name in SCHEMA.names if rng.random() < 0.2]
        blocks.append(without(encode(block_table(rng, count), number, mask, random_patches(rng, count)), absent))
        chosen = count if mask is None else int(mask.sum())
        head = int(rng.integers(0, chosen))
        tail = int(rng.integers(head + 1, chosen + 1))
        pieces.append((number, head, tail))
        drawn += [(number, ordinal) for ordinal in range(head, tail)]
    order = rng.permutation(len(drawn))
    piece, ordinal = np.array(drawn, np.int64)[order].T
    return blocks, pieces, np.ascontiguousarray(piece), np.ascontiguousarray(ordinal)


def on_cpu(columns, window, label=None):
    blocks, pieces, piece, ordinal = window
    fill = WindowFill(columns, piece, ordinal, len(pieces))
    for number, head, tail in pieces:
        block = blocks[number]
        fill.add(number, block.selected_rows(), columns_of(block, columns, label), head, tail)
    return fill.finish()


def columns_of(block, columns, label):
    return decode(dataclasses.replace(block, slab=block.slab.copy()), columns.read, label=label)


def on_device(device, columns, window, label=None):
    blocks, pieces, piece, ordinal = window
    fill = DeviceWindowFill(device, columns, piece, ordinal, label)
    for number, _, _ in pieces:
        fill.add(number, blocks[number])
    return fill.finish()


def layout_of(columns):
    names = tuple(column.name for column in columns.read)
    return BatchLayout(columns=columns, names=names, block_segments=np.arange(100), block_row_starts=np.zeros(100, np.int64))


def device_batch(layout, assembler, parts, pad_to=0):
    arrays = assembler.finish(assembler.begin(parts, pad_to=pad_to))
    arrays.hand_over()
    return Batch(layout, arrays)


def check(runtime, seed, *, num_windows=2, rows=40, unique=(), label=None, batches=3):
    """Random batches of random windows, both ways."""
    rng = np.random.default_rng(seed)
    columns = Columns.of(READ, unique)
    device = BatchDevice(runtime, MEMORY)
    device_columns, layout = DeviceColumns.of(columns), layout_of(columns)
    assembler = DeviceAssembler(device, device_columns)
    windows = [random_window(rng, int(rng.integers(1, 4)), rows) for _ in range(num_windows)]
    ours = [on_device(device, device_columns, window, label) for window in windows]
    want = [on_cpu(columns, window, label) for window in windows]
    for number in range(batches):
        cuts = [(k, int(rng.integers(0, want[k].num_rows)), int(rng.integers(1, 4))) for k in rng.permutation(num_windows)[: rng.integers(1, num_windows + 1)]]
        parts = [[Part(window=side[k], start=start, stop=want[k].num_rows, step=step) for k, start, step in cuts] for side in (ours, want)]
        pad_to = sum(part.num_rows for part in parts[1]) + 5 if rng.random() < 0.5 else 0
        batch = device_batch(layout, assembler, parts[0], pad_to)
        assert_same(batch, Batch(layout, assemble(columns, parts[1], pad_to=pad_to)), (seed, number))
        assert batch.to_arrow().equals(Batch(layout, assemble(columns, parts[1], pad_to=pad_to)).to_arrow())
    assert all(window.decoding.failure() is None and int(window.report[0]) == NO_ERROR for window in ours)
    for window in ours:
        for span in window.spans:
            device.free_heap(span)
    assert device.heap_taken_bytes == 0
    runtime.finish()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timing", ["lazy", "random"])
def test_batches_are_the_cpus_whatever_the_schedule(schedule, timing):
    seed = SCHEDULES.index(schedule) * 10 + (timing == "lazy")
    check(HostRuntime(schedule=schedule, timing=timing, seed=seed), seed, unique=LISTS[: seed % 4])


@pytest.mark.parametrize("seed", range(100, 112))
def test_batches_are_the_cpus_on_random_blocks(seed):
    label = LabelFill(label=5, default=1.0, time=None if seed % 2 else 6, last_closed_time=None if seed % 2 else 500) if seed % 3 else None
    check(HostRuntime(timing="random", seed=seed), seed, unique=LISTS if seed % 4 else (), label=label)


def test_batches_of_several_tiles_with_empty_runs_and_long_lists():
    """More rows than a tile has, a list longer than a tile of values, and runs of empty lists longer than what a block stages."""
    rng = np.random.default_rng(7)
    columns = Columns.of(READ[9:11], ["short"])
    layout, counts = layout_of(columns), 2600
    table = pa.table(
        {"ids": [[]] * counts, "short": [[i % 7] * (i % 3) for i in range(counts)]}, schema=pa.schema([SCHEMA.field("ids"), SCHEMA.field("short")])
    )
    ids = [[] for _ in range(counts)]
    ids[3], ids[1500], ids[2599] = list(range(5000)), [1, 2], list(range(2048))
    table = table.set_column(0, SCHEMA.field("ids"), pa.array(ids, pa.list_(pa.int64())))
    order = rng.permutation(counts)
    window = ([encode(table, 0)], [(0, 0, counts)], np.zeros(counts, np.int64), order)
    for schedule in ("forward", "greedy shuffled"):
        runtime = HostRuntime(schedule=schedule, timing="lazy")
        device = BatchDevice(runtime, MEMORY)
        assembler = DeviceAssembler(device, DeviceColumns.of(columns))
        sides = on_device(device, DeviceColumns.of(columns), window), on_cpu(columns, window)
        parts = [[Part(window=side, start=0, stop=counts), Part(window=side, start=5, stop=90, step=3)] for side in sides]
        assert_same(device_batch(layout, assembler, parts[0], 2700), Batch(layout, assemble(columns, parts[1], pad_to=2700)), schedule)
        runtime.finish()


def wide_table(rng, count, dense, sparse):
    columns = {f"d{i}": pa.array(rng.integers(0, 9, count).astype(np.float32), mask=rng.random(count) < 0.1 if i % 5 == 0 else None) for i in range(dense)}
    return pa.table({**columns, **{f"s{i}": pa.array([[i] * int(n) for n in rng.integers(0, 3, count)], pa.list_(pa.int64())) for i in range(sparse)}})


def test_launches_do_not_grow_with_columns():
    """1,500 columns: at most 6 launches for a window's decoding, two more for patching and permuting it, and at most 6 a batch."""
    rng = np.random.default_rng(8)
    table = wide_table(rng, 20, 1200, 300)
    read = read_columns(Schema.from_arrow(table.schema), table.schema.names)
    columns = Columns.of(read, ["s0", "s1"])
    patch = BlockPatch(rows=np.array([3], np.uint32), values=pa.array([1.5], pa.float32()))
    window = ([encode(table, 0, patches={0: patch}), encode(table, 1)], [(0, 0, 20), (1, 0, 20)], *np.divmod(rng.permutation(40), 20))
    runtime = HostRuntime(timing="eager")
    device = BatchDevice(runtime, MEMORY)
    ours = on_device(device, DeviceColumns.of(columns), window)
    assert runtime.launched["decode_stage"] <= 6
    assert runtime.launches - runtime.launched["decode_stage"] == 2
    before, assembler, layout = runtime.launches, DeviceAssembler(device, DeviceColumns.of(columns)), layout_of(columns)
    batch = device_batch(layout, assembler, [Part(window=ours, start=0, stop=40)])
    assert runtime.launches - before <= 6
    assert_same(batch, Batch(layout, assemble(columns, [Part(window=on_cpu(columns, window), start=0, stop=40)])))


def test_patches_are_laid_along_the_axis_of_a_grid_that_holds_them_all(monkeypatch):
    """A window may have far more patches than the 65,535 blocks of a grid's second axis."""
    table = pa.table({f"d{i}": pa.array(np.arange(20, dtype=np.float32)) for i in range(5)})
    patch = BlockPatch(rows=np.array([3], np.uint32), values=pa.array([1.5], pa.float32()))
    columns, window = one_block(table, patches=dict.fromkeys(range(5), patch))
    device, grids = BatchDevice(HostRuntime(timing="eager"), MEMORY), {}
    launch = device.launch
    monkeypatch.setattr(device, "launch", lambda kernel, grid, arguments: (grids.update({kernel: grid}), launch(kernel, grid, arguments)))
    on_device(device, DeviceColumns.of(columns), window)
    assert grids["scatter_patches"][0] == 5


def test_more_patches_than_pinned_memory_for_tables():
    rng = np.random.default_rng(3)
    table = pa.table({f"d{i}": pa.array(rng.random(3000).astype(np.float32)) for i in range(4)})
    rows = np.arange(3000, dtype=np.uint32)
    patches = {index: BlockPatch(rows=rows, values=pa.array(rng.random(3000).astype(np.float32))) for index in range(4)}
    columns, window = one_block(table, patches=patches)
    runtime = HostRuntime(seed=3)
    device = BatchDevice(runtime, dataclasses.replace(MEMORY, table_bytes=1 << 16))
    ours, theirs = on_device(device, DeviceColumns.of(columns), window), on_cpu(columns, window)
    layout, assembler = layout_of(columns), DeviceAssembler(device, DeviceColumns.of(columns))
    batch = device_batch(layout, assembler, [Part(window=ours, start=0, stop=3000)])
    assert_same(batch, Batch(layout, assemble(columns, [Part(window=theirs, start=0, stop=3000)])))
    runtime.finish()


def test_a_patch_outside_of_its_block_is_reported_by_column():
    table = pa.table({name: pa.array(np.arange(20, dtype=np.float32)) for name in ("first", "second", "third")})
    patches = {index: BlockPatch(rows=np.array([row], np.uint32), values=pa.array([1.5], pa.float32())) for index, row in ((0, 3), (2, 20))}
    columns, window = one_block(table, patches=patches)
    device = BatchDevice(HostRuntime(timing="eager"), MEMORY)
    filled = on_device(device, DeviceColumns.of(columns), window)
    device.synchronize()
    with pytest.raises(CorruptSegmentError, match="column 'third'"):
        DeviceAssembler(device, DeviceColumns.of(columns)).raise_error(int(filled.report[0]), "a window")


def one_block(table, **options):
    columns = Columns.of(read_columns(Schema.from_arrow(table.schema), table.schema.names))
    count = len(table)
    return columns, ([encode(table, 0, **options)], [(0, 0, count)], np.zeros(count, np.int64), np.arange(count))


@pytest.mark.parametrize(
    ("values", "kind", "patch"),
    [
        ([[1], [None, 2]], pa.list_(pa.int64()), None),
        ([[1, 2], [None, 2]], pa.list_(pa.int16(), 2), None),
        ([[1], [2]], pa.list_(pa.int64()), [[None]]),
        ([[1, 2], [3, 4]], pa.list_(pa.int16(), 2), [[None, 1]]),
        ([[(1, None)], []], pa.map_(pa.int64(), pa.float32()), None),
    ],
    ids=["list", "fixed list", "patched list", "patched fixed list", "map"],
)
def test_nulls_inside_lists_are_refused_by_column(values, kind, patch):
    table = pa.table({"x": pa.array([0, 1]), "bad": pa.array(values, kind)})
    patches = {1: BlockPatch(rows=np.array([1], np.uint32), values=pa.array(patch, kind))} if patch else {}
    columns, window = one_block(table, patches=patches)
    device = BatchDevice(HostRuntime(timing="lazy"), MEMORY)
    assembler = DeviceAssembler(device, DeviceColumns.of(columns))
    with pytest.raises(SchemaError, match="'bad' has nulls inside its lists"):
        filled = on_device(device, DeviceColumns.of(columns), window)
        device.runtime.synchronize(filled.decoded)
        assembler.raise_error(int(filled.report[0]), "a window")


def test_nulls_inside_a_fixed_list_that_is_null_itself_or_patched_over_are_not_seen():
    kind = pa.list_(pa.int16(), 2)
    table = pa.table({"x": pa.array([0, 1, 2]), "pair": pa.array([[1, None], [2, 3], None], kind)})
    columns, window = one_block(table, patches={1: BlockPatch(rows=np.array([0], np.uint32), values=pa.array([[7, 8]], kind))})
    device = BatchDevice(HostRuntime(timing="lazy"), MEMORY)
    filled = on_device(device, DeviceColumns.of(columns), window)
    layout, assembler = layout_of(columns), DeviceAssembler(device, DeviceColumns.of(columns))
    assert device_batch(layout, assembler, [Part(window=filled, start=0, stop=3)]).to_arrow()["pair"].to_pylist() == [[7, 8], [2, 3], None]
    assert int(filled.report[0]) == NO_ERROR


def test_a_chunk_of_another_type_is_refused_before_anything_runs():
    table = pa.table({"x": pa.array([1.5, 2.5], pa.float32()), "y": pa.array([1, 2], pa.int64())})
    columns, (blocks, *rest) = one_block(table)
    swapped = dataclasses.replace(blocks[0], chunk_offsets=blocks[0].chunk_offsets[::-1].copy(), chunk_bytes=blocks[0].chunk_bytes[::-1].copy())
    device = BatchDevice(HostRuntime(), MEMORY)
    with pytest.raises(CorruptSegmentError, match="block 0 of the plan, column 'x': its values are of another type"):
        on_device(device, DeviceColumns.of(columns), ([swapped], *rest))


def test_a_view_outside_of_its_pool_is_reported_and_reads_nothing():
    columns, window = one_block(pa.table({"ids": pa.array([[1, 2], [3], [4, 5, 6]], pa.list_(pa.int64()))}))
    runtime = HostRuntime(timing="eager")
    device = BatchDevice(runtime, MEMORY)
    assembler = DeviceAssembler(device, DeviceColumns.of(columns))
    filled = on_device(device, DeviceColumns.of(columns), window)
    memory = device._heap.data  # the first plane is the views
    views = memory[filled.spans[1] : filled.spans[1] + 24].view(np.uint64)
    views[1] = 5 | 9 << 32
    with pytest.raises(CorruptSegmentError, match="column 'ids': a view reaches outside of its pool"):
        device_batch(layout_of(columns), assembler, [Part(window=filled, start=0, stop=3)])


def test_what_does_not_fit_is_refused_with_the_arithmetic():
    columns, window = one_block(pa.table({"x": pa.array(np.random.default_rng(1).integers(0, 2**60, 20_000))}))
    small = dataclasses.replace(MEMORY, heap_bytes=1 << 16)
    with pytest.raises(DeviceMemoryError, match=r"takes [\d,]+ bytes of device memory; of 65,536 .*raise device_memory_bytes"):
        on_device(BatchDevice(HostRuntime(), small), DeviceColumns.of(columns), window)
    small = dataclasses.replace(MEMORY, slab_bytes=1 << 12)
    with pytest.raises(DeviceMemoryError, match="encoded blocks of a window take more than the 4,096 bytes"):
        on_device(BatchDevice(HostRuntime(), small), DeviceColumns.of(columns), window)
    with pytest.raises(ValueError, match="of pinned memory and pinned_bytes is 4,096"):
        on_device(BatchDevice(HostRuntime(), dataclasses.replace(MEMORY, pinned_bytes=1 << 12)), DeviceColumns.of(columns), window)


def test_strings_arrive_too_those_that_are_compressed_inflated_before():
    """Tensors hold no strings, but what reads bytes (images) takes them from these arrays."""
    rng = np.random.default_rng(11)
    words = ["", *(f"a rather long and much repeated text, number {i % 7} of seven" for i in range(50))]
    texts = [None if rng.random() < 0.1 else words[int(rng.integers(0, 51))] + str(rng.integers(0, 10**6)) for _ in range(900)]
    table = pa.table({"text": pa.array(texts), "blob": pa.array([None if text is None else text.encode() * 2 for text in texts], pa.binary())})
    columns, window = one_block(table)
    runtime = HostRuntime(timing="lazy")
    device = BatchDevice(runtime, MEMORY)
    assert inflated_bytes(build(window[0][0].slab, window[0][0].chunk_offsets, window[0][0].chunk_bytes)) > 0
    assembler = DeviceAssembler(device, DeviceColumns.of(columns))
    sides = on_device(device, DeviceColumns.of(columns), window), on_cpu(columns, window)
    arrays = assembler.finish(assembler.begin([Part(window=sides[0], start=1, stop=900, step=2)]))
    arrays.hand_over()
    want = assemble(columns, [Part(window=sides[1], start=1, stop=900, step=2)])
    for column in (0, 1):
        values, offsets, _ = arrays.list_column(column)
        np.testing.assert_array_equal(values.numpy(), want.lists[column][0])
        np.testing.assert_array_equal(offsets.numpy(), want.lists[column][1])
        np.testing.assert_array_equal(arrays.validity_of(column).numpy(), want.validity[column])
