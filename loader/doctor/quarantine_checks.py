"""Checks of blocks in quarantine: what loaders go on without, until its bytes are restored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loader.catalog.quarantine import WHOLE_BLOCK
from loader.catalog.records import SegmentRef
from loader.doctor.checks import Found, Patient, TableState, check
from loader.errors import HeadraceError
from loader.segment.reader import SegmentReader


def _segment(patient: Patient, table: TableState, segment_id: int) -> SegmentRef | None:
    view = patient.lake.table(table.name).view()
    return next((ref for ref in view.segments if ref.segment_id == segment_id), None)


def _is_whole(patient: Patient, ref: SegmentRef, block: int, column_id: int) -> bool:
    """Whether the block reads again, from the segment or the column file that has the column."""
    places = [(file.path, file.offset, file.num_bytes, file.column_ids) for file in ref.column_files]
    sections: list[tuple[str, int, int, Any]] = [(ref.path, ref.offset, ref.num_bytes, None), *places]
    try:
        for path, offset, num_bytes, owned in sections:
            if column_id != WHOLE_BLOCK and owned is not None and column_id not in owned:
                continue
            reader = SegmentReader(patient.lake.storage.section(path, offset, num_bytes), verify=True)
            present = set(reader.columns["column_id"].tolist())
            if column_id == WHOLE_BLOCK or column_id in present:
                start, num_rows = int(reader.blocks["row_start"][block]), int(reader.block_rows[block])
                reader.read(None if column_id == WHOLE_BLOCK else [column_id], range(start, start + num_rows))
    except HeadraceError:
        return False
    return True


def _lift(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    segment_id, block, column_id = subject
    ref = _segment(patient, table, segment_id)
    if ref is not None and not _is_whole(patient, ref, block, column_id):
        return None
    done = patient.connection.execute(
        "delete from quarantine where table_id = ? and segment_id = ? and block = ? and column_id = ?", (table.id, segment_id, block, column_id)
    ).rowcount
    why = "it reads again" if ref is not None else "its segment is no longer part of the table"
    return f"block {block} of segment {segment_id} is out of quarantine: {why}" if done else None


@check(
    "quarantine",
    scope="table",
    explains="training goes on without the rows of this block: they keep their place in every batch, masked, and are in no loss",
    remedy="restore the file (headrace restore, or another copy); then --repair takes what reads again out of quarantine",
    repair=_lift,
)
def quarantine(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows("select segment_id, block, column_id, reason from quarantine where table_id = ? order by segment_id, block, column_id", (table.id,))
    for segment_id, block, column_id, reason in rows:
        what = "every column" if column_id == WHOLE_BLOCK else f"column {column_id}"
        yield Found(where=f"block {block} of segment {segment_id}, {what}", what=reason, subject=(segment_id, block, column_id))
