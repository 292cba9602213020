"""What reads keep in memory stays within its bound, and nothing survives being forgotten."""

from __future__ import annotations

import pytest

from loader.catalog.kept import Kept


def test_the_least_used_goes_first_and_the_bound_holds() -> None:
    kept = Kept(1000)
    for number in range(10):
        assert kept.get(number, lambda number=number: [number], lambda _: 200) == [number]
        kept.find(0)
        assert kept.num_bytes <= 1000
    assert kept.find(0) == [0]  # asked for again and again
    assert kept.find(9) == [9]
    assert kept.find(1) is None


def test_a_value_of_more_than_a_quarter_is_handed_out_and_not_kept() -> None:
    kept = Kept(1000)
    assert kept.get("large", lambda: "value", lambda _: 251) == "value"
    assert kept.find("large") is None
    assert kept.num_bytes == 0


def test_what_was_begun_before_everything_was_forgotten_is_not_kept() -> None:
    kept = Kept(1000)

    def make() -> str:
        kept.clear()  # rows are erased while they are read
        return "erased rows"

    assert kept.get("rows", make, lambda _: 10) == "erased rows"
    assert kept.find("rows") is None


def test_a_key_that_is_kept_again_counts_once() -> None:
    kept = Kept(1000)
    for _ in range(3):
        kept.keep("key", "value", 100, begun=0)
    assert kept.num_bytes == 100


def test_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        Kept(-1)
