"""Scan: what to read, checked when it is made and frozen. Owns no data; `plan()` turns it into blocks."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loader.catalog.records import SnapshotView
from loader.scan.follow import Follow
from loader.scan.groups import check_group_columns
from loader.scan.plan import Plan, make_plan
from loader.scan.predicate import parse
from loader.scan.sampling import Sample
from loader.table.reading import WATERMARK, closed_time
from loader.table.times import time_value

if TYPE_CHECKING:
    from loader.scan.explain import Explanation
    from loader.table.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """Some columns and rows of a table.

    Attributes:
        table: The table.
        columns: Names, in the order batches have them.
        where: Normalised SQL predicate, or None.
        snapshot: Number or tag, or None for the newest when it is planned.
        closed_before: Only rows whose attribution window closed by then: a value in the time column's unit, "watermark", or None for all rows.
        sample: Which share of the rows, by rules, or None for all.
        group_by: Columns whose equal values make rows a group, which stays whole in a batch; empty for none.
        since: Only rows that this earlier snapshot did not offer; None is all.
        follow: How a loader goes on with later snapshots, or None.
    """

    table: Table
    columns: tuple[str, ...]
    where: str | None = None
    snapshot: int | str | None = None
    closed_before: int | str | None = None
    sample: Sample | None = None
    group_by: tuple[str, ...] = ()
    since: int | None = None
    follow: Follow | None = None

    @classmethod
    def of(
        cls,
        table: Table,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        snapshot: int | str | None = None,
        closed_before: int | str | datetime.datetime | None = None,
        sample: Sample | Sequence[Any] | None = None,
        group_by: Sequence[str] = (),
        follow: bool | Follow = False,
    ) -> Scan:
        """Check what the caller gave.

        Raises:
            ColumnNotFoundError: A column of `columns` or `where` is not in the schema; names the closest.
            ValueError: `where` says something that is not allowed, or `closed_before` is no time of this table.
        """
        schema = table.schema
        if isinstance(columns, str):
            raise ValueError(f"columns is the text {columns!r}; give a list: columns=[{columns!r}]")
        names = tuple(schema.names if columns is None else (schema.column(name).name for name in columns))
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(f"columns names {twice[0]!r} twice" if twice else "columns is empty: name at least one, or leave it out for all")
        text = None if where is None else parse(where, schema.to_arrow()).text
        chosen = None if sample is None else Sample.of(sample).checked(schema, table.spec.primary_key, names)
        settings = follow if isinstance(follow, Follow) else Follow() if follow else None
        if settings is not None and (group_by or (chosen is not None and chosen.per_epoch)):
            raise ValueError("follow goes on with rows as they come: they are not grouped, nor drawn anew by epoch; leave group_by and per_epoch out")
        return cls(
            table=table,
            columns=names,
            where=text,
            snapshot=snapshot,
            closed_before=_closed_before(table, closed_before),
            sample=chosen,
            group_by=check_group_columns(schema, group_by),
            follow=settings,
        )

    @property
    def sources(self) -> tuple[Scan, ...]:
        """The scans of single tables that it is made of."""
        return (self,)

    def at(self, snapshot: int) -> Scan:
        """The same scan of a given snapshot."""
        return dataclasses.replace(self, snapshot=snapshot)

    def for_epoch(self, epoch: int) -> Scan:
        """The same scan with the rows that its sample draws in an epoch; itself where it draws the same in all."""
        if self.sample is None or not self.sample.per_epoch or self.sample.epoch == epoch:
            return self
        return dataclasses.replace(self, sample=dataclasses.replace(self.sample, epoch=epoch))

    def plan(self) -> Plan:
        """Pin the snapshot, count what must be counted, and list the blocks."""
        return make_plan(self)

    def explain(self, *, footers: bool = True) -> Explanation:
        """What each step of pruning leaves, without reading a row.

        Args:
            footers: Look at the statistics of blocks too, in the footers of the segments that are left.
        """
        from loader.scan.explain import explain  # it imports this module

        return explain(self, footers=footers)

    @property
    def offers_by_time(self) -> bool:
        """Whether rows are offered when the watermark closes them."""
        return self.closed_before == WATERMARK

    def closed_before_value(self, view: SnapshotView) -> int | None:
        """`closed_before` as a number, once the snapshot is known.

        Raises:
            ValueError: The snapshot has no watermark, or `closed_before` lies past it.
        """
        if self.closed_before is None:
            return None
        closed_time(view, self.closed_before)
        return view.watermark if self.closed_before == WATERMARK else int(self.closed_before)

    def __repr__(self) -> str:
        parts = [repr(self.table.name), f"{len(self.columns)} columns"]
        parts += [f"{name}={value!r}" for name in ("where", "snapshot", "closed_before", "sample") if (value := getattr(self, name)) is not None]
        parts += [f"group_by={list(self.group_by)!r}"] if self.group_by else []
        return f"Scan({', '.join(parts)})"


def _closed_before(table: Table, value: int | str | datetime.datetime | None) -> int | str | None:
    if value is None or value == WATERMARK:
        if value is not None and table.time_column is None:
            raise ValueError(f"closed_before needs a time column, and table {table.name!r} has none: create it with time_column=…")
        return value if value is None else WATERMARK
    if table.time_column is None:
        raise ValueError(f"closed_before needs a time column, and table {table.name!r} has none: create it with time_column=…")
    try:
        return time_value(value, table.schema.column(table.time_column).type)
    except ValueError as error:
        raise ValueError(f"closed_before: {error}; 'watermark' is allowed too") from None
