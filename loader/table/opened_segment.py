"""One live segment as look-ups read it: its files, opened when they are needed, and its patches, folded once.

Which segments are open and which keys lie in them is `lookup`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pyarrow as pa

from loader.catalog.inline import LakeStorage
from loader.catalog.records import SegmentRef, TableSpec
from loader.errors import CorruptSegmentError
from loader.schema import Column
from loader.segment.column_files import JoinedReader
from loader.segment.layout import Section
from loader.segment.lookup_rows import LookupRows
from loader.segment.reader import SegmentReader
from loader.segment.rows import RowCache, RowReader
from loader.table.merge import Folded
from loader.table.resolve import fold_overlays
from loader.table.row_reads import GroupPages
from loader.table.segments import column_ids_of, data_files, group_of, later_columns, open_columns, open_segment


class OpenedSegment:
    """A live segment that look-ups read; its files are opened when they are needed."""

    def __init__(self, spec: TableSpec, ref: SegmentRef, storage: LakeStorage, cache: RowCache, before: OpenedSegment | None = None) -> None:
        """
        Args:
            spec: The table.
            ref: The segment, with its overlays.
            storage: The lake's.
            cache: Of chunks.
            before: The same segment as it was earlier: what did not change stays open.
        """
        self.ref = ref
        self._spec, self._storage, self._cache = spec, storage, cache
        self._folded: dict[int, Folded | None] = {}
        self._chosen: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        if before is not None and before._spec is spec and before._files == self._files:
            for name in ("reader", "_base", "rows", "plain", "absent", "_stored"):
                if name in before.__dict__:
                    self.__dict__[name] = before.__dict__[name]
        at = group_of(ref)
        self.group_file = None if at is None else ref.column_files[at]
        self.outdated = set() if at is None else later_columns(ref, at)  # columns that the group has as they were

    @property
    def _files(self) -> tuple[object, ...]:
        """What is read of the segment, overlays aside."""
        return self.ref.path, self.ref.offset, self.ref.column_files

    @functools.cached_property
    def reader(self) -> SegmentReader | JoinedReader:
        return open_columns(self._storage, self.ref)

    @functools.cached_property
    def _base(self) -> SegmentReader:
        return open_segment(self._storage, self.ref)

    @functools.cached_property
    def rows(self) -> RowReader | None:
        return None if data_files(self.ref) else RowReader(self._base, cache=self._cache)

    @functools.cached_property
    def _stored(self) -> set[int]:
        return column_ids_of(self.reader)

    @functools.cached_property
    def plain(self) -> set[int]:
        """Columns that every look-up reads as they are stored; the others are read the plain way."""
        types = {} if self.rows is None else self._types(self._stored)
        return {column.id for column in self._spec.schema if column.id in types and types[column.id].equals(column.type)}

    @functools.cached_property
    def absent(self) -> set[int]:
        return {column.id for column in self._spec.schema if column.id not in self._stored and column.default is None}

    def chosen(self, ids: tuple[int, ...]) -> tuple[int, ...] | None:
        """The columns as row readers take them, negative for one that is null throughout; None where they are not all stored as they are asked for."""
        if ids not in self._chosen:
            plain = all(column_id in self.plain or column_id in self.absent for column_id in ids)
            self._chosen[ids] = tuple(column_id if column_id in self.plain else -1 for column_id in ids) if plain else None
        return self._chosen[ids]

    def close(self) -> None:
        """Give cached chunks back."""
        rows = self.__dict__.get("rows")
        if rows is not None:
            rows.close()

    def group(self, columns: Sequence[Column], pages: GroupPages) -> LookupRows | None:
        """The row group, if it has all of these columns as they are."""
        file = self.group_file
        if file is None or any(column.id in self.outdated for column in columns):
            return None
        group = pages.find((file.path, file.offset))
        if group is None:
            opened = open_segment(self._storage, file)
            section = opened.pages(Section.LOOKUP_ROWS)
            if section is None:
                raise CorruptSegmentError(f"{file.path} at {file.offset}: no section LOOKUP_ROWS, and the catalog says that it has one: restore the file")
            group = LookupRows(section, f"{file.path} at {file.offset}", opened.local_place)
            if group.num_rows != self.ref.num_rows:
                raise CorruptSegmentError(f"{file.path} at {file.offset} has {group.num_rows:,} rows, its segment {self.ref.num_rows:,}: restore the file")
        held = group.types
        return group if all(column.id in held and held[column.id].equals(column.type) for column in columns) else None

    def _types(self, stored: set[int]) -> dict[int, pa.DataType]:
        known = [column.id for column in self._spec.schema if column.id in stored]
        return dict(zip(known, self._base.schema_of(known).types, strict=True))

    def folded(self, columns: Sequence[Column]) -> dict[int, Folded]:
        """The patches of these columns; folded once."""
        if not self.ref.overlays:
            return {}
        missing = [column.id for column in columns if column.id not in self._folded]
        if missing:
            found = fold_overlays(self._spec, self.ref, missing, self._storage, self.reader)
            self._folded.update({column_id: found.get(column_id) for column_id in missing})
        return {column.id: patch for column in columns if (patch := self._folded[column.id]) is not None}
