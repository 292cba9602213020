"""Claims about carrying: whatever increments come in whatever sizes, every row is laid out once, in whole batches, and no row waits twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from loader.scan import order as o
from loader.scan.follow import tail_ranges

quick = settings(max_examples=100, deadline=None, derandomize=True, database=None)
blocks = st.lists(st.integers(0, 30), max_size=8)


def rows_of(layout):
    """(block, ordinal) in laid-out order."""
    spans = zip(layout.blocks.tolist(), layout.first.tolist(), (layout.starts[1:] - layout.starts[:-1]).tolist(), strict=True)
    return [(block, first + at) for block, first, count in spans for at in range(count)]


@quick
@given(blocks, st.integers(0, 2**32), st.sampled_from(o.MODES), st.integers(1, 40))
def test_what_is_cut_and_what_is_left_is_all(sizes, seed, mode, batch):
    layout = o.lay_out(sizes, o.Order(seed=seed, mode=mode))
    left = layout.num_rows % batch
    tail = [(block, first + at) for block, first, count in tail_ranges(layout, left) for at in range(count)]
    kept = o.cut(layout, layout.num_rows - left)
    assert rows_of(kept) + tail == rows_of(layout)
    assert len(tail) == left and kept.num_rows % batch == 0
    assert sum(window.num_rows for window in kept.windows(0, 0, 1)) == kept.num_rows
