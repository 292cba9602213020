"""The resolve horizon: late labels are taken up to an age, and refused by key from there on."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from loader.errors import HorizonError, SchemaError
from loader.lake import Lake
from tests.table.samples import HOUR, create, labels, rows


def test_labels_of_rows_below_the_horizon_are_refused_by_key(lake: Lake) -> None:
    table = create(lake, resolve_horizon_seconds=HOUR)
    table.append(rows(0, 300))  # item i came i minutes after 1970
    assert table.patch(labels([0, 299], clicks=[1, 1])).summary["rows_patched"] == 2, "without a watermark nothing is old"
    table.append(rows(300, 301), watermark=datetime.datetime(1970, 1, 1, 4, 0))
    assert table.patch(labels([180, 299], clicks=[1, 1])).summary["rows_patched"] == 2, "an hour below four hours is item 180"
    before = table.to_arrow().num_rows
    with pytest.raises(HorizonError, match=r"1 of the patched rows.*3,600 seconds.*item 179"):
        table.patch(labels([200, 179], clicks=[1, 1]))
    assert table.patch(labels([1000], clicks=[1])).summary["labels_held"] == 1, "what is not there yet is new"
    table.compact(full=True)
    with pytest.raises(HorizonError, match="item 0"):
        lake.table("samples").patch(labels([0], clicks=[1]))
    assert table.to_arrow().num_rows == before


def test_a_horizon_needs_a_time_and_a_number(lake: Lake) -> None:
    schema = pa.schema([pa.field("id", pa.int64(), False)])
    with pytest.raises(ValueError, match="needs a time_column"):
        lake.create_table("t", schema, primary_key=["id"], resolve_horizon_seconds=5)
    with pytest.raises((ValueError, SchemaError), match="whole number above 0"):
        create(lake, resolve_horizon_seconds=0)
