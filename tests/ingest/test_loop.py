"""The exactly-once loop: whatever it is stopped by, the table ends as if it had not been stopped."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import loader
from loader import failpoints
from loader.errors import ColumnNotFoundError, SchemaError
from loader.ingest.loop import IngestReport, Progress, Stream, run
from loader.ingest.sources.files import FileSource
from loader.table.table import Table
from tests.table import processes

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("ts", pa.timestamp("s"), nullable=False),
        pa.field("price", pa.float32()),
        pa.field("label", pa.int8()),
    ]
)
ROWS, WINDOW = 1_000, 500
FAILPOINTS = ("append.prepared", "append.staged", "append.resolved", "patch.resolved", "patch.staged", "commit.begun", "commit.written", "commit.committed")


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 samples a second apart in Parquet; a label for every third, 7 to 400 s later, in Arrow files."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("events")
    (folder / "samples").mkdir(), (folder / "labels").mkdir()
    ids = np.arange(ROWS)
    samples = pa.table({"id": ids, "ts": pa.array(ids).cast(pa.timestamp("s")), "price": rng.random(ROWS).astype(np.float32)})
    for index, begin in enumerate(range(0, ROWS, 300)):
        pq.write_table(samples.slice(begin, 300), folder / "samples" / f"{index}.parquet", row_group_size=70)
    labelled = ids[::3]
    when = labelled + rng.integers(7, 400, len(labelled))
    order = np.argsort(when, kind="stable")
    labels = pa.table({"id": labelled[order], "label": pa.array(np.ones(len(order), np.int8)), "event_time": pa.array(when[order]).cast(pa.timestamp("s"))})
    with pa.ipc.new_file(str(folder / "labels" / "0.arrow"), labels.schema) as writer:
        writer.write_table(labels, max_chunksize=50)
    return folder


def open_table(lake: loader.Lake) -> Table:
    if "samples" in lake.tables():
        return lake.table("samples")
    attribution = loader.Attribution("label", WINDOW, 0)
    return lake.create_table("samples", SCHEMA, primary_key=["id"], buckets=2, time_column="ts", attribution=attribution, durability="relaxed")


def replay(table: Table, events: Path, *, round_rows: int = 128, stop: threading.Event | None = None, after_round: object = None) -> IngestReport:
    streams = [
        Stream(source=FileSource("samples", events / "samples"), time_column="ts"),
        Stream(source=FileSource("labels", events / "labels"), write="patch", time_column="event_time", columns={"id": "id", "label": "label"}),
    ]
    return run(table, streams, pipeline="test", round_rows=round_rows, stop=stop, after_round=after_round)  # type: ignore[arg-type]


def last_event(events: Path) -> int:
    labels = pa.ipc.open_file(events / "labels" / "0.arrow").read_all()
    return max(ROWS - 1, int(labels["event_time"].cast(pa.int64()).to_numpy().max()))


def contents(table: Table) -> pa.Table:
    return table.to_arrow().sort_by("id").combine_chunks()


@pytest.fixture(scope="module")
def undisturbed(events: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    with loader.connect(str(tmp_path_factory.mktemp("plain") / "lake")) as lake:
        table = open_table(lake)
        replay(table, events)
        return contents(table)


def test_samples_and_labels_meet(undisturbed: pa.Table) -> None:
    assert undisturbed["id"].to_pylist() == list(range(ROWS))
    ones = [row for row, label in zip(undisturbed["id"].to_pylist(), undisturbed["label"].to_pylist(), strict=True) if label == 1]
    assert ones == list(range(0, ROWS, 3))


def test_offsets_and_watermark_stand_in_the_table(events: Path, tmp_path: Path) -> None:
    with loader.connect(str(tmp_path / "lake")) as lake:
        table = open_table(lake)
        report = replay(table, events)
        assert report.rows == {"samples": ROWS, "labels": len(range(0, ROWS, 3))} and not report.stopped
        assert table.offsets("test", "samples") == {"0.parquet": 300, "1.parquet": 300, "2.parquet": 300, "3.parquet": 100}
        assert table.describe()["watermark"] == report.watermark == last_event(events)
        snapshot = table.describe()["snapshot"]
        assert replay(table, events).commits == 0, "a second run finds nothing to do"
        assert table.describe()["snapshot"] == snapshot


def test_a_label_is_never_counted_closed_too_early(events: Path, tmp_path: Path) -> None:
    """At every round, the rows that are closed at the watermark read exactly as they do at the end."""
    with loader.connect(str(tmp_path / "lake")) as lake:
        table = open_table(lake)
        seen: list[dict[int, int]] = []

        def look(progress: Progress) -> None:
            if progress.watermark is not None and progress.watermark >= WINDOW:
                closed = table.to_arrow(["id", "label"], closed_before="watermark")
                seen.append(dict(zip(closed["id"].to_pylist(), closed["label"].to_pylist(), strict=True)))

        replay(table, events, after_round=look)
        final = dict(zip(*(contents(table)[name].to_pylist() for name in ("id", "label")), strict=True))
        assert seen and all(label == (1 if row % 3 == 0 else 0) for row, label in seen[-1].items())
        for closed in seen:
            assert all((final[row] or 0) == label for row, label in closed.items())


@pytest.mark.parametrize("seed", range(6))
def test_killed_anywhere_nothing_is_lost_or_doubled(events: Path, undisturbed: pa.Table, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(200):
        left = int(rng.integers(1, 5))

        def die() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        with loader.connect(str(tmp_path / "lake")) as lake:
            table = open_table(lake)
            try:
                with failpoints.armed(str(rng.choice(FAILPOINTS)), die):
                    replay(table, events, round_rows=int(rng.integers(40, 300)))
            except Killed:
                continue
            assert contents(table).equals(undisturbed)
            assert sum(table.offsets("test", "samples").values()) == ROWS
            state = table.describe()
            assert (state["num_rows"], state["num_pending"], state["watermark"]) == (ROWS, 0, last_event(events))
            return
    pytest.fail("the replay never ended")


@pytest.mark.parametrize("failpoint", [*FAILPOINTS, "ingest.committed"])
def test_a_killed_process_is_taken_up_by_the_next(events: Path, undisturbed: pa.Table, tmp_path: Path, failpoint: str) -> None:
    """SIGKILL, at the first passing of a failpoint, the second of the next life, and so on, until a life gets to the end."""

    def life(times: int) -> None:
        left = [times]

        def count_down() -> None:
            left[0] -= 1
            if left[0] == 0:
                processes.kill_self()

        with loader.connect(str(tmp_path / "lake")) as lake, failpoints.armed(failpoint, count_down):
            replay(open_table(lake), events, round_rows=300)

    codes = [-9]
    while codes[-1] == -9 and len(codes) < 20:
        times = len(codes)
        codes.append(processes.wait(processes.start(lambda times=times: life(times))))
    assert codes[-1] == 0 and codes.count(-9) > 2
    with loader.connect(str(tmp_path / "lake")) as lake:
        assert contents(open_table(lake)).equals(undisturbed)
        assert sum(open_table(lake).offsets("test", "samples").values()) == ROWS


def test_asked_to_stop_it_ends_after_the_commit_in_hand_and_goes_on(events: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    with loader.connect(str(tmp_path / "lake")) as lake:
        table, stop = open_table(lake), threading.Event()
        report = replay(table, events, stop=stop, after_round=lambda progress: stop.set() if progress.rows["samples"] >= 300 else None)
        assert report.stopped and 300 <= table.describe()["num_rows"] < ROWS
        assert not replay(table, events).stopped
        assert contents(table).equals(undisturbed)


def test_two_sources_of_one_name_are_refused(events: Path, tmp_path: Path) -> None:
    with loader.connect(str(tmp_path / "lake")) as lake:
        stream = Stream(source=FileSource("samples", events / "samples"), time_column="ts")
        with pytest.raises(ValueError, match="rename one"):
            run(open_table(lake), [stream, stream], pipeline="test")


def test_files_of_one_stream_may_differ_in_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "ts": pa.array([5], pa.timestamp("s")), "price": pa.array([2], pa.int64())}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"id": [2], "ts": pa.array([6], pa.timestamp("s")), "price": pa.array([0.5], pa.float64())}), tmp_path / "1.parquet")
    with loader.connect(tmp_path / "lake") as lake:
        table = open_table(lake)
        run(table, [Stream(source=FileSource("samples", tmp_path), time_column="ts")], pipeline="test")
        assert table.to_arrow(columns=["id", "price"]).to_pylist() == [{"id": 1, "price": 2.0}, {"id": 2, "price": 0.5}]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"id": ["x"], "ts": pa.array([5], pa.timestamp("s"))}, SchemaError, "0.parquet: column 'id' is string and the table wants int64"),
        (
            {"id": [1], "ts": pa.array([5_000_000_001], pa.timestamp("ns"))},
            SchemaError,
            r"time column 'ts' is timestamp.ns. and the table wants",
        ),
        ({"id": [1], "ts": pa.array([None], pa.timestamp("s"))}, SchemaError, "time column 'ts' holds 1 nulls"),
        ({"id": [1]}, ColumnNotFoundError, "time column 'ts' is not in the events"),
    ],
)
def test_events_that_do_not_fit_are_one_line(tmp_path: Path, columns: dict[str, object], error: type[Exception], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    with loader.connect(tmp_path / "lake") as lake, pytest.raises(error, match=message) as caught:
        run(open_table(lake), [Stream(source=FileSource("samples", tmp_path), time_column="ts")], pipeline="test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("0.parquet", b"PAR1 no"), ("0.csv", b""), ("0.arrow", b"ARROW1")])
def test_a_file_that_is_broken_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with loader.connect(tmp_path / "lake") as lake, pytest.raises(SchemaError, match=name) as caught:
        run(open_table(lake), [Stream(source=FileSource("samples", tmp_path / name), time_column="ts")], pipeline="test")
    assert "\n" not in str(caught.value)
