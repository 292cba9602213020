"""Claims about SQL over a lake: right answers at any snapshot, joins, streams; and nothing is read that a query does not need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import loader
from loader import query
from loader.errors import SnapshotNotFoundError, TableNotFoundError
from loader.table import batches
from tests.table.samples import create, labels, rows

pytest.importorskip("duckdb")


@pytest.fixture
def lake(tmp_path: Path) -> Any:
    """600 samples in two-hour commits, some patched and deleted; the tag `base` is before the delete; and a small table of users."""
    with loader.connect(tmp_path / "lake") as lake:
        table = create(lake, durability="relaxed", partition_by="hour")
        for start in range(0, 600, 120):
            table.append(rows(start, start + 120), on_conflict="trust")
        table.patch(labels([1, 2, 3], clicks=[5, 6, 7]))
        table.tag("base")
        table.delete("item < 10")
        users = pa.table({"user": pa.array(range(7)), "country": ["NL", "US", "NL", "US", None, "DE", "NL"]})
        lake.create_table("users", users.schema, primary_key=["user"]).append(users)
        yield lake


def read_columns(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """Records (segment, columns) of what is opened."""
    seen: list[tuple[int, tuple[str, ...]]] = []
    real = batches._OpenSegment.__init__

    def opened(self: Any, view: Any, ref: Any, columns: Any, storage: Any) -> None:
        seen.append((ref.segment_id, tuple(column.name for column in columns)))
        real(self, view, ref, columns, storage)

    monkeypatch.setattr(batches._OpenSegment, "__init__", opened)
    return seen


def test_answers_are_those_of_the_rows(lake: Any) -> None:
    assert lake.sql("select count(*) n, sum(clicks) c from samples").to_pylist() == [{"n": 590, "c": 0}]
    found = lake.sql("select item, ts, history from samples where item between 20 and 25 order by item")
    want = lake.table("samples").to_arrow(["item", "ts", "history"], where="item between 20 and 25").sort_by("item")
    assert found.to_pylist() == want.to_pylist()
    joined = lake.sql("select country, count(*) n from samples join users using (user) where country is not null group by all order by country")
    assert {row["country"] for row in joined.to_pylist()} == {"NL", "US", "DE"} and sum(row["n"] for row in joined.to_pylist()) < 590


def test_tables_at_snapshots(lake: Any) -> None:
    text = 'select count(*) n, sum(clicks) c from "samples@base"'
    assert lake.sql(text).to_pylist() == [{"n": 600, "c": 18}]
    assert lake.sql('select (select count(*) from "samples@1") a, (select count(*) from samples) b').to_pylist() == [{"a": 120, "b": 590}]
    assert lake.sql("select count(*) n from samples", snapshots={"samples": "base"}).to_pylist() == [{"n": 600}]
    with pytest.raises(SnapshotNotFoundError, match="no tag 'bose'"):
        lake.sql('select * from "samples@bose"')
    with pytest.raises(TableNotFoundError, match="sample"):
        lake.sql("select 1", snapshots={"sample": 1})


def test_only_the_columns_and_segments_of_a_query_are_read(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = read_columns(monkeypatch)
    assert lake.sql("select sum(user) from samples where item >= 590").num_rows == 1
    assert {columns for _, columns in seen} == {("user", "item")} or {columns for _, columns in seen} == {("item", "user")}
    assert len(seen) * 5 < len(lake.table("samples").view().segments), "segments that the range leaves out are read"
    seen.clear()
    assert lake.sql("select item from samples where ts >= timestamp '1970-01-01 09:00:00'").num_rows == 60
    assert len(seen) * 5 < len(lake.table("samples").view().segments), "time is not pushed down"


def test_an_answer_is_a_stream(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = read_columns(monkeypatch)
    with query.run(lake, "select item from samples limit 1") as answer:
        assert sum(batch.num_rows for batch in answer.batches()) == 1
    assert len(seen) <= 30 < 5 * len(lake.table("samples").view().segments)


def test_a_wrong_query_is_one_line(lake: Any) -> None:
    for text, what in (("select nope from samples", "nope"), ("select * from sample_", "sample_"), ("select 1 +", "syntax")):
        with pytest.raises(query.QueryError, match=what) as error:
            lake.sql(text)
        assert "\n" not in str(error.value)
    data = pa.table({"a": [1]})
    with pytest.raises(query.QueryError, match="data"):
        lake.sql("select * from data")  # variables of the caller are no tables
    assert data.num_rows == 1


def test_a_relation_of_a_table(lake: Any) -> None:
    import duckdb

    with duckdb.connect() as connection:
        relation = lake.table("samples").to_duckdb(connection, snapshot="base")
        assert relation.filter("item < 5").aggregate("sum(clicks)").fetchall() == [(18,)]
        assert connection.sql("select count(*) from samples").fetchall() == [(600,)]


SCHEMA = pa.schema([("a", pa.int64()), ("ts", pa.timestamp("us")), ("x", pa.float64()), ("s", pa.string())])


@pytest.mark.parametrize(
    ("expression", "where"),
    [
        ("((a > 990) and (x < 1000))", '"a" > 990'),
        ("((is_valid(s) and (a == -3)) and (ts >= 1970-01-01 00:16:36.000000))", '"s" is not null and "a" = -3 and "ts" >= \'1970-01-01 00:16:36.000000\''),
        ('(s == "it\'s")', "\"s\" = 'it''s'"),
        ('(s == "a \\" and (a > 5")', None),
        ("((a > 5) or (a < 3))", None),
        ("(b > 5)", None),
        ("is_in(a, {value_set=int64:[1,2], null_matching_behavior=MATCH})", None),
        ("(cast(a, double) > 5)", None),
        ("invert((a > 5))", None),
    ],
)
def test_what_duckdb_pushes_down_prunes(expression: str, where: str | None) -> None:
    assert query.where_of(expression, SCHEMA) == where
