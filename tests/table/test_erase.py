"""Erasure: what was erased is nowhere any more, in no snapshot, file or catalog; every other row is as it was; and the proof says so."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loader
from loader import failpoints
from loader.catalog.commit import STAGED_LEASE_SECONDS, TABLES_WITH_PATHS, now_micros
from loader.catalog.garbage import collect
from loader.errors import CorruptSegmentError, SchemaError
from loader.lake import Lake
from loader.scan.encoded import FetchRequest
from loader.table.erasure.proof import ErasureProof
from loader.table.table import Table
from tests.table import processes

NOW = datetime.timedelta(0)
SCHEMA = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("ts", pa.timestamp("s"), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("pair", pa.list_(pa.int64(), 2), nullable=False),
        pa.field("history", pa.list_(pa.int32())),
        pa.field("score", pa.float64()),
        pa.field("clicks", pa.int64()),
        pa.field("comment", pa.string()),
    ]
)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 6000)


def marker(number: int, what: str) -> str:
    """A text of one row's that nothing else holds and no encoding shortens."""
    return f"{what}{number}-{np.random.default_rng(number).bytes(12).hex()}"


def samples(numbers: Iterable[int]) -> pa.Table:
    at = list(numbers)
    return pa.table(
        {
            "user": [number % 5 for number in at],
            "item": [f"item-{number}" for number in at],
            "ts": pa.array([number * 3600 for number in at]).cast(pa.timestamp("s")),
            "note": [marker(number, "note") for number in at],
            "pair": pa.array([[number, -number] for number in at], pa.list_(pa.int64(), 2)),
            "history": pa.array([list(range(number % 4)) for number in at], pa.list_(pa.int32())),
            "score": [number / 3 for number in at],
            "clicks": pa.array([0] * len(at), pa.int64()),
            "comment": pa.nulls(len(at), pa.string()),
        },
        schema=SCHEMA,
    )


def comments(numbers: Iterable[int], what: str = "comment") -> pa.Table:
    at = list(numbers)
    return pa.table(
        {
            "user": [n % 5 for n in at],
            "item": [f"item-{n}" for n in at],
            "comment": [marker(n, what) for n in at],
            "clicks": pa.array([1] * len(at), pa.int64()),
        }
    )


def keys(numbers: Iterable[int]) -> list[tuple[int, str]]:
    return [(number % 5, f"item-{number}") for number in numbers]


def create(lake: Lake, **options: Any) -> Table:
    given = {"primary_key": ["user", "item"], "bucket_by": ["user"], "buckets": 2, "cluster_by": ["user", "ts"], "time_column": "ts", "partition_by": "week"}
    return lake.create_table("people", SCHEMA, **given | {"merge": {"clicks": "sum"}} | options)


def numbers_in(read: pa.Table) -> list[int]:
    return sorted(int(item.removeprefix("item-")) for item in read["item"].to_pylist())


def everything_stored(lake: Lake) -> bytes:
    """All bytes of the lake: files, and what the catalog holds of its own, decoded and as it lies on disk."""
    found = [path.read_bytes() for path in Path(lake.location).rglob("*") if path.is_file()]
    with lake.database.read() as connection:
        found += [bytes(data) for (data,) in connection.execute("select data from inline_data")]
        for name in ("overlays", "segments", "pending", "snapshots", "erasures", "garbage", "staged", "selections", "column_files"):
            found.append(repr(connection.execute(f"select * from {name}").fetchall()).encode())
        places = {place for name in TABLES_WITH_PATHS for place in connection.execute(f"select path, section_offset, num_bytes from {name}").fetchall()}
    for path, offset, num_bytes in places:
        read = loader.SegmentReader(lake.storage.section(path, offset, num_bytes)).read()
        found.append(repr(read.to_pydict()).encode())
    return b"\n".join(found)


def assert_gone(lake: Lake, table: Table, gone: Iterable[int], stays: Iterable[int] = ()) -> None:
    stored = everything_stored(lake)
    for number in gone:
        for what in ("note", "comment", "late"):
            assert marker(number, what).encode() not in stored, f"{what} of row {number} is still stored"
    for number in stays:
        assert marker(number, "note").encode() in stored
    for snapshot in table.history():
        assert not set(numbers_in(table.to_arrow(snapshot=snapshot))) & set(gone)


def build(lake: Lake, **options: Any) -> Table:
    """Rows fresh, patched, compacted, backfilled, evolved, deleted; a tag half-way; labels that wait."""
    table = create(lake, **options)
    table.append(samples(range(60)))
    table.patch(comments([3, 7, 20, 100]))
    table.compact(full=True)
    table.append(samples(range(60, 90)))
    table.tag("half")
    table.patch(comments([7, 61, 62, 101], "late"))
    table.add_column(pa.field("extra", pa.int32()), default=4)
    wide = pa.table({**{name: samples(range(90))[name] for name in ("user", "item")}, "later": pa.array(range(90))})
    table.backfill(wide)
    table.delete(keys([8, 63]))
    return table


GONE = (3, 7, 8, 61, 100, 5000)


def test_what_was_erased_is_gone_from_every_snapshot_file_and_the_catalog(lake: Lake) -> None:
    table = build(lake)
    assert all(marker(number, "note").encode() in everything_stored(lake) for number in (3, 7, 8, 61))
    shown = {snapshot.id: table.to_arrow(snapshot=snapshot) for snapshot in table.history()}
    proof = table.erase(keys(GONE), due=NOW)
    assert proof.is_complete and len(proof.key_hashes) == len(GONE) and not proof.verify(lake)
    assert_gone(lake, table, GONE, stays=[4, 6, 62])
    for snapshot, before in shown.items():
        kept = before.filter(pa.compute.invert(pa.compute.is_in(before["item"], pa.array([key[1] for key in keys(GONE)]))))
        assert table.to_arrow(snapshot=snapshot).equals(kept), f"snapshot {snapshot} lost more than what was erased"
    assert table.lookup(keys([3, 4]), ["note"], snapshot="half")["note"].to_pylist() == [None, marker(4, "note")]
    table.append(samples([100, 101]))
    read = table.lookup(keys([100, 101]), ["comment"])["comment"].to_pylist()
    assert read == [None, marker(101, "late")], "the label that waited for an erased key is gone, others are met"
    table.compact(full=True)
    assert numbers_in(table.to_arrow()) == sorted((set(range(90)) - set(GONE) - {63}) | {100, 101})


def test_what_is_in_memory_is_let_go(make_lake: Callable[..., Lake]) -> None:
    table, other = build(make_lake()), make_lake().table("people")
    warm = [handle.lookup(keys([3, 4]), ["note"], snapshot=at)["note"][0].as_py() for handle in (table, other) for at in (None, "half")]
    assert warm == [marker(3, "note")] * 4
    table.erase(keys([3]), due=NOW)
    for handle in (table, other):  # the other one knows the old places
        for at in (None, "half"):
            assert handle.lookup(keys([3, 4]), ["note"], snapshot=at)["note"].to_pylist() == [None, marker(4, "note")]
    other.patch(comments([4, 3]))
    other.append(samples([3]))
    assert other.lookup(keys([3, 4]), ["comment"])["comment"].to_pylist() == [marker(3, "comment"), marker(4, "comment")]


def test_a_proof_is_plain_json_that_a_change_breaks(lake: Lake, tmp_path: Path) -> None:
    table, secret = build(lake), b"0123456789abcdef"
    proof = table.erase(keys(GONE), signing_key=secret)
    assert proof.state == "rewritten" and proof.rewritten and {path for path, _ in proof.rewritten} <= {path for path, _ in proof.waiting}
    assert not any(f"item-{number}" in proof.to_json() for number in GONE), "a proof names no key"
    proof.save(tmp_path / "proof.json")
    assert ErasureProof.load(tmp_path / "proof.json") == proof
    assert proof.verify(lake, signing_key=secret) == [] == proof.verify(lake, keys=keys(GONE), signing_key=secret)
    assert "signed with hmac-sha256" in proof.verify(lake)[0]
    assert "does not match" in dataclasses.replace(proof, head=1).verify(lake, signing_key=secret)[0]
    assert proof.verify(lake, keys=keys([4]), signing_key=secret) == ["these are not the keys that the proof is about"]
    complete = table.erase(keys(reversed(GONE)), due=NOW, signing_key=secret)
    assert complete.is_complete and complete.erasure_id == proof.erasure_id
    assert table.erase(keys(GONE)) == complete, "the same keys again give the same proof"
    with pytest.raises(ValueError, match="no proof of an erasure"):
        ErasureProof.from_json('{"format": "another"}')
    with pytest.raises(ValueError, match="at least 16 bytes"):
        table.erase(keys([4]), signing_key=b"short")


def test_a_row_that_comes_later_under_an_erased_key_is_a_new_row(lake: Lake) -> None:
    table = build(lake)
    first = table.erase(keys([3]), due=NOW)
    table.append(samples([3]))
    assert first.verify(lake) == [], "new rows are no fault of the proof"
    table.compact(full=True)
    assert first.verify(lake) == [] and 3 in numbers_in(table.to_arrow())
    second = table.erase(keys([3]), due=NOW)
    assert second.erasure_id != first.erasure_id and second.verify(lake) == []
    assert_gone(lake, table, [3], stays=[4])


def test_a_verification_finds_what_was_not_erased(lake: Lake) -> None:
    """A proof that claims more than is true is refused by the rows themselves."""
    table = build(lake)
    proof = table.erase(keys([3]), due=NOW)
    from loader.table.erasure.proof import key_hashes
    from loader.table.lookup import key_table
    from loader.table.rows import key_words

    hashes = key_hashes(key_words(table.spec, key_table(table.spec, keys([3, 20]))), proof.salt(None))
    false = dataclasses.replace(proof, key_hashes=tuple(sorted(hashes))).signed(None)
    assert any("holds 1 rows of erased keys" in line for line in false.verify(lake))


def test_a_where_selects_rows_of_every_kept_snapshot(lake: Lake) -> None:
    table = build(lake)
    table.upsert(comments([20]).append_column("ts", samples([20])["ts"]).set_column(2, "comment", pa.array(["changed"])))
    proof = table.erase(where=f"user = 4 or comment = '{marker(20, 'comment')}'", due=NOW)
    gone = [20, *range(4, 90, 5)]
    assert len(proof.key_hashes) == len(gone)
    assert_gone(lake, table, gone, stays=[1])
    with pytest.raises(ValueError, match="one of the two"):
        table.erase()
    with pytest.raises(SchemaError):
        table.erase([1, 2])


def test_positions_of_a_pinned_job_do_not_move(lake: Lake) -> None:
    table = create(lake, buckets=1, partition_by=None)
    for start in range(0, 400, 100):
        table.append(samples(range(start, start + 100)))
    plan = table.scan(columns=["item", "clicks", "comment"]).plan()
    order = [int(key["segment_id"]) for key in plan.blocks]
    fetcher = plan.fetcher()
    fetcher.fetch(FetchRequest(sequence=0, shard=0, block=0))
    table.erase(keys([5, 105, 250]), due=NOW)
    counts = [fetcher.fetch(FetchRequest(sequence=0, shard=0, block=block)).num_rows for block in range(plan.num_blocks)]
    assert counts == [100] * 4, "a running job reads on, from where its segments lie now"
    again = table.scan(columns=["item", "clicks", "comment"], snapshot=plan.snapshot).plan()
    assert again.num_rows == 400 and [int(key["segment_id"]) for key in again.blocks] == order, "and one that resumes has the same plan"
    assert table.scan(columns=["item"]).plan().num_rows == 397 == table.to_arrow().num_rows
    assert table.to_arrow(snapshot=plan.snapshot).num_rows == 397


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.int64(), pa.bool_(), pa.date32(), pa.date64(), pa.timestamp("us"), pa.binary(), pa.large_string()])
def test_keys_of_every_type(lake: Lake, kind: pa.DataType) -> None:
    numbers = [0, 1] if pa.types.is_boolean(kind) else list(range(20))
    if pa.types.is_boolean(kind):
        values = pa.array([False, True])
    elif pa.types.is_temporal(kind):
        values = pa.array([day * (86_400_000 if pa.types.is_date64(kind) else 1) for day in numbers], pa.int32() if kind.bit_width == 32 else pa.int64()).view(
            kind
        )
    else:
        values = pa.array([str(number) for number in numbers]).cast(kind) if not pa.types.is_integer(kind) else pa.array(numbers, kind)
    table = lake.create_table("keyed", pa.schema([("key", kind), ("note", pa.string())]), primary_key=["key"])
    table.append(pa.table({"key": values, "note": [marker(number, "note") for number in numbers]}))
    table.tag("all")
    assert table.erase(values.slice(0, 1), due=NOW).verify(lake) == []
    assert table.to_arrow(snapshot="all")["note"].to_pylist() == [marker(number, "note") for number in numbers[1:]]
    assert marker(0, "note").encode() not in everything_stored(lake)
    if not pa.types.is_boolean(kind):  # of which no value would be left for a blank row
        table.erase(values, due=NOW)
        assert table.to_arrow().num_rows == table.to_arrow(snapshot="all").num_rows == 0


FAILPOINTS = [name for name in failpoints.NAMES if name.startswith("erase.")] + ["commit.begun", "commit.written", "commit.committed", "garbage.deleted"]


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_anywhere_the_next_call_goes_on(tmp_path: Path, catalog: str | None, failpoint: str) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        table = create(lake, buckets=1)
        table.append(samples(range(70)))
        table.patch(comments([3, 7, 100]))
        table.tag("first")
        before = numbers_in(table.to_arrow())

    def erasing() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("people")
        left = [2 if failpoint in ("erase.written", "erase.rewritten") else 1]

        def count_down() -> None:
            left[0] -= 1
            if left[0] == 0:
                processes.kill_self()

        with failpoints.armed(failpoint, count_down):
            table.erase(keys(GONE), due=NOW)

    assert processes.wait(processes.start(erasing)) == -9
    with loader.connect(tmp_path, catalog=catalog) as lake:
        table = lake.table("people")
        assert set(before) - set(GONE) <= set(numbers_in(table.to_arrow())), "nothing else is lost half-way"
        proof = table.erase(keys(GONE), due=NOW)
        assert proof.is_complete and proof.verify(lake) == []
        collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)
        assert [str(one) for one in lake.doctor(deep=True).findings] == []
        assert_gone(lake, table, GONE, stays=[4, 62])
        assert numbers_in(table.to_arrow()) == sorted(set(before) - set(GONE))
        with lake.database.read() as connection:
            known = {path for name in TABLES_WITH_PATHS for (path,) in connection.execute(f"select path from {name} where path like 'data/%'")}
        assert {str(path.relative_to(lake.location)) for path in Path(lake.location).glob("data/**/*") if path.is_file()} == known


def test_beside_writers_compaction_and_readers(tmp_path: Path, catalog: str | None) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake).append(samples(range(200)))
        lake.table("people").tag("start")

    def writer() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("people")
        for turn in range(8):
            table.patch(comments(range(50, 200), "late").drop_columns(["clicks"]))
            table.append(samples(range(1000 + 10 * turn, 1010 + 10 * turn)))

    def compactor() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("people")
        for _ in range(5):
            table.compact(full=True)

    def reader() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("people")
        for _ in range(10):
            assert set(range(50, 200)) <= set(numbers_in(table.to_arrow(["item"], snapshot="start")))

    def eraser(first: int) -> Callable[[], None]:
        def run() -> None:
            table = loader.connect(tmp_path, catalog=catalog).table("people")
            for start in range(first, 50, 20):
                table.erase(keys(range(start, start + 10)))

        return run

    children = [processes.start(work) for work in (writer, compactor, reader, eraser(0), eraser(10))]
    assert [processes.wait(child) for child in children] == [0] * 5
    with loader.connect(tmp_path, catalog=catalog) as lake:
        table = lake.table("people")
        for start in range(0, 50, 10):
            proof = table.erase(keys(range(start, start + 10)), due=NOW)
            assert proof.verify(lake) == []
        assert numbers_in(table.to_arrow()) == [*range(50, 200), *range(1000, 1080)]
        collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)
        lake.database.scrub()
        assert_gone(lake, table, range(50), stays=[50, 1079])


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "patch", "delete", "compact", "upsert", "tag"]), st.sets(st.integers(0, 30), min_size=1, max_size=8)), max_size=9
    ),
    st.sets(st.integers(0, 30), min_size=1, max_size=10),
)
def test_after_any_history_nothing_stored_holds_an_erased_row(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, set[int]]], gone: set[int]
) -> None:
    with loader.connect(tmp_path_factory.mktemp("lake")) as lake:
        table = create(lake, buckets=1)
        there: set[int] = set()
        for number, (what, some) in enumerate(steps):
            if what == "append" and some - there:
                table.append(samples(sorted(some - there)))
                there |= some
            elif what == "upsert":
                table.upsert(samples(sorted(some)))
                there |= some
            elif what == "patch":
                table.patch(comments(sorted(some)))
            elif what == "delete":
                table.delete(keys(sorted(some)))
                there -= some
            elif what == "compact":
                table.compact(full=True)
            elif table.history():
                table.tag(f"tag-{number}")
        before = {snapshot.id: set(numbers_in(table.to_arrow(snapshot=snapshot))) for snapshot in table.history()}
        assert table.erase(keys(sorted(gone)), due=NOW).verify(lake) == []
        assert_gone(lake, table, gone)
        for snapshot, numbers in before.items():
            assert set(numbers_in(table.to_arrow(snapshot=snapshot))) == numbers - gone


def test_a_row_that_came_back_before_the_old_bytes_were_due_is_erased_by_another_call(lake: Lake) -> None:
    """Whoever erases wants what is there now to go, whatever an earlier erasure of the same keys still waits for."""
    table = build(lake)
    first = table.erase(keys([3]), due=datetime.timedelta(hours=1))
    assert not first.is_complete
    table.append(samples([3]))
    assert 3 in numbers_in(table.to_arrow())
    again = table.erase(keys([3]), due=datetime.timedelta(hours=1))
    assert again.erasure_id != first.erasure_id and again.deleted_in > first.deleted_in
    assert 3 not in numbers_in(table.to_arrow())
    assert table.erase(keys([3]), due=datetime.timedelta(hours=1)).deleted_in == again.deleted_in, "nothing came since: the same erasure goes on"
    done = table.erase(keys([3]), due=NOW)
    assert done.is_complete and done.erasure_id == again.erasure_id and not done.verify(lake, keys=keys([3]))
    assert_gone(lake, table, [3], stays=[4])
    with lake.database.read() as connection:
        states = connection.execute("select state, keys from erasures").fetchall()
    assert states == [("complete", None)] * 2
    assert not lake.doctor(deep=True).findings


def test_a_label_that_waited_is_not_met_by_a_row_that_comes_during_the_erasure(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = build(lake), make_lake().table("people")
    with failpoints.armed("erase.deleted", lambda: other.append(samples([100]))):
        proof = table.erase(keys([100]), due=NOW)
    assert proof.is_complete and not proof.verify(lake, keys=keys([100]))
    assert marker(100, "comment").encode() not in everything_stored(lake)
    row = table.to_arrow(where="item = 'item-100'").to_pylist()
    assert [(one["comment"], one["clicks"], one["note"]) for one in row] == [(None, 0, marker(100, "note"))]
    other.patch(comments([100]))
    assert table.to_arrow(where="item = 'item-100'")["clicks"].to_pylist() == [1]
    assert not lake.doctor(deep=True).findings


def test_rows_for_look_ups_of_a_blanked_segment_hold_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group that is built after an erasure holds the blank rows, and the next erasure finds nothing wrong with it."""
    monkeypatch.setattr("loader.table.row_groups.MIN_ROWS", 10)
    table = build(lake, lookup_columns=["note", "score", "item"])
    table.build_lookup()
    table.erase(keys([3, 61]), due=NOW)
    assert table.build_lookup().num_segments > 0
    assert table.erase(keys([4, 62]), due=NOW).is_complete
    assert table.build_lookup().num_segments > 0
    assert_gone(lake, table, [3, 4, 61, 62], stays=[5])
    assert table.lookup(keys([3, 5]), ["note"])["note"].to_pylist() == [None, marker(5, "note")]
    assert not lake.doctor(deep=True).findings


def test_a_patch_of_erased_rows_alone_leaves_an_empty_one_that_every_read_takes(lake: Lake) -> None:
    table = create(lake)
    table.append(samples(range(10)))
    table.patch(comments([3, 4]))
    table.tag("before")
    table.erase(keys([3, 4]), due=NOW)
    for snapshot in (None, "before"):
        assert table.lookup(keys([3, 5]), ["comment", "clicks", "note"], snapshot=snapshot)["note"].to_pylist() == [None, marker(5, "note")]
        assert numbers_in(table.to_arrow(snapshot=snapshot)) == [0, 1, 2, 5, 6, 7, 8, 9]
    table.compact(full=True)
    assert numbers_in(table.to_arrow()) == [0, 1, 2, 5, 6, 7, 8, 9]


def test_what_is_forgotten_while_it_is_blanked_leaves_no_bytes_behind(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("people")
    table.append(samples(range(10)))
    table.patch(comments([3, 4]))
    table.compact(full=True)
    calls = []

    def forget() -> None:
        if not calls:
            calls.append(other.expire(older_than=NOW, keep=1, grace_seconds=0))

    with failpoints.armed("erase.hidden", forget):
        table.erase(keys([3]), due=NOW)
    assert calls and not lake.doctor(deep=True).findings


def quantised() -> pa.Table:
    """200 rows with every way to store floats with less precision, halves, and lists and maps, some of which may not be null."""
    rng, count = np.random.default_rng(1), 200
    columns: dict[str, tuple[pa.Field, Any]] = {"item": (pa.field("item", pa.int64(), nullable=False), np.arange(count))}
    for kind in ("int8", "float16", "bfloat16"):
        metadata = {"headrace.quantise": kind}
        values = rng.normal(100, 20, count).astype(np.float32)
        lists = [rng.normal(100, 20, at % 4).astype(np.float32) for at in range(count)]
        pairs = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(100, 20, 2 * count).astype(np.float32)), 2)
        columns |= {
            f"may_{kind}": (pa.field("x", pa.float32(), metadata=metadata), values),
            f"must_{kind}": (pa.field("x", pa.float32(), nullable=False, metadata=metadata), values),
            f"lists_{kind}": (pa.field("x", pa.list_(pa.float32()), metadata=metadata), lists),
            f"pairs_{kind}": (pa.field("x", pa.list_(pa.float32(), 2), nullable=False, metadata=metadata), pairs),
        }
    columns |= {
        "half": (pa.field("x", pa.float16(), nullable=False), rng.normal(100, 20, count).astype(np.float16)),
        "map": (pa.field("x", pa.map_(pa.string(), pa.int32())), [[(marker(at, "note"), at)] for at in range(count)]),
        "must_map": (pa.field("x", pa.map_(pa.string(), pa.float32()), nullable=False), [[("k", float(at))] for at in range(count)]),
        "texts": (pa.field("x", pa.list_(pa.string()), nullable=False), [[marker(at, "late"), "b"][: at % 3] for at in range(count)]),
    }
    schema = pa.schema([field.with_name(name) for name, (field, _) in columns.items()])
    arrays = [values if isinstance(values, pa.Array) else pa.array(values, field.type) for field, values in columns.values()]
    return pa.Table.from_arrays([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema)


def test_rows_beside_an_erased_one_keep_every_bit_whatever_their_type(lake: Lake) -> None:
    """Values that are stored with less precision are not rounded again, and a blank among them is as blank as the proof says."""
    data = quantised()
    table = lake.create_table("values", data.schema, primary_key=["item"])
    table.append(data)
    table.patch(pa.table({"item": [3, 4], "may_int8": pa.array([1.5, 2.5], pa.float32())}))
    table.tag("before")
    before = {row["item"]: repr(row) for row in table.to_arrow().to_pylist()}
    for gone in ([3, 7, 50], [4, 8]):
        assert table.erase(gone, due=NOW).is_complete
        before = {item: row for item, row in before.items() if item not in gone}
        for snapshot in (None, "before"):
            assert {row["item"]: repr(row) for row in table.to_arrow(snapshot=snapshot).to_pylist()} == before
    stored = everything_stored(lake)
    for number in (4, 8, 50):
        assert marker(number, "note").encode() not in stored and marker(number, "late").encode() not in stored
    assert not lake.doctor(deep=True).findings


def test_blanked_bytes_that_still_hold_a_key_never_take_the_place_of_the_old(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = build(lake)
    own = {1: pa.scalar(3), 2: pa.scalar("item-3")}
    monkeypatch.setattr("loader.table.erasure.blank.free_key", lambda spec, kinds, erased, fixed: own)
    with pytest.raises(CorruptSegmentError, match=r"still holds values of \d erased rows in .*user, item"):
        table.erase(keys([3]), due=NOW)
    monkeypatch.undo()
    assert table.erase(keys([3]), due=NOW).is_complete
    assert_gone(lake, table, [3], stays=[4])
    assert not lake.doctor(deep=True).findings
