"""Claims about pinned slabs: in the order of their turns, never used again before a copy is done, and nobody waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.decode.slabs import SPAN_BYTES, InterruptedWaitError, PinnedSlabs, Spans, span_bytes
from loader.kernels.host_runtime import HostRuntime


@given(st.lists(st.tuples(st.integers(0, 5 * SPAN_BYTES), st.integers(0, 9)), max_size=60))
def test_spans_never_overlap_and_all_come_back(steps):
    spans, held = Spans(16 * SPAN_BYTES + 7), {}
    for num_bytes, which in steps:
        start = spans.take(num_bytes)
        if start is not None:
            stop = start + span_bytes(num_bytes)
            assert stop <= spans.num_bytes and all(stop <= other or other_stop <= start for other, other_stop in held.items())
            held[start] = stop
        elif held:
            spans.give_back(start := sorted(held)[which % len(held)])
            del held[start]
        assert spans.free_bytes == spans.num_bytes - sum(stop - start for start, stop in held.items())
    for start in held:
        spans.give_back(start)
    assert spans.take(spans.num_bytes) == 0


def test_a_slab_is_used_again_only_after_its_copy():
    runtime = HostRuntime(timing="lazy")
    slabs, device, stream = PinnedSlabs(runtime, 1024), runtime.empty_device(1024), runtime.stream("copy")
    for number in range(10):
        slab = slabs.empty(1000)
        slab[:] = number  # the host runtime refuses this while the copy before has not run
        runtime.copy_to_device(device.address, slab, stream)
        event = runtime.event()
        runtime.record(event, stream)
        slabs.mark(slab, event)
        del slab
    runtime.finish()
    assert (device.data[:1000] == 9).all()
    assert slabs.empty(1024).size == 1024


def test_a_slab_that_is_written_before_its_copy_has_run_is_seen():
    """The planted bug that the mark is there against."""
    runtime = HostRuntime(timing="lazy")
    slabs, device, stream = PinnedSlabs(runtime, 1024), runtime.empty_device(1024), runtime.stream("copy")
    slab = slabs.empty(1000)
    slab[:] = 1
    runtime.copy_to_device(device.address, slab, stream)
    del slab  # never marked
    slabs.empty(1000)[:] = 2
    with pytest.raises(RuntimeError, match="changed, or died, before the copy had run"):
        runtime.finish()


def test_slabs_are_handed_out_in_the_order_of_turns():
    slabs, order = PinnedSlabs(HostRuntime(), 1 << 16), []
    slabs.begin()

    def take(turn):
        if turn == 3:
            slabs.pass_turn(turn)  # a block that could not be read
            return
        slab = slabs.empty(100, turn)
        order.append((slab.ctypes.data, turn))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [5, 4, 2, 3, 1, 0]))
    assert sorted(turn for _, turn in order) == [0, 1, 2, 4, 5]
    assert slabs.taken_bytes == 0


def test_a_late_turn_waits_for_the_earlier_ones_and_for_room():
    slabs = PinnedSlabs(HostRuntime(), 2 * SPAN_BYTES)
    slabs.begin()
    first = slabs.empty(SPAN_BYTES, 0)
    with ThreadPoolExecutor(2) as pool:
        third = pool.submit(slabs.empty, SPAN_BYTES, 2)
        second = pool.submit(slabs.empty, 2 * SPAN_BYTES, 1)
        assert not third.done() and not second.done()
        del first
        assert second.result(10).size == 2 * SPAN_BYTES
        assert not third.done()
        del second
        assert third.result(10).size == SPAN_BYTES


@pytest.mark.parametrize("waits_for", ["turn", "room"])
def test_whoever_waits_is_told_when_the_read_is_stopped(waits_for):
    slabs = PinnedSlabs(HostRuntime(), SPAN_BYTES)
    slabs.begin()
    held = slabs.empty(SPAN_BYTES, 0)
    began = threading.Event()

    def wait():
        began.set()
        return slabs.empty(SPAN_BYTES, 2 if waits_for == "turn" else 1)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        began.wait()
        slabs.interrupt()
        with pytest.raises(InterruptedWaitError, match="the read was stopped"):
            waiting.result(10)
    with pytest.raises(InterruptedWaitError):
        slabs.empty(1, 1)
    del held
    slabs.begin()
    assert isinstance(slabs.empty(SPAN_BYTES, 0), np.ndarray)


def test_a_block_larger_than_the_ring_is_refused_by_its_setting():
    with pytest.raises(ValueError, match="a block takes 600 bytes of pinned memory and pinned_bytes is 512: raise it"):
        PinnedSlabs(HostRuntime(), 600).empty(600)


def test_what_passes_does_not_lie_between_what_stays():
    """Windows of different sizes come and go for a long time in the room that a loader reckons for them."""
    rng, size = np.random.default_rng(5), 1 << 20
    for held_windows in (2, 9):
        spans, held = Spans(int(1.5 * (held_windows + 2) * size + 2 * size)), []
        for _ in range(600):
            window = int(size * rng.uniform(0.75, 1.3))
            passing = [spans.take(window, from_end=True), spans.take(window // 50, from_end=True)]
            stays = [spans.take(int(0.4 * window)), spans.take(int(0.6 * window))]
            assert None not in (*passing, *stays)
            for start in passing:
                spans.give_back(start)
            held.append(stays)
            if len(held) > held_windows:
                for start in held.pop(int(rng.integers(0, 2))):
                    spans.give_back(start)
