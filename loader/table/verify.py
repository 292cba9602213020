"""Checks all that a snapshot reads: its segments, their overlays and column files. Goes on where an earlier run stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loader.catalog.records import SegmentRef, SnapshotView
from loader.errors import NotFoundError
from loader.segment.verify import SegmentReport, verify_segment
from loader.storage import Storage
from loader.table.segments import Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One stored segment that a snapshot reads.

    Attributes:
        key: Its name in the table, stable: sections are written once.
        section: Where it is.
        num_rows: Rows that the catalog states.
    """

    key: str
    section: Section
    num_rows: int | None


@dataclasses.dataclass(kw_only=True)
class Progress:
    """What has been checked so far; kept in a file, so that a run that was stopped goes on.

    Attributes:
        table: Whose.
        checked: Chunks by item.
        num_bytes: Of all that was checked.
        problems: Lines.
        path: The file; None keeps nothing.
    """

    table: str
    checked: dict[str, int] = dataclasses.field(default_factory=dict)
    num_bytes: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    path: Path | None = None

    @classmethod
    def load(cls, path: Path, table: str) -> Progress:
        """Of an earlier run that was stopped, or a new one."""
        try:
            known = json.loads(path.read_text())
            if known["table"] == table:
                return cls(table=table, checked=dict(known["checked"]), num_bytes=int(known["num_bytes"]), problems=list(known["problems"]), path=path)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or one that was not written whole: begin again
        return cls(table=table, path=path)

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.to_dict()))
        temporary.replace(self.path)

    def forget(self) -> None:
        """Everything was checked: the next run begins again."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def to_dict(self) -> dict[str, Any]:
        return {"table": self.table, "checked": self.checked, "num_bytes": self.num_bytes, "problems": self.problems}


def items(view: SnapshotView) -> list[Item]:
    """What a snapshot reads, segment by segment."""
    return [item for ref in view.segments for item in _items(ref)]


def _items(ref: SegmentRef) -> Iterator[Item]:
    yield Item(key=f"segment {ref.segment_id}", section=ref, num_rows=ref.num_rows)
    for overlay in ref.overlays:
        yield Item(key=f"overlay {overlay.overlay_id} of segment {ref.segment_id}", section=overlay, num_rows=None)
    for file in ref.column_files:
        yield Item(key=f"column file {file.path} at {file.offset} of segment {ref.segment_id}", section=file, num_rows=ref.num_rows)


def verify(view: SnapshotView, storage: Storage, progress: Progress) -> Iterator[tuple[int, int]]:
    """Check what has not been checked yet, and record it item by item.

    Args:
        view: The snapshot.
        storage: The lake's.
        progress: Updated and saved after every item.

    Yields:
        (items checked, items there are), once at the start and after every item.
    """
    every = items(view)
    done = sum(item.key in progress.checked for item in every)
    yield done, len(every)
    for item in every:
        if item.key in progress.checked:
            continue
        report = _check(item, storage)
        progress.checked[item.key] = report.num_chunks
        progress.num_bytes += report.num_bytes
        progress.problems += [f"{item.key}: {problem}" for problem in report.problems]
        progress.save()
        done += 1
        yield done, len(every)


def _check(item: Item, storage: Storage) -> SegmentReport:
    section = item.section
    try:
        report = verify_segment(storage.section(section.path, section.offset, section.num_bytes))
    except NotFoundError as error:
        return SegmentReport(num_chunks=0, num_bytes=0, num_rows=0, problems=(str(error),))
    if item.num_rows is not None and report.num_rows != item.num_rows and not report.problems:
        what = f"{section.path} states {report.num_rows:,} rows and the catalog {item.num_rows:,}: restore the file that was committed"
        return dataclasses.replace(report, problems=(what,))
    return report
