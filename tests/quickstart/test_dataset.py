"""No feature knows the future: every value is computed again, slowly, from earlier lines only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loader.errors import ConfigError
from ray_jobs.quickstart import dataset
from ray_jobs.quickstart.dataset import KEY, Manifest
from ray_jobs.quickstart.features import WINDOW_SECONDS

DAY = 86_400


def read(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.iterdir()):
        table = pa.ipc.open_file(path).read_all()
        for name in ("ts", "event_time"):
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
        rows += table.to_pylist()
    return rows


@pytest.fixture(scope="module")
def lines(raw_folder: Path) -> list[dict[str, Any]]:
    """Raw transaction lines with their product's type, as plain rows."""
    products = {row["product_id"]: row for row in pq.read_table(raw_folder / "products.parquet").to_pylist()}
    table = pq.read_table(raw_folder / "transactions.parquet")
    seconds = table["transaction_timestamp"].cast(pa.timestamp("s")).cast(pa.int64()).to_pylist()
    return [{**row, "ts": ts, "type": products[row["product_id"]]["product_type"]} for row, ts in zip(table.to_pylist(), seconds, strict=True)]


def test_every_line_is_a_sample_in_event_order(streams: tuple[Path, Manifest], lines: list[dict[str, Any]]) -> None:
    samples = read(streams[0] / "samples")
    assert sorted(tuple(row[name] for name in KEY) for row in samples) == sorted(tuple(line[name] for name in KEY) for line in lines)
    assert [row["ts"] for row in samples] == sorted(line["ts"] for line in lines)
    assert streams[1].samples == len(lines)
    assert len(list((streams[0] / "samples").iterdir())) > 1


def test_features_use_earlier_lines_only(streams: tuple[Path, Manifest], lines: list[dict[str, Any]]) -> None:
    samples = read(streams[0] / "samples")
    codes = {row["product_id"]: row["product"] for row in samples}
    for index in np.random.default_rng(5).choice(len(samples), 60, replace=False):
        row = samples[index]
        wanted = expected_features(row, lines, codes)
        for name, value in wanted.items():
            found = row[name]
            assert (found is None) == (value is None), name
            assert value is None or math.isclose(found, value, rel_tol=1e-5, abs_tol=1e-5), (name, found, value)


def expected_features(row: dict[str, Any], lines: list[dict[str, Any]], codes: dict[int, int]) -> dict[str, Any]:
    """What was known before `row`, from a list that holds no line of its second or later."""
    now = row["ts"]
    past = [line for line in lines if line["ts"] < now]
    own = [line for line in past if line["household_id"] == row["household_id"]]
    pair = sorted(line["ts"] for line in own if line["product_id"] == row["product_id"])
    kind = next(line["type"] for line in lines if line["product_id"] == row["product_id"])
    same_type = [line["ts"] for line in own if line["type"] == kind]
    product = [line for line in past if line["product_id"] == row["product_id"]]
    basket = [line for line in lines if line["basket_id"] == row["basket_id"]]
    repeats = [line for line in product if any(again_in(line, other) for other in product)]

    def recent(times: list[int]) -> int:
        return sum(time >= now - WINDOW_SECONDS for time in times)

    def days_since(times: list[int]) -> float | None:
        return (now - max(times)) / DAY if times else None

    return {
        "pair_count": len(pair),
        "pair_count_28d": recent(pair),
        "pair_days_since": days_since(pair),
        "pair_days_between": (pair[-1] - pair[0]) / DAY / (len(pair) - 1) if len(pair) > 1 else None,
        "type_count": len(same_type),
        "type_count_28d": recent(same_type),
        "type_days_since": days_since(same_type),
        "household_lines": len(own),
        "household_lines_28d": recent([line["ts"] for line in own]),
        "household_baskets": len({line["basket_id"] for line in own}),
        "household_days_since": days_since([line["ts"] for line in own]),
        "product_lines": len(product),
        "product_lines_28d": recent([line["ts"] for line in product]),
        "product_households": len({line["household_id"] for line in product}),
        "product_repeats": len(repeats),
        "basket_lines": len(basket),
        "basket_value": sum(line["sales_value"] for line in basket),
    }


def again_in(line: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `other` is `line`'s household buying its product again in time."""
    same = other["household_id"] == line["household_id"] and other["product_id"] == line["product_id"]
    return same and 0 < other["ts"] - line["ts"] <= WINDOW_SECONDS


def test_history_is_the_last_hundred_lines_before_the_basket(streams: tuple[Path, Manifest], lines: list[dict[str, Any]]) -> None:
    samples = read(streams[0] / "samples")
    codes = {row["product_id"]: row["product"] for row in samples}
    longest = 0
    for index in np.random.default_rng(6).choice(len(samples), 60, replace=False):
        row = samples[index]
        before = sorted(
            (line["ts"], line["basket_id"], line["product_id"]) for line in lines if line["household_id"] == row["household_id"] and line["ts"] < row["ts"]
        )
        assert row["history"] == [codes[product] for _, _, product in before[-100:]]
        assert [int(np.datetime64(time, "s").astype(np.int64)) for time in row["history_times"]] == [ts for ts, _, _ in before[-100:]]
        longest = max(longest, len(before))
    assert longest > 100, "the toy is too small to cut a history"


def test_labels_are_the_first_repeat_within_28_days(streams: tuple[Path, Manifest], lines: list[dict[str, Any]]) -> None:
    events = read(streams[0] / "labels")
    found = {tuple(event[name] for name in KEY): event["event_time"] for event in events}
    wanted = {}
    for line in lines:
        times = [other["ts"] for other in lines if again_in(line, other)]
        if times:
            wanted[tuple(line[name] for name in KEY)] = min(times)
    assert found == wanted
    assert len(events) == len(found) == streams[1].labels
    assert [event["event_time"] for event in events] == sorted(found.values())


def test_training_windows_end_before_the_cut_and_test_rows_start_after_it(streams: tuple[Path, Manifest]) -> None:
    samples, manifest = read(streams[0] / "samples"), streams[1]
    ts = np.array([row["ts"] for row in samples])
    train, test = dataset.split(ts, cut=manifest.cut, end=manifest.end)
    assert train.sum() == manifest.train_rows > 0 and test.sum() == manifest.test_rows > 0
    assert (ts[train] + WINDOW_SECONDS <= manifest.cut).all()
    assert (ts[test] >= manifest.cut).all() and (ts[test] + WINDOW_SECONDS <= manifest.end).all()
    label_times = {tuple(event[name] for name in KEY): event["event_time"] for event in read(streams[0] / "labels")}
    trained = [label_times.get(tuple(row[name] for name in KEY)) for row, chosen in zip(samples, train, strict=True) if chosen]
    assert all(time is None or time <= manifest.cut for time in trained), "a training label was made by a test row"


def test_unknown_is_null(streams: tuple[Path, Manifest]) -> None:
    samples = read(streams[0] / "samples")
    assert all((row["age"] is None) == (row["household_id"] % 2 == 0) for row in samples)
    assert all((row["category"] is None) == (row["product_id"] % 7 == 0) for row in samples)
    assert all(row["product"] >= 1 and row["store"] >= 1 for row in samples)


def test_preparing_again_keeps_what_is_there_and_refuses_another_size(streams: tuple[Path, Manifest], raw_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in streams[0].rglob("*")}
    assert dataset.prepare(streams[0], data_folder=raw_folder) == streams[1]
    assert {path: path.stat().st_mtime_ns for path in streams[0].rglob("*")} == before
    with pytest.raises(ConfigError, match="--fresh"):
        dataset.prepare(streams[0], data_folder=raw_folder, num_households=3)
