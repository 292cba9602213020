"""What was known about a transaction line just before its basket: counts, gaps and history, and whether it is bought again.

Everything is computed for all lines at once by sorting and binary search, never row by row. "Before" always means a strictly earlier
time: lines of the same second, its own basket included, are not history. The only use of the present is the basket itself.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ray_jobs.quickstart.source_data import RawData

WINDOW_SECONDS = 28 * 86_400
HISTORY_LENGTH = 100
DAY = 86_400.0
_TIME_BITS = 26  # seconds of two years


class EventIndex:
    """Times of events by group, sorted, so that "how many before t" is a binary search.

    Args:
        groups: int64 [num_events], from 0.
        seconds: int64 [num_events], at least 0 and below 2 ** 26.
    """

    def __init__(self, groups: np.ndarray, seconds: np.ndarray) -> None:
        self.keys = np.sort(groups << _TIME_BITS | seconds)

    def first(self, groups: np.ndarray) -> np.ndarray:
        """Index of the group's first event."""
        return np.searchsorted(self.keys, groups << _TIME_BITS)

    def position(self, groups: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Index of the group's first event that is not before `seconds`."""
        return np.searchsorted(self.keys, (groups << _TIME_BITS) + seconds)

    def seconds(self, index: np.ndarray) -> np.ndarray:
        """Time of the event at each index (clipped into range)."""
        return self.keys[index.clip(0, max(len(self.keys) - 1, 0))] & ((1 << _TIME_BITS) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """Every line's household history as views: line i saw entries [start[i], start[i] + length[i]) of the pool, oldest first."""

    products: np.ndarray
    times: np.ndarray
    start: np.ndarray
    length: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Dense features by name, float32 with NaN for "never" or integers, [num_lines] each; and the histories."""

    dense: dict[str, np.ndarray]
    history: History


def next_purchase(raw: RawData) -> np.ndarray:
    """Seconds since 1970 of the household's next purchase of the same product, strictly later; -1 where there is none. int64 [num_lines]."""
    origin = int(raw.lines["ts"].min())
    seconds = raw.lines["ts"] - origin
    groups = _pairs(raw, "product")
    index = EventIndex(groups, seconds)
    following = index.position(groups, seconds + 1)
    inside = (following < len(index.keys)) & (index.keys[following.clip(max=len(index.keys) - 1)] >> _TIME_BITS == groups)
    return np.where(inside, index.seconds(following) + origin, -1)


def label_times(raw: RawData) -> np.ndarray:
    """When each line's label became positive: its next purchase if within 28 days, else -1. int64 [num_lines]."""
    later = next_purchase(raw)
    return np.where((later >= 0) & (later - raw.lines["ts"] <= WINDOW_SECONDS), later, -1)


def compute(raw: RawData) -> Features:
    """All features of all lines."""
    lines = raw.lines
    seconds = lines["ts"] - lines["ts"].min()
    return Features(dense=_calendar(lines) | _basket(lines) | _pair(raw, seconds) | _household(lines, seconds) | _product(raw, seconds), history=_history(raw))


def _pairs(raw: RawData, name: str) -> np.ndarray:
    """One group number for each (household, value of the id column)."""
    return raw.lines["household_id"] * raw.vocabulary[name] + raw.lines[name]


def _calendar(lines: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    hours = lines["ts"] // 3600
    return {"hour": (hours % 24).astype(np.int32), "weekday": ((hours // 24 + 3) % 7).astype(np.int32)}  # 1970-01-01 was a Thursday, 3 from Monday


def _basket(lines: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    _, basket, count = np.unique(lines["basket_id"], return_inverse=True, return_counts=True)
    value = np.bincount(basket, weights=lines["sales_value"].astype(np.float64))
    return {"basket_lines": count[basket].astype(np.int32), "basket_value": value[basket].astype(np.float32)}


def _pair(raw: RawData, seconds: np.ndarray) -> dict[str, np.ndarray]:
    """This household with this product, and with products of the same type."""
    columns: dict[str, np.ndarray] = {}
    for prefix, name in (("pair", "product"), ("type", "product_type")):
        groups = _pairs(raw, name)
        index = EventIndex(groups, seconds)
        first, here = index.first(groups), index.position(groups, seconds)
        recent = index.position(groups, np.maximum(seconds - WINDOW_SECONDS, 0))
        count = here - first
        columns[f"{prefix}_count"] = count.astype(np.int32)
        columns[f"{prefix}_count_28d"] = (here - recent).astype(np.int32)
        columns[f"{prefix}_days_since"] = _days(seconds - index.seconds(here - 1), count >= 1)
        if prefix == "pair":
            columns["pair_days_between"] = _days((index.seconds(here - 1) - index.seconds(first)) / np.maximum(count - 1, 1), count >= 2)
    return columns


def _household(lines: dict[str, np.ndarray], seconds: np.ndarray) -> dict[str, np.ndarray]:
    groups = lines["household_id"]
    index = EventIndex(groups, seconds)
    first, here = index.first(groups), index.position(groups, seconds)
    recent = index.position(groups, np.maximum(seconds - WINDOW_SECONDS, 0))
    _, line = np.unique(lines["basket_id"], return_index=True)
    baskets = EventIndex(groups[line], seconds[line])
    return {
        "household_lines": (here - first).astype(np.int32),
        "household_lines_28d": (here - recent).astype(np.int32),
        "household_baskets": (baskets.position(groups, seconds) - baskets.first(groups)).astype(np.int32),
        "household_days_since": _days(seconds - index.seconds(here - 1), here > first),
    }


def _product(raw: RawData, seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Popularity so far, over all households, and how often the product was bought again."""
    groups = raw.lines["product"]
    index = EventIndex(groups, seconds)
    first, here = index.first(groups), index.position(groups, seconds)
    recent = index.position(groups, np.maximum(seconds - WINDOW_SECONDS, 0))
    pairs = _pairs(raw, "product")
    order = np.lexsort((seconds, pairs))
    newcomer = order[np.concatenate(([True], np.diff(pairs[order]) != 0))]
    households = EventIndex(groups[newcomer], seconds[newcomer])
    labelled = label_times(raw)
    again = labelled >= 0
    repeats = EventIndex(groups[again], labelled[again] - raw.lines["ts"].min())
    return {
        "product_lines": (here - first).astype(np.int32),
        "product_lines_28d": (here - recent).astype(np.int32),
        "product_households": (households.position(groups, seconds) - households.first(groups)).astype(np.int32),
        "product_repeats": (repeats.position(groups, seconds) - repeats.first(groups)).astype(np.int32),
    }


def _days(seconds: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, seconds / DAY, np.nan).astype(np.float32)


def _history(raw: RawData) -> History:
    """The household's lines in time order are the pool; a line sees the last 100 of them before its own second."""
    lines = raw.lines
    order = np.argsort(lines["household_id"], kind="stable")  # lines are in time order already
    household, times = lines["household_id"][order], lines["ts"][order]
    origin = int(times.min())
    index = EventIndex(household, times - origin)
    here = index.position(lines["household_id"], lines["ts"] - origin)
    first = index.first(lines["household_id"])
    start = np.maximum(first, here - HISTORY_LENGTH)
    return History(products=lines["product"][order].astype(np.int32), times=times, start=start, length=here - start)
