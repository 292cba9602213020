"""What a user of a table sees: appends, patches, time travel, labels, offsets, and errors that say what to do."""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import loader
from loader import SourceOffsets, failpoints
from loader.errors import (
    AlreadyExistsError,
    ColumnNotFoundError,
    ConflictError,
    FencedError,
    ForkedProcessError,
    KeyExistsError,
    NotFoundError,
    SchemaError,
    SnapshotNotFoundError,
    StorageFullError,
    TableNotFoundError,
)
from loader.lake import Lake
from tests.table.samples import HOUR, SCHEMA, create, labels, rows


def column(table: Any, name: str, **read: Any) -> dict[int, Any]:
    found = table.to_arrow(["item", name], **read)
    return dict(zip(found["item"].to_pylist(), found[name].to_pylist(), strict=True))


@pytest.mark.usefixtures("in_buckets")
def test_rows_come_back_as_they_were_written(lake: Lake) -> None:
    table = create(lake, partition_by="hour")
    data = rows(0, 300)
    snapshot = table.append(data)
    assert (snapshot.id, snapshot.num_rows, snapshot.kind) == (1, 300, "append")
    assert table.to_arrow().sort_by("item").equals(data)
    assert table.to_arrow(["history", "user"]).column_names == ["history", "user"]
    assert {(ref.bucket, ref.partition) for ref in table.view().segments} >= {(0, 0), (1, 4)}


@pytest.mark.parametrize("form", ["batch", "reader", "path", "pathlib", "shuffled columns", "narrow types"])
def test_takes_data_in_every_form(lake: Lake, tmp_path: Path, form: str) -> None:
    data = rows(0, 20)
    pq.write_table(data, tmp_path / "x.parquet")
    given = {
        "batch": data.to_batches()[0],
        "reader": pa.RecordBatchReader.from_batches(data.schema, data.to_batches(max_chunksize=7)),
        "path": str(tmp_path / "x.parquet"),
        "pathlib": tmp_path / "x.parquet",
        "shuffled columns": data.select(sorted(data.column_names)),
        "narrow types": data.set_column(1, "item", data["item"].cast(pa.int16())),
    }[form]
    table = create(lake)
    table.append(given)
    assert table.to_arrow().sort_by("item").equals(data)


def test_a_key_that_exists_is_refused_and_nothing_is_written(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    with pytest.raises(KeyExistsError, match=r"3 of 5 keys are in table 'samples' already, the first is \(user 0, item 7\)"):
        table.append(rows(7, 12))
    with pytest.raises(KeyExistsError, match=r"\(user 4, item 11\) stands twice in the data"):
        table.append(pa.concat_tables([rows(10, 12), rows(11, 13)]))
    assert table.to_arrow().num_rows == 10 and len(table.history()) == 1


def test_a_label_waits_for_its_row(lake: Lake) -> None:
    table = create(lake)
    held = table.patch(labels([3, 50], label=[1, 1], clicks=[2, 7]))
    assert held.summary["labels_held"] == 2 and table.describe()["num_pending"] == 2
    table.patch(labels([3], clicks=[10]))
    met = table.append(rows(0, 10))
    assert met.summary["labels_met"] == 2
    assert column(table, "clicks")[3] == 12 and column(table, "label")[3] == 1
    assert table.describe()["num_pending"] == 1
    table.append(rows(50, 51), on_conflict="trust")
    assert column(table, "clicks")[50] == 7
    assert table.describe()["num_pending"] == 0


def test_a_dropped_label_is_gone(lake: Lake) -> None:
    table = create(lake)
    snapshot = table.patch(labels([3], clicks=[2]), on_missing="drop")
    assert snapshot.summary["labels_dropped"] == 1
    table.append(rows(0, 10))
    assert column(table, "clicks")[3] == 0


def test_last_follows_the_order_not_arrival_even_across_compaction(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    table.patch(labels([1, 2], label=[5, 5], at=[20, 20]), order="at")
    table.compact(full=True)
    table.patch(labels([1, 2], label=[6, 6], at=[10, 30]), order="at")
    assert (column(table, "label")[1], column(table, "label")[2]) == (5, 6)
    table.compact(full=True)
    table.patch(labels([1, 2, 2], label=[7, 7, 8], at=[21, 29, 30]), order="at")
    assert (column(table, "label")[1], column(table, "label")[2]) == (7, 8)


def test_a_null_operand_leaves_its_column_alone(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 3))
    table.patch(labels([1, 1], label=pa.array([4, None], pa.int8()), clicks=pa.array([None, 3], pa.int64())))
    assert column(table, "label")[1] == 4 and column(table, "clicks")[1] == 3


def test_time_travel_by_number_tag_and_snapshot(lake: Lake) -> None:
    table = create(lake)
    first = table.append(rows(0, 5))
    assert table.tag("baseline") == 1
    table.patch(labels([1], clicks=[9]))
    table.compact(full=True)
    for snapshot in (1, "baseline", first):
        assert column(table, "clicks", snapshot=snapshot)[1] == 0
    assert column(table, "clicks")[1] == 9
    assert table.to_arrow(snapshot=0).num_rows == 0
    assert [entry.kind for entry in table.history()] == ["append", "patch", "compact"]
    assert table.tags() == {"baseline": 1}
    with pytest.raises(AlreadyExistsError, match="stands at snapshot 1"):
        table.tag("baseline", 2)
    with pytest.raises(SnapshotNotFoundError, match="did you mean baseline"):
        table.to_arrow(snapshot="baselin")
    with pytest.raises(SnapshotNotFoundError, match="it has 1 to 3"):
        table.to_arrow(snapshot=99)
    with pytest.raises(ValueError, match="snapshot 1 is of table 'other', not of 'samples'"):
        table.to_arrow(snapshot=create(lake, "other").append(rows(0, 1)))


def test_a_missing_label_reads_as_its_default_once_its_window_closed(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 120), watermark=100 * 60)
    table.patch(labels([3, 110], label=[1, 1]))
    found = column(table, "label")
    assert found[3] == 1 and found[40] == 0 and found[41] is None and found[110] == 1
    closed = table.to_arrow(["item", "label"], closed_before="watermark")
    assert sorted(closed["item"].to_pylist()) == list(range(41)) and closed["label"].null_count == 0
    assert table.to_arrow(["label"], closed_before=datetime.datetime(1970, 1, 1, 1, 30)).num_rows == 31
    with pytest.raises(ValueError, match="after the watermark"):
        table.to_arrow(closed_before=101 * 60)
    assert table.append(rows(120, 121), watermark=50).watermark == 100 * 60, "a watermark never goes back"
    assert column(table, "label", where="item > 39 and label is null").keys() == set(range(41, 121)) - {110}


def test_where_sees_patched_values(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 30))
    table.patch(labels([4, 9], clicks=[3, 5]))
    assert table.to_arrow(["item"], where="clicks > 3")["item"].to_pylist() == [9]


def test_the_same_commit_id_twice_is_one_commit(lake: Lake) -> None:
    table = create(lake)
    first = table.append(rows(0, 5), commit_id="load-1")
    assert table.append(rows(0, 5), commit_id="load-1") == first
    bump = table.patch(labels([1], clicks=[2]), commit_id="bump")
    assert table.patch(labels([1], clicks=[2]), commit_id="bump") == bump
    assert column(table, "clicks")[1] == 2 and len(table.history()) == 2


def test_replayed_offsets_double_nothing(lake: Lake) -> None:
    table = create(lake)

    def offsets(start: int, end: int, epoch: int = 0) -> SourceOffsets:
        return SourceOffsets("pipe", "clicks", {0: (start, end)}, epoch)

    table.append(rows(0, 5), offsets=offsets(0, 5))
    bump = table.patch(labels([1], clicks=[2]), offsets=offsets(5, 6))
    assert table.append(rows(0, 5), offsets=offsets(0, 5)).id == bump.id
    assert table.patch(labels([1], clicks=[2]), offsets=offsets(5, 6)) == bump
    assert column(table, "clicks")[1] == 2
    assert table.offsets("pipe", "clicks") == {"0": 6} and table.offsets("other", "clicks") == {}
    with pytest.raises(ConflictError, match="neither continue nor repeat"):
        table.append(rows(5, 9), offsets=offsets(4, 9))
    table.append(rows(5, 9), offsets=offsets(6, 9, epoch=2))
    with pytest.raises(FencedError, match="newer owner"):
        table.append(rows(9, 10), offsets=offsets(9, 10, epoch=1))
    assert table.to_arrow().num_rows == 9


def test_offsets_may_be_numpy_integers(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 5), offsets=SourceOffsets("p", "s", {0: (np.int64(0), np.int64(5))}, epoch=np.int64(1)))  # type: ignore[arg-type]
    table.append(rows(5, 9), offsets=SourceOffsets("p", "s", {0: (5, 9)}, epoch=1))
    assert table.offsets("p", "s") == {"0": 9}


def test_large_commits_make_files_and_small_ones_none(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    folder = Path(lake.location)
    assert not list(folder.glob("data/**/*.hr"))
    table.append(rows(10, 40_000))
    assert len(list(folder.glob("data/**/*.hr"))) == 1, "one file a commit, whatever the number of buckets"
    assert {ref.path.split("/")[0] for ref in table.view().segments} == {"inline", "data"}
    assert table.to_arrow(["item"]).num_rows == 40_000


def test_no_space_commits_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake)
    table.append(rows(0, 10))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loader.storage.write_file", full)
    with pytest.raises(StorageFullError, match="bytes wanted"):
        table.append(rows(10, 40_000))
    monkeypatch.undo()
    assert table.to_arrow().num_rows == 10
    assert table.append(rows(10, 40_000)).num_rows == 40_000


def test_sections_are_in_cluster_order(lake: Lake) -> None:
    table = create(lake, buckets=1)
    shuffled = rows(0, 50).take(pa.array([(i * 17) % 50 for i in range(50)]))
    table.append(shuffled)
    got = table.to_arrow(["user", "item"])
    assert list(zip(got["user"].to_pylist(), got["item"].to_pylist(), strict=True)) == sorted((i % 7, i) for i in range(50))


def test_empty_writes_still_move_offsets_and_watermark(lake: Lake) -> None:
    table = create(lake)
    snapshot = table.append(rows(0, 0), watermark=500, offsets=SourceOffsets("p", "s", {"a": (0, 4)}))
    assert (snapshot.num_rows, snapshot.watermark, table.offsets("p", "s")) == (0, 500, {"a": 4})
    table.patch(labels([], clicks=pa.array([], pa.int64())).cast(pa.schema([("user", pa.int64()), ("item", pa.int64()), ("clicks", pa.int64())])))
    assert table.to_arrow().num_rows == 0 and table.to_arrow().schema.names == SCHEMA.names


def test_describe_and_bytes_by_column(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 1000), watermark=HOUR)
    found = table.describe()
    assert (found["num_rows"], found["watermark"], found["durability"], found["merge"]) == (1000, HOUR, "strict", {"clicks": "sum"})
    sizes = table.bytes_by_column()
    assert set(sizes) == set(SCHEMA.names) and all(size > 0 for size in sizes.values())


WRONG_WRITES = [
    (lambda t: t.append(rows(0, 2).drop_columns(["ts"]).append_column("when", pa.array([1, 2]))), ColumnNotFoundError, "no column 'when'"),
    (lambda t: t.append(rows(0, 2).set_column(0, "user", pa.array(["a", "b"]))), SchemaError, "column 'user': string does not cast"),
    (lambda t: t.append(rows(0, 2).set_column(0, "user", pa.array([1, None]))), SchemaError, "primary key column 'user'"),
    (lambda t: t.append(rows(0, 2).drop_columns(["ts"])), SchemaError, "time column 'ts'"),
    (lambda t: t.append([1, 2]), ValueError, "give a pyarrow Table"),
    (lambda t: t.append(rows(0, 2), on_conflict="replace"), ValueError, "on_conflict is 'check'"),
    (lambda t: t.append(rows(0, 2), watermark="soon"), ValueError, "'soon' is not a time"),
    (lambda t: t.append(rows(0, 2), watermark=3.5), ValueError, "3.5 is not a time"),
    (lambda t: t.append(rows(0, 2), watermark=1 << 70), ValueError, "which has 64 bits"),
    (lambda t: t.append(rows(0, 2).append_column("user", pa.array([1, 2]))), SchemaError, "column 'user' stands twice in the data"),
    (lambda t: t.append("nowhere.parquet"), NotFoundError, "no Parquet file nowhere.parquet"),
    (lambda t: t.patch(pa.table({"item": [1], "label": [1]})), SchemaError, r"the data lacks \['user'\]"),
    (lambda t: t.patch(labels([1])), SchemaError, "needs a column to set"),
    (lambda t: t.patch(labels([1], ts=[5])), SchemaError, "decides where a row"),
    (lambda t: t.patch(labels([1], clicks=[1]), columns=["label"]), ColumnNotFoundError, "no column 'label' to patch"),
    (lambda t: t.patch(labels([1], clicks=[1]), order="at"), ColumnNotFoundError, "no order column 'at'"),
    (lambda t: t.patch(labels([1], clicks=[1]), on_missing="insert"), ValueError, "on_missing is 'hold'"),
    (lambda t: t.patch(labels([1], clicks=["many"])), SchemaError, "column 'clicks'"),
    (lambda t: t.to_arrow(["clikcs"]), ColumnNotFoundError, "did you mean clicks"),
    (lambda t: t.to_arrow(["user", "user"]), ValueError, "each once"),
    (lambda t: t.to_arrow([]), ValueError, "at least one column"),
    (lambda t: t.to_arrow(closed_before="watermark"), ValueError, "no watermark yet"),
    (lambda t: t.tag("7"), ValueError, "not a name for a tag"),
    (lambda t: t.tag("v1"), SnapshotNotFoundError, "no snapshot to tag"),
    (lambda t: SourceOffsets("p", "s", {0: (5, 3)}), ValueError, r"\(5, 3\) is not a range"),
    (lambda t: SourceOffsets("p", "s", {0: (5, 1 << 63)}), ValueError, r"9223372036854775808\) is not a range"),
]


@pytest.mark.parametrize(("write", "error", "text"), WRONG_WRITES, ids=[text for _, _, text in WRONG_WRITES])
def test_wrong_uses_say_what_to_do(lake: Lake, write: Any, error: type[Exception], text: str) -> None:
    table = create(lake)
    with pytest.raises(error, match=text):
        write(table)
    assert table.history() == []


WRONG_TABLES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"primary_key": ["usr"]}, ColumnNotFoundError, "did you mean user"),
    ({"primary_key": "user"}, ValueError, "primary_key is a list"),
    ({"primary_key": ["history"]}, SchemaError, "use integers"),
    ({"buckets": 0}, ValueError, "buckets must be from 1"),
    ({"buckets": 2.5}, ValueError, "a whole number, not 2.5"),
    ({"cluster_by": ["history"]}, SchemaError, "has no order"),
    ({"time_column": "history"}, SchemaError, "use a timestamp"),
    ({"partition_by": "year"}, ValueError, "partition_by is one of hour, day"),
    ({"merge": {"history": "sum"}}, SchemaError, "needs a number"),
    ({"attribution": loader.Attribution("label", 5, default="no")}, SchemaError, "attribution default"),
    ({"attribution": loader.Attribution("label", 5, default=np.int8(0))}, SchemaError, "not JSON serializable"),
    ({"attribution": loader.Attribution("label", 0.5)}, ValueError, "window_seconds must be a whole number"),  # type: ignore[arg-type]
    ({"durability": "maybe"}, ValueError, "durability is"),
    ({"name": "no spaces"}, ValueError, "table name"),
]


@pytest.mark.parametrize(("options", "error", "text"), WRONG_TABLES, ids=[text for _, _, text in WRONG_TABLES])
def test_a_wrong_definition_is_refused(lake: Lake, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        create(lake, **options)
    assert lake.tables() == []


def test_tables_are_found_by_name(lake: Lake) -> None:
    create(lake)
    with pytest.raises(AlreadyExistsError, match="already there"):
        create(lake)
    with pytest.raises(TableNotFoundError, match="did you mean samples"):
        lake.table("sample")
    stale = lake.table("samples")
    stale.append(rows(0, 3))
    lake.drop_table("samples")
    assert lake.tables() == []
    with pytest.raises(TableNotFoundError, match="was dropped"):
        stale.append(rows(3, 4))
    assert create(lake).to_arrow().num_rows == 0


def test_handles_pickle_by_location_and_refuse_a_fork(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 4))
    again = pickle.loads(pickle.dumps(table))
    assert again.to_arrow().num_rows == 4
    assert pickle.loads(pickle.dumps(lake.storage)).url == lake.storage.url
    child = os.fork()
    if child == 0:
        try:
            table.to_arrow()
        except ForkedProcessError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    table.append(rows(4, 5))


def test_public_names_are_sorted_and_there() -> None:
    assert loader.__all__ == sorted(loader.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        loader.nothing  # noqa: B018


@pytest.mark.parametrize("write", ["append", "patch", "upsert", "delete", "overwrite", "delete where", "backfill"])
def test_the_same_commit_id_by_two_at_once_is_one_commit(lake: Lake, make_lake: Callable[..., Lake], write: str) -> None:
    """The second is under way, resolved and staged, when the first is committed: it has the first's snapshot, not an error, and counts once."""
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    bump = labels([1, 2], clicks=[2, 3])
    moved = rows(1, 12).drop_columns(["history", "label"])
    place, run = {
        "append": ("append.resolved", lambda one: one.append(rows(10, 15), commit_id="mine")),
        "patch": ("patch.staged", lambda one: one.patch(bump, commit_id="mine")),
        "upsert": ("upsert.staged", lambda one: one.upsert(moved, commit_id="mine")),
        "delete": ("delete.staged", lambda one: one.delete(labels([3]), commit_id="mine")),
        "overwrite": ("overwrite.staged", lambda one: one.overwrite(rows(20, 22), "item > 7", commit_id="mine")),
        "delete where": ("delete.staged", lambda one: one.delete("item = 4", commit_id="mine")),
        "backfill": ("backfill.staged", lambda one: one.backfill(bump, commit_id="mine")),
    }[write]
    first: list[Any] = []

    def meanwhile() -> None:
        if not first:
            first.append(None)
            first[0] = run(other)

    with failpoints.armed(place, meanwhile):
        assert run(table) == first[0]
    assert [entry.commit_id for entry in table.history()].count("mine") == 1 and len(table.history()) == 2
    assert table.view().num_rows == table.to_arrow().num_rows == table.history()[-1].num_rows
    if write in ("patch", "backfill"):
        assert [column(table, "clicks")[item] for item in (0, 1, 2)] == [0, 2, 3]
    assert lake.doctor(deep=True).is_clean


@pytest.mark.parametrize("kind", ["int8", "float16", "bfloat16"])
def test_no_statistics_hide_values_that_were_rounded_when_they_were_stored(lake: Lake, kind: str) -> None:
    """A value may be rounded beyond the largest that was given; a predicate selects by what a read shows."""
    values = np.random.default_rng(3).normal(0, 10, 300).astype(np.float32)
    schema = pa.schema([pa.field("item", pa.int64()), pa.field("x", pa.float32(), metadata={"headrace.quantise": kind})])
    table = lake.create_table("rounded", schema, primary_key=["item"])
    for start in range(0, 300, 100):
        table.append(pa.table({"item": np.arange(start, start + 100), "x": values[start : start + 100]}, schema=schema))
    for _ in range(2):
        shown = table.to_arrow()["x"].to_numpy()
        for limit in (shown.max(), np.sort(shown)[-2], shown.min()):
            text = f"x >= {float(limit)!r}"
            assert table.to_arrow(where=text).num_rows == int((shown >= limit).sum())
            batches = loader.DataLoader(table.scan(columns=["x"], where=text), global_batch_size=1, rank=0, world_size=1, remainder="uneven")
            assert sum(len(batch) for batch in batches) == int((shown >= limit).sum())
        assert lake.doctor(deep=True).is_clean
        table.compact(full=True)


def test_a_handle_of_a_dropped_table_never_becomes_one_of_the_next_of_that_name(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake()
    table.append(rows(0, 5))
    other.drop_table("samples")
    create(other).append(rows(10, 13))
    for call in (table.compact, lambda: table.append(rows(5, 6)), lambda: table.erase([(3, 10)]), table.to_arrow, lambda: table.drop_column("label")):
        with pytest.raises(TableNotFoundError, match="table 'samples' was dropped"):
            call()
    assert lake.table("samples").to_arrow().num_rows == 3
