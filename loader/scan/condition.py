"""What decides which rows of a snapshot are selected, and the segments that it leaves: the bridge between predicates, statistics and readers."""

from __future__ import annotations

import dataclasses

from loader.catalog.column_stats import Ranges
from loader.catalog.connection import Database
from loader.catalog.manifest import load_ranges
from loader.catalog.records import SnapshotView
from loader.catalog.segments import Segments
from loader.scan.columns import ReadColumn, read_columns
from loader.scan.facts import Facts
from loader.scan.predicate import Predicate, parse
from loader.scan.prune import Pruned, prune
from loader.table.times import closed_limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """What decides which rows of a view are selected."""

    predicate: Predicate | None
    time: ReadColumn | None
    last_time: int | None

    @classmethod
    def of(cls, view: SnapshotView, where: str | None, closed_before: int | None) -> Condition:
        """Of a predicate's text and a moment in the time column's unit."""
        predicate = None if where is None else parse(where, view.schema.to_arrow())
        time = None if view.time_column is None else read_columns(view.schema, [view.time_column])[0]
        last_time = None if closed_before is None or time is None else closed_limit(view.attribution, time.type, closed_before)
        return cls(predicate=predicate, time=time, last_time=last_time)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads."""
        names = self.predicate.columns if self.predicate is not None else ()
        return names if self.last_time is None or self.time is None or self.time.name in names else (*names, self.time.name)

    def prune(self, view: SnapshotView, database: Database) -> Pruned:
        """The segments that may hold a selected row."""

        def ranges_of(segments: Segments, column_id: int) -> Ranges:
            with database.read() as connection:
                return load_ranges(connection, view.spec.id, segments, column_id)

        facts = Facts() if self.predicate is None else self.predicate.facts
        segments = Segments.of(view.segments)
        return prune(view.spec, segments, facts, has_predicate=self.predicate is not None, last_time=self.last_time, ranges_of=ranges_of)


def selected(view: SnapshotView, database: Database, predicate: Predicate | None, last_time: int | None) -> Segments:
    """The segments that may hold a row of a predicate, at or before a time."""
    if predicate is None and last_time is None:
        return Segments.of(view.segments)
    time = None if view.time_column is None else read_columns(view.schema, [view.time_column])[0]
    return Condition(predicate=predicate, time=time, last_time=last_time).prune(view, database).segments
