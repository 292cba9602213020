"""Claims about `where` texts: what they select, how they normalise, and what they refuse."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from loader.errors import ColumnNotFoundError
from loader.scan.predicate import parse

DAY = datetime.datetime(2024, 1, 1)
TABLE = pa.table(
    {
        "a": pa.array([1, 2, None, 4, -5], pa.int32()),
        "b": pa.array([0.5, 1.5, 2.5, None, 4.5], pa.float64()),
        "big": pa.array([2**63, 0, 1, 2, 3], pa.uint64()),
        "country": ["US", "DE", None, "US", "FR"],
        "flag": [True, False, None, True, False],
        "ts": pa.array([DAY + datetime.timedelta(days=i) for i in range(5)], pa.timestamp("us")),
        "zoned": pa.array([DAY + datetime.timedelta(days=i) for i in range(5)], pa.timestamp("ms", "UTC")),
        "day": pa.array([datetime.date(2024, 1, 1 + i) for i in range(5)], pa.date32()),
        "Odd Name": pa.array([1, 1, 2, 2, 2], pa.int64()),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a > 1", [1, 3]),
        ("1 < a", [1, 3]),
        ("a <> 2", [0, 3, 4]),
        ("not a = 2", [0, 3, 4]),
        ("a in (1, 4, -5)", [0, 3, 4]),
        ("a in (1, 2, 4, 7, 8, 9)", [0, 1, 3]),
        ("a not in (1, 4)", [1, 4]),
        ("a not in (1, 4, 7, 8, 9)", [1, 4]),
        ("a between 1 and 2", [0, 1]),
        ("a is null", [2]),
        ("a is not null and country is not null", [0, 1, 3, 4]),
        ("a + 1 = 3 or -a = 5", [1, 4]),
        ("a / 2 = 0.5", [0]),
        ("a * b > 2.9", [1]),
        ("a > 1.5", [1, 3]),
        ("a < 99999999999", [0, 1, 3, 4]),
        ("big > 5", [0]),
        ("country = 'US'", [0, 3]),
        ("country in ('DE', 'FR') or flag", [0, 1, 3, 4]),
        ("flag is true", [0, 3]),
        ("not flag", [1, 4]),
        ("ts >= '2024-01-03'", [2, 3, 4]),
        ("ts < TIMESTAMP '2024-01-02 00:00:00'", [0]),
        ("zoned < TIMESTAMP '2024-01-02 00:00:00'", [0]),
        ("zoned >= '2024-01-04T00:00:00+00:00'", [3, 4]),
        ("day = DATE '2024-01-02'", [1]),
        ("ts > 1704240000000000", [3, 4]),
        ('"Odd Name" = 2 AND (a > 0 OR b > 4)', [3, 4]),
        ("true", [0, 1, 2, 3, 4]),
    ],
)
def test_selects_as_sql_does(text, rows):
    predicate = parse(text, TABLE.schema)
    assert [i for i, selected in enumerate(predicate.mask(TABLE)) if selected] == rows
    again = parse(predicate.text, TABLE.schema)
    assert again.text == predicate.text and again.mask(TABLE).tolist() == predicate.mask(TABLE).tolist()
    assert TABLE.filter(predicate.expression).num_rows == len(rows)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("hash > 9223372036854775808", [2, 3]),
        ("hash = 18446744073709551615", [3]),
        ("hash < 18446744073709551616", [0, 1, 2, 3]),
        ("hash >= 1e30 or id <= -1e30", []),
        ("hash > -1", [0, 1, 2, 3]),
        ("id > 2.5", [2, 3]),
        ("id = 9007199254740993.0", []),
        ("id <> 1e300", [0, 1, 2, 3]),
        ("hash in (18446744073709551615, 1.5, -3)", [3]),
        ("id in (1.5, 2.5)", []),
        ("id not in (1, 1.5, 4, 5, 6, 1e30)", [1, 2, 3]),
    ],
)
def test_ids_use_all_64_bits(text, rows):
    table = pa.table({"hash": pa.array([0, 2**63 - 1, 2**63 + 1, 2**64 - 1], pa.uint64()), "id": pa.array([1, 2, 2**53 + 1, 2**63 - 1], pa.int64())})
    assert np.flatnonzero(parse(text, table.schema).mask(table)).tolist() == rows


def test_equal_predicates_have_equal_texts():
    assert parse("a=1  and   country=='US'", TABLE.schema).text == parse("a = 1 AND country = 'US' -- note", TABLE.schema).text


def test_names_the_columns_it_reads():
    assert parse("ts > 17 and (a = 1 or flag)", TABLE.schema).columns == ("a", "flag", "ts")


def test_bounds_hold_what_every_selected_row_fulfils():
    bounds = parse("a >= 2 and a < 9 and (ts > '2024-01-02' and 5 >= b) and country = 'US' and (big = 1 or big = 2)", TABLE.schema).bounds
    assert bounds["a"] == (2, 8) and bounds["b"] == (None, 5.0)
    assert bounds["ts"] == (1704153600000001, None)
    assert "big" not in bounds


@pytest.mark.parametrize(
    "text", ["a like 'x%'", "lower(country) = 'us'", "foo(a) = 1", "a = (select 1)", "a = 1; drop table x", "cast(a as text) = '1'", "a % 2 = 1"]
)
def test_anything_else_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="allowed are: = <>") as error:
        parse(text, TABLE.schema)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a and", "not a SQL expression"),
        ("a = 'x'", "compares int32 with 'x'"),
        ("a + 1", "not true or false"),
        ("ts > 'soon'", "'soon' does not read as timestamp"),
        ("country > 3", "compares string with 3"),
        ("a = country", "compares int32 with string"),
        ("1 = 1", "two literals"),
    ],
)
def test_wrong_texts_say_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(text, TABLE.schema)
    assert "\n" not in str(error.value)


def test_an_unknown_column_names_the_closest():
    with pytest.raises(ColumnNotFoundError, match="did you mean country"):
        parse("contry = 'US'", TABLE.schema)


@pytest.mark.parametrize(
    "name", ["comment", "describe", "set", "use", "show", "kill", "cache", "load", "execute", "delete", "update", "copy", "begin", "desc", "key"]
)
def test_a_column_may_be_called_as_a_statement_begins(name):
    table = pa.table({name: [1, 5], "b": [1, 2]})
    for text in (f"{name} > 3 and b = 2", f"b = 2 and {name} > 3", f'"{name}" > 3'):
        assert parse(text, table.schema).mask(table).tolist() == [False, True]
        assert parse(parse(text, table.schema).text, table.schema).columns == parse(text, table.schema).columns


@pytest.mark.parametrize("text", ["a = 1; b = 2", "a = 1 order by b", "a = 1 limit 3", "a = 1 union select 2", "a = 1) or (b = 2", "", "select 1"])
def test_one_expression_is_all_that_a_text_may_hold(text):
    with pytest.raises(ValueError, match="allowed are: = <>"):
        parse(text, TABLE.schema)
