"""The host runtime is unkind enough: each planted bug that a GPU would forgive today and not tomorrow is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loader.decode import cpu
from loader.decode.cuda import CudaExecutor
from loader.errors import DeviceMemoryError
from loader.kernels import host_memory
from loader.kernels.host_memory import FRESH, IN_FLIGHT, MisuseError
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.host_streams import TIMINGS
from loader.kernels.runtime import open_runtime, override
from loader.segment.layout import PADDING_BYTES
from tests.kernels.programs import Array, random_program


@pytest.mark.parametrize("timing", TIMINGS)
def test_copies_in_order_of_their_events_arrive(timing: str) -> None:
    runtime = HostRuntime(timing=timing, seed=2)
    device, source, target = runtime.empty_device(5000), runtime.empty_pinned(5000), runtime.empty_pinned(5000)
    source[:] = np.random.default_rng(1).integers(0, 256, 5000)
    one, other, copied, back = runtime.stream("copy"), runtime.stream("decode"), runtime.event(), runtime.event()
    runtime.copy_to_device(device.address, source, one)
    runtime.record(copied, one)
    runtime.wait(other, copied)
    runtime.zero(device.address + 100, 50, other)
    runtime.copy_to_host(target, device.address, 5000, other)
    runtime.record(back, other)
    runtime.synchronize(back)
    source[100:150] = 0
    np.testing.assert_array_equal(target, source)
    assert runtime.is_done(copied)
    runtime.finish()


def test_events_mean_what_cuda_means() -> None:
    runtime = HostRuntime(timing="lazy")
    device, source, stream, event = runtime.empty_device(8), runtime.empty_pinned(8), runtime.stream("copy"), runtime.event()
    assert runtime.is_done(event), "an event that was never recorded"
    runtime.synchronize(event)
    runtime.wait(stream, event)
    runtime.copy_to_device(device.address, source, stream)
    runtime.record(event, stream)
    assert not runtime.is_done(event)
    answers = [runtime.is_done(event) for _ in range(5)]
    assert answers[-1] and answers == sorted(answers), "asking again and again comes to an end"
    source[:] = 1
    runtime.copy_to_device(device.address, source, stream)
    runtime.record(event, stream)
    assert not runtime.is_done(event), "recorded again, it is not done again"
    runtime.finish()
    assert runtime.is_done(event)


def test_a_wait_takes_the_event_as_it_was_recorded_then() -> None:
    runtime = HostRuntime(timing="lazy")
    device, source, target = runtime.empty_device(8), runtime.empty_pinned(8), runtime.empty_pinned(8)
    one, other, event, end = runtime.stream("a"), runtime.stream("b"), runtime.event(), runtime.event()
    source[:] = 3
    runtime.wait(other, event)  # nothing to wait for yet
    runtime.copy_to_host(target, device.address, 8, other)
    runtime.record(end, other)
    runtime.copy_to_device(device.address, source, one)
    runtime.record(event, one)
    runtime.synchronize(end)
    assert (target == FRESH).all()


@pytest.mark.parametrize("forgotten", ["", "decode waits for the copy", "the consumer waits for the decode"])
def test_a_missing_wait_is_seen_in_the_bytes(forgotten: str) -> None:
    """Decodes with one wait left out: some timing must give wrong bytes or refuse, and with all waits none does."""
    wrong = 0
    for timing in TIMINGS:
        for seed in range(4):
            wrong += not decodes_right(HostRuntime(timing=timing, seed=seed), forgotten)
    assert (wrong > 0) == bool(forgotten)


def decodes_right(runtime: HostRuntime, forgotten: str) -> bool:
    built = random_program(5, max_count=1100, num_ops=5)
    executor, copies, stream, copied = CudaExecutor(runtime, num_tables=1), runtime.stream("copy"), runtime.stream("decode"), runtime.event()
    pinned, slab = runtime.empty_pinned(built.slab.size), runtime.empty_device(built.slab.size)
    arena = runtime.empty_device(built.program.arena_bytes + PADDING_BYTES)
    pinned[:] = built.slab
    runtime.copy_to_device(slab.address, pinned, copies)
    runtime.record(copied, copies)
    if forgotten != "decode waits for the copy":
        runtime.wait(stream, copied)
    sizes = {"slab_bytes": built.slab.size - PADDING_BYTES, "arena_bytes": built.program.arena_bytes}
    decoding = executor.decode(built.program, slab=slab.address, arena=arena.address, stream=stream, **sizes)
    if forgotten != "the consumer waits for the decode":
        runtime.wait(runtime.consumer_stream(), decoding.event)
    found = runtime.tensor(arena, arena.address, (built.program.arena_bytes,), np.uint8).numpy().copy()
    want = reference_arena()
    runtime.finish()
    return decoding.failure() is None and np.array_equal(found, want)


def reference_arena() -> Array:
    built = random_program(5, max_count=1100, num_ops=5)
    arena = built.arena(FRESH)
    cpu.execute(built.program, built.slab, arena)
    return arena[: built.program.arena_bytes]


@pytest.mark.parametrize("timing", ["lazy", "random"])
def test_a_slab_refilled_before_its_copy_has_run_is_refused(timing: str) -> None:
    runtime = HostRuntime(timing=timing, seed=1)
    slab, device, stream, event = runtime.empty_pinned(4096), runtime.empty_device(4096), runtime.stream("copy"), runtime.event()
    with pytest.raises(MisuseError, match="pinned source changed"):
        for fill in range(20):
            slab[:] = fill
            runtime.copy_to_device(device.address, slab, stream)
        runtime.finish()
    runtime = HostRuntime(timing=timing, seed=1)
    slab, device, stream = runtime.empty_pinned(4096), runtime.empty_device(4096), runtime.stream("copy")
    for fill in range(20):
        runtime.synchronize(event)
        slab[:] = fill
        runtime.copy_to_device(device.address, slab, stream)
        runtime.record(event, stream)
    runtime.finish()


def test_a_result_read_before_its_event_is_poison_and_one_written_meanwhile_is_refused() -> None:
    runtime = HostRuntime(timing="lazy")
    device, target, stream = runtime.empty_device(64), runtime.empty_pinned(64), runtime.stream("decode")
    target[:] = 1
    runtime.copy_to_host(target, device.address, 64, stream)
    assert (target == IN_FLIGHT).all()
    target[3] = 0
    with pytest.raises(MisuseError, match="target was written"):
        runtime.finish()


@pytest.mark.parametrize("side", ["device", "pinned"])
def test_memory_that_dies_under_work_in_flight_is_refused(side: str) -> None:
    runtime = HostRuntime(timing="lazy")
    device, source, stream = runtime.empty_device(64), runtime.empty_pinned(64), runtime.stream("copy")
    runtime.copy_to_device(device.address, source, stream)
    if side == "device":
        del device
    else:
        del source
    with pytest.raises(MisuseError, match="died before it had run"):
        runtime.finish()


def test_addresses_that_are_nobodys_are_refused() -> None:
    runtime = HostRuntime()
    device, pinned, stream = runtime.empty_device(64), runtime.empty_pinned(64), runtime.stream("copy")
    with pytest.raises(MisuseError, match="inside of device memory"):
        runtime.copy_to_device(device.address + 1, pinned, stream)
    with pytest.raises(MisuseError, match="inside of pinned memory"):
        runtime.copy_to_device(device.address, np.zeros(64, np.uint8), stream)
    with pytest.raises(MisuseError, match="inside of device memory"):
        runtime.launch("scan_lists", (1, 1), 256, (pinned.ctypes.data, 1, device.address), stream)
    with pytest.raises(ValueError, match="no kernel is named 'scan'"):
        runtime.launch("scan", (1, 1), 256, (), stream)
    with pytest.raises(ValueError, match=r"scan_lists takes 3 arguments \(tile_sums, num_tiles, totals\), got 2"):
        runtime.launch("scan_lists", (1, 1), 256, (1, 2), stream)
    with pytest.raises(ValueError, match="blocks of up to 256 threads"):
        runtime.launch("scan_lists", (1, 1), 512, (device.address, 1, device.address), stream)


def test_a_kernel_that_writes_past_its_memory_is_named() -> None:
    runtime = HostRuntime(timing="eager")
    sums, totals, stream = runtime.empty_device(8 * 100), runtime.empty_device(8), runtime.stream("assemble")
    with pytest.raises(MisuseError, match="scan_lists on stream assemble wrote outside of device memory of 800 bytes"):
        runtime.launch("scan_lists", (1, 1), 256, (sums.address, 101, totals.address), stream)


def test_dead_memory_is_poisoned_and_the_device_has_a_size() -> None:
    runtime = HostRuntime(device_bytes=1000)
    memory = runtime.empty_device(900)
    data = memory.data
    assert memory.address % 256 == 0
    with pytest.raises(DeviceMemoryError, match="no room for 200 bytes .*: 900 of 1,000 are taken"):
        runtime.empty_device(200)
    del memory
    assert (data == host_memory.DEAD).all()
    assert runtime.empty_device(1000).num_bytes == 1000
    assert runtime.empty_pinned(10).ctypes.data % 4096 == 0
    assert runtime.allocations == 3


def test_tensors_share_memory_and_keep_it() -> None:
    runtime = HostRuntime()
    memory = runtime.empty_device(64)
    memory.data[:] = np.arange(64)
    made = {
        kind: runtime.tensor(memory, memory.address, (64 // np.dtype(kind).itemsize,), kind) for kind in (np.bool_, np.int8, np.float16, np.int64, np.uint32)
    }
    made_torch = runtime.tensor(memory, memory.address, (4, 8), torch.bfloat16)
    assert made_torch.dtype == torch.bfloat16
    assert made[np.int64][1] == int.from_bytes(bytes(range(8, 16)), "little")
    assert {str(tensor.dtype) for tensor in made.values()} == {"torch.bool", "torch.int8", "torch.float16", "torch.int64", "torch.uint32"}
    part = made_torch[1:, 2:]
    del memory, made, made_torch
    assert runtime.device_memory.num_bytes == 64
    del part
    assert runtime.device_memory.num_bytes == 0


def test_the_consumers_own_work_is_done_late() -> None:
    """What is recycled when the consumer's event is done must not be recycled at once."""
    runtime = HostRuntime(timing="lazy")
    event = runtime.event()
    runtime.record(event, runtime.consumer_stream())
    assert not runtime.is_done(event)
    assert runtime.is_done(event)


def test_override_is_what_opens_meanwhile() -> None:
    runtime = HostRuntime()
    with override(runtime):
        assert open_runtime("auto") is runtime
        assert open_runtime("cuda:3") is runtime
        assert open_runtime("cpu") is None
    with pytest.raises(ValueError, match="device is 'gpu': auto, cpu, cuda or cuda:N"):
        open_runtime("gpu")
    with pytest.raises(ValueError, match="timing is 'never'"):
        HostRuntime(timing="never")
