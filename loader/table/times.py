"""Time columns: values from what callers give, partitions, and windows that have closed. Pure functions over int64 in the column's unit."""

from __future__ import annotations

import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import Attribution

I64 = npt.NDArray[np.int64]
PARTITION_UNITS = ("hour", "day", "week", "month")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DAY_SECONDS = 86_400


def is_time_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a time column: timestamps, dates, and integers, which are taken as seconds."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or (pa.types.is_integer(kind) and not pa.types.is_uint64(kind)))


def from_seconds(seconds: int, kind: pa.DataType) -> int:
    """A span of seconds in the unit of a time column, rounded up to a whole unit."""
    if pa.types.is_timestamp(kind):
        return seconds * _PER_SECOND[kind.unit]
    if pa.types.is_date64(kind):
        return seconds * 1_000
    return -(-seconds // _DAY_SECONDS) if pa.types.is_date32(kind) else seconds


def time_value(value: int | str | datetime.date | np.integer, kind: pa.DataType) -> int:
    """A moment in the unit of a time column.

    Args:
        value: An integer in that unit already; a datetime or date; or ISO text, or digits. Without a zone it is UTC.
        kind: The column's type.

    Raises:
        ValueError: It is no time, or lies outside 64 bits in the column's unit.
    """
    number = _time_number(value, kind)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{value!r} is {number} in the unit of the time column ({kind}), which has 64 bits")
    return number


def _time_number(value: int | str | datetime.date | np.integer, kind: pa.DataType) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer | str | datetime.date):
        raise ValueError(f"{value!r} is not a time: give a datetime, ISO text, or an integer in the column's unit ({kind})")
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, str):
        if value.removeprefix("-").isdecimal():
            return int(value)
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is not a time: give ISO text such as 2017-03-01T12:00:00, or a number in the column's unit ({kind})") from error
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    moment = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    micros = (moment - _EPOCH) // datetime.timedelta(microseconds=1)
    if pa.types.is_timestamp(kind):
        return micros * _PER_SECOND[kind.unit] // 1_000_000
    if pa.types.is_date64(kind):
        return micros // 1_000
    return micros // (1_000_000 * _DAY_SECONDS) if pa.types.is_date32(kind) else micros // 1_000_000


def time_words(column: pa.ChunkedArray | pa.Array) -> I64:
    """The values of a time column without nulls as int64."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_date32(array.type):
        array = array.view(pa.int32())
    elif not pa.types.is_integer(array.type):
        array = array.view(pa.int64())
    words: I64 = array.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return words


def partition_of(times: I64, kind: pa.DataType, unit: str | None) -> I64:
    """Number of the hour, day, week (from Monday) or month since 1970 (UTC) of each time; 0 without a unit."""
    if unit is None:
        return np.zeros(len(times), np.int64)
    if pa.types.is_date32(kind):
        seconds = times * _DAY_SECONDS
    else:
        seconds = times // from_seconds(1, kind)
    if unit == "hour":
        return seconds // 3_600
    days = seconds // _DAY_SECONDS
    if unit == "day":
        return days
    if unit == "week":
        return (days + 3) // 7  # 1970-01-01 was a Thursday
    return days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def partition_start(partition: int, kind: pa.DataType, unit: str | None) -> int:
    """The first time of a partition in the column's unit; 0 without a unit."""
    if unit is None:
        return 0
    if unit == "month":
        days = int(np.datetime64(partition, "M").astype("datetime64[D]").astype(np.int64))
    else:
        days = {"hour": partition // 24, "day": partition, "week": 7 * partition - 3}[unit]
    if pa.types.is_date32(kind):
        return days
    seconds = partition * 3_600 if unit == "hour" else days * _DAY_SECONDS
    return seconds * from_seconds(1, kind)


def closed_limit(attribution: Attribution | None, kind: pa.DataType, moment: int) -> int:
    """The latest row time whose window is closed at `moment`; without attribution, `moment` itself."""
    return moment - (from_seconds(attribution.window_seconds, kind) if attribution is not None else 0)
