"""The counting pass: which rows of a snapshot a scan selects, block by block, reading only what pruning leaves open and only the columns that decide.

Owns what is read for that, and which thread looks at which block. Which rows are selected never depends on who counted, or in what order.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import SegmentRef, SnapshotView
from loader.catalog.segments import Segments
from loader.decode.arrow import to_arrow
from loader.decode.result import FixedColumn
from loader.scan.columns import LabelFill, ReadColumn, read_columns
from loader.scan.condition import Condition
from loader.scan.decoded import decode
from loader.scan.encoded import FetchRequest
from loader.scan.fetch import BlockFetcher, BlockPlace
from loader.scan.groups import GroupRuns, check_groups, runs_of
from loader.scan.prune import Pruned, patched, possible_blocks
from loader.scan.sampling import Sampler
from loader.scan.selection import BLOCK_KEY, Bits, Codes, Selection, code_planes
from loader.scan.since import Since
from loader.table.times import closed_limit

if TYPE_CHECKING:
    from loader.scan.scan import Scan

COUNT_THREADS = 4
Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Count:
    """One block to look at; `is_whole` where only deleted rows are not selected."""

    ref: SegmentRef
    is_whole: bool
    block: int
    row_start: int
    num_rows: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What a block holds: selected rows, their bits (None where all or none are), the code of each and the groups, where those are asked for."""

    selected: int
    bits: Bits | None
    code: int = 0
    planes: Bits | None = None
    runs: GroupRuns | None = None


def select(scan: Scan, view: SnapshotView, closed_before: int | None) -> Selection:
    """Find the selected rows of every block.

    Raises:
        SchemaError: Rows of one group lie apart.
    """
    condition = Condition.of(view, scan.where, closed_before)
    pruned = condition.prune(view, scan.table.lake.database)
    since = Since.of(scan.since, view, condition, scan.closed_before, scan.table.lake.database)
    if since is not None:
        pruned = since.prune(pruned)
    segments = pruned.segments
    first_block, owner, starts = block_starts(segments)
    keys = np.zeros(len(owner), BLOCK_KEY)
    keys["segment_id"], keys["num_rows"] = segments.field("segment_id")[owner], segments.block_rows()
    keys["block"] = np.arange(len(owner)) - first_block[owner]
    keys["selected"] = keys["num_rows"]
    counter = _Counter(scan, view, condition, since)
    open_segments = np.arange(len(segments))
    if not counter.looks_at_all:
        open_segments = np.flatnonzero(~pruned.whole | (segments.field("live_rows") < segments.field("num_rows")))
    refs = [segments[at] for at in open_segments.tolist()]
    whole = pruned.whole[open_segments].tolist()
    first_blocks = first_block[open_segments].tolist()
    items: list[tuple[int, _Count]] = []
    with ThreadPoolExecutor(COUNT_THREADS, thread_name_prefix="headrace-count") as pool:
        for ref, is_whole, first, possible in zip(refs, whole, first_blocks, pool.map(counter.possible_blocks, refs, whole), strict=True):
            keys["selected"][first : first + len(possible)][~possible] = 0
            items += [
                (first + at, _Count(ref=ref, is_whole=is_whole, block=at, row_start=int(starts[first + at]), num_rows=ref.block_rows[at]))
                for at in np.flatnonzero(possible).tolist()
            ]
        found = dict(zip([at for at, _ in items], pool.map(counter.count, [item for _, item in items]), strict=True))
    for at, block in found.items():
        keys["selected"][at] = block.selected
    bits = {at: block.bits for at, block in found.items() if block.bits is not None}
    starts_of_groups = None
    if counter.group_by:
        runs = {at: block.runs for at, block in found.items() if block.runs is not None}
        starts_of_groups = check_groups(scan.table.name, counter.group_by, keys, runs)
    return Selection(blocks=keys, bits=bits, starts=starts_of_groups, codes=_codes(counter, found, len(keys)))


def _codes(counter: _Counter, found: dict[int, _Found], num_blocks: int) -> Codes | None:
    if counter.sampler is None:
        return None
    constant = np.zeros(num_blocks, np.uint8)
    for at, block in found.items():
        constant[at] = block.code
    planes = {at: block.planes for at, block in found.items() if block.planes is not None}
    return Codes(num_planes=counter.num_planes, constant=constant, planes=planes)


def select_blocks(scan: Scan, view: SnapshotView, condition: Condition, pruned: Pruned) -> tuple[int, int, int]:
    """(segments, blocks, stored rows) that the statistics of blocks leave of what pruning left."""
    counter = _Counter(scan, view, condition)
    segments = blocks = rows = 0
    with ThreadPoolExecutor(COUNT_THREADS, thread_name_prefix="headrace-explain") as pool:
        refs = list(pruned.segments)
        for ref, possible in zip(refs, pool.map(counter.possible_blocks, refs, pruned.whole.tolist()), strict=True):
            segments += bool(possible.any())
            blocks += int(possible.sum())
            rows += int(np.array(ref.block_rows, np.int64)[possible].sum())
    return segments, blocks, rows


class _Counter:
    """Evaluates a selection over single blocks; used by several threads."""

    def __init__(self, scan: Scan, view: SnapshotView, condition: Condition, since: Since | None = None) -> None:
        self._since = since
        self._predicate, self._time, self._last_time = condition.predicate, condition.time, condition.last_time
        self.sampler = None if scan.sample is None else Sampler(scan.sample, view.schema)
        self.num_planes = 0 if scan.sample is None else len(scan.sample.rules).bit_length()
        self.group_by = scan.group_by
        wanted = (*condition.columns, *(() if self.sampler is None else self.sampler.columns), *self.group_by)
        self._read, self._label = resolve_columns(view, tuple(dict.fromkeys(wanted)), scan.closed_before_value(view))
        self._fetcher = BlockFetcher(view, scan.table.lake.storage, self._read)

    @property
    def looks_at_all(self) -> bool:
        """Whether every block must be read, also where all of its rows are selected."""
        return self.sampler is not None or bool(self.group_by)

    def possible_blocks(self, ref: SegmentRef, is_whole: bool) -> npt.NDArray[np.bool_]:
        """Which blocks of a segment the statistics leave open."""
        possible = np.ones(len(ref.block_rows), np.bool_)
        if is_whole:
            return possible
        bounds = dict(self._predicate.bounds) if self._predicate is not None else {}
        if self._time is not None and self._last_time is not None:
            low, high = bounds.get(self._time.name, (None, None))
            bounds[self._time.name] = (low, self._last_time if high is None else min(high, self._last_time))
        own = (ref.path, ref.offset, ref.num_bytes)
        for index, column in enumerate(self._read):
            is_label = self._label is not None and self._label.label == index
            if (
                column.name in bounds
                and not column.leaf.depth
                and not is_label
                and not patched(ref, column.id)
                and index in self._fetcher.sources(ref).get(own, [])
            ):
                possible &= possible_blocks(self._fetcher.reader(*own).stats(column.id), column, *bounds[column.name])
        return possible

    def count(self, item: _Count) -> _Found:
        """What a block holds."""
        mask, rows = self._mask(item)
        code, planes, runs = 0, None, None
        if self.sampler is not None and rows is not None:
            kept, codes = self.sampler.draw(rows)
            mask &= kept
            code, planes = code_planes(codes, mask, self.num_planes)
        if self.group_by and rows is not None and mask.any():
            runs = runs_of([rows.column(name) for name in self.group_by], self.group_by, mask)
        selected = int(np.count_nonzero(mask))
        bits = np.packbits(mask, bitorder="little") if 0 < selected < item.num_rows else None
        return _Found(selected=selected, bits=bits, code=code, planes=planes, runs=runs)

    def _mask(self, item: _Count) -> tuple[npt.NDArray[np.bool_], pa.Table | None]:
        """bool [rows of the block], which are selected but for sampling, and the columns that were read, if any had to be."""
        rows = slice(item.row_start, item.row_start + item.num_rows)
        mask = np.ones(item.num_rows, np.bool_)
        if item.ref.live_rows < item.ref.num_rows:
            folded = self._fetcher.fold(item.ref)
            deleted = folded.deleted if self.looks_at_all else folded.left  # erased rows keep their place; as they are blank, no rule or group is theirs
            if deleted is not None:
                mask &= ~deleted[rows]
        if item.is_whole and not self.looks_at_all:
            return mask, None
        times: FixedColumn | None = None
        place = BlockPlace(ref=item.ref, block=item.block, row_start=item.row_start, num_rows=item.num_rows, selected=None)
        decoded = decode(self._fetcher.fetch_place(FetchRequest(sequence=0, shard=0, block=item.block), place), self._read, label=self._label)
        names = [column.name for column in self._read]
        table = pa.table([to_arrow(column, read.type) for column, read in zip(decoded, self._read, strict=True)], names=names)
        if item.is_whole:
            return mask, table
        if self._predicate is not None:
            mask &= self._predicate.mask(table)
        if self._last_time is not None and self._time is not None:
            column = decoded[names.index(self._time.name)]
            assert isinstance(column, FixedColumn)
            times = column
            mask &= times.values <= self._last_time
            if times.validity is not None:
                mask &= times.validity != 0
        if self._since is not None:
            offered = self._since.offers(self._fetcher, item.ref, range(rows.start, rows.stop), times)
            mask = mask if offered is None else mask & offered
        return mask, table


def block_starts(segments: Segments) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Blocks of all segments end to end: the first of each segment; of each block the place of its segment, and its first row there."""
    num_blocks, rows = segments.field("num_blocks"), segments.block_rows()
    owner = np.repeat(np.arange(len(segments)), num_blocks)
    first_rows = np.cumsum(segments.field("num_rows")) - segments.field("num_rows")
    return np.cumsum(num_blocks) - num_blocks, owner, np.cumsum(rows) - rows - first_rows[owner]


def resolve_columns(view: SnapshotView, names: tuple[str, ...], closed_before: int | None) -> tuple[tuple[ReadColumn, ...], LabelFill | None]:
    """The columns to fetch for some names, and what a null label means among them."""
    attribution, time = view.attribution, view.time_column
    if attribution is None or time is None or attribution.column not in names:
        return read_columns(view.schema, names), None
    label = names.index(attribution.column)
    if closed_before is not None:
        return read_columns(view.schema, names), LabelFill(label=label, default=attribution.default)
    if view.watermark is None:
        return read_columns(view.schema, names), None
    wanted = names if time in names else (*names, time)
    limit = closed_limit(attribution, view.schema.column(time).type, view.watermark)
    return read_columns(view.schema, wanted), LabelFill(label=label, default=attribution.default, time=wanted.index(time), last_closed_time=limit)
