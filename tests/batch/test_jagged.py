"""Claims about ragged columns."""

from __future__ import annotations

import pytest
import torch

from loader.batch.jagged import Jagged


@pytest.fixture
def drawn():
    return Jagged(torch.tensor([7, 8, 9, 8, 9]), torch.tensor([0, 3, 3, 5]))


def test_rows_are_slices(drawn):
    assert [drawn[i].tolist() for i in range(len(drawn))] == [[7, 8, 9], [], [8, 9]]
    assert drawn[-1].tolist() == [8, 9] and drawn.lengths().tolist() == [3, 0, 2]
    with pytest.raises(IndexError, match="row 3 of a jagged column of 3"):
        drawn[3]


def test_nested_tensors_share_the_values(drawn):
    nested = drawn.to_nested()
    assert [row.tolist() for row in nested.unbind()] == [[7, 8, 9], [], [8, 9]]
    assert nested.values().data_ptr() == drawn.values.data_ptr()


def test_to_moves_both_arrays(drawn):
    moved = drawn.to("meta")
    assert moved.values.device.type == moved.offsets.device.type == "meta"
    assert moved.weights is None


def test_weights_of_a_map_go_where_its_keys_go(drawn):
    weighted = Jagged(drawn.values, drawn.offsets, torch.tensor([0.5, 0.1, 2.0, 1.0, 3.0]))
    assert weighted.to("meta").weights.device.type == "meta"
    assert weighted.weights[weighted.offsets[2] : weighted.offsets[3]].tolist() == [1.0, 3.0]
