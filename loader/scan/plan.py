"""Plans: the blocks of a pinned snapshot with their exact selected row counts. Everything a rank needs before the first batch.

A selection that needs counting is counted once, over only the columns it reads, and stored in the catalog under the hash of its definition; every
other rank and fetch actor loads it. Which rows are selected never depends on who counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import Pin, SegmentRef, SnapshotView
from loader.decode.arrow import to_arrow
from loader.decode.result import FixedColumn
from loader.errors import CatalogBusyError, StateMismatchError
from loader.scan.columns import LabelFill, ReadColumn, read_columns
from loader.scan.decoded import decode
from loader.scan.encoded import FetchRequest
from loader.scan.fetch import BlockFetcher, BlockPlace, FetchSpec
from loader.scan.predicate import Predicate, parse
from loader.scan.prune import Verdict, judge_segment, patched, possible_blocks
from loader.scan.selection import BLOCK_KEY, Selection, selection_hash
from loader.table.times import closed_limit

if TYPE_CHECKING:
    from loader.scan.scan import Scan

COUNT_THREADS = 4
PIN_SECONDS = 24 * 3600
ROW_SAMPLES = 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a scan reads.

    Attributes:
        view: The snapshot.
        columns: Columns that users asked for, in their order.
        read: Columns that are fetched: those, and what their meaning needs.
        label: How null labels read, if one is among them.
        where: Normalised predicate, or None.
        closed_before: In the time column's unit, or None.
        selection_hash: Of what defines the selection.
        segments: Segments with a selected row, by segment id.
        blocks: BLOCK_KEY records of blocks with a selected row, by (segment, block).
        segment_index: int64 [blocks], index in `segments`.
        row_starts: int64 [blocks], first row of each block in its segment.
        bits: By index in `blocks`, the selected rows of partly selected blocks.
        pin: Keeps the snapshot readable for a day from now or from the last `renew`, or until `release`.
    """

    scan: Scan
    view: SnapshotView
    pin: Pin
    columns: tuple[str, ...]
    read: tuple[ReadColumn, ...]
    label: LabelFill | None
    where: str | None
    closed_before: int | None
    selection_hash: str
    segments: tuple[SegmentRef, ...]
    blocks: npt.NDArray[Any]
    segment_index: npt.NDArray[np.int64]
    row_starts: npt.NDArray[np.int64]
    bits: dict[int, npt.NDArray[np.uint8]]

    @property
    def table(self) -> str:
        return self.view.table

    @property
    def snapshot(self) -> int:
        return self.view.snapshot_id

    @property
    def num_rows(self) -> int:
        """Selected rows, exactly."""
        return int(self.blocks["selected"].sum(dtype=np.int64))

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        return f"Plan({self.table!r}, snapshot={self.snapshot}, {self.num_rows:,} rows in {self.num_blocks:,} blocks of {len(self.segments):,} segments)"

    def place(self, block: int) -> BlockPlace:
        """Where a block of the plan is."""
        key = self.blocks[block]
        return BlockPlace(
            ref=self.segments[int(self.segment_index[block])],
            block=int(key["block"]),
            row_start=int(self.row_starts[block]),
            num_rows=int(key["num_rows"]),
            selected=self.bits.get(block),
        )

    def renew(self) -> None:
        """Hold the snapshot for another day; a `DataLoader` does it every hour in which it makes batches."""
        self.scan.table.lake.renew(self.pin, PIN_SECONDS)

    def release(self) -> None:
        """Let the snapshot go; call it when nothing reads the plan any more. Where the catalog is busy, the pin lapses by itself."""
        with contextlib.suppress(CatalogBusyError):
            self.scan.table.lake.unpin(self.pin)

    def fetcher(self) -> BlockFetcher:
        """The fetcher of the plan's blocks in this process; one, so that what it opened stays open."""
        return self._fetcher

    @functools.cached_property
    def _fetcher(self) -> BlockFetcher:
        return BlockFetcher(self.view, self.scan.table.lake.storage, self.read, locate=self.place)

    def fetch_spec(self) -> FetchSpec:
        """What another process needs to do the same; `open_fetcher` reads it."""
        lake = self.scan.table.lake
        return FetchSpec(
            location=lake.location,
            catalog=lake.catalog_url,
            table=self.table,
            snapshot=self.snapshot,
            columns=self.columns,
            where=self.where,
            closed_before=self.closed_before,
            selection=self.selection_hash,
            num_rows=self.num_rows,
        )

    @property
    def row_bytes(self) -> float:
        """Decoded bytes a row of the columns read, from the chunk tables of a few large segments."""
        return self._sampled_row_bytes[0]

    @property
    def encoded_row_bytes(self) -> float:
        """Stored bytes a row of the columns read, likewise."""
        return self._sampled_row_bytes[1]

    @functools.cached_property
    def _sampled_row_bytes(self) -> tuple[float, float]:
        fetcher, rows, decoded, stored = self.fetcher(), 0, 0, 0
        for ref in sorted(self.segments, key=lambda ref: -ref.num_rows)[:ROW_SAMPLES]:
            for section, members in fetcher.sources(ref).items():
                reader = fetcher.reader(*section)
                ids = [self.read[i].id for i in members]
                chunks = reader.chunks(ids, np.arange(reader.num_blocks))
                shared = reader.dictionaries(ids)[0]  # every block that is fetched brings them
                decoded += int(chunks["arena_bytes"].sum()) + reader.num_blocks * int(shared["arena_bytes"].sum())
                stored += int(chunks["num_bytes"].sum()) + reader.num_blocks * int(shared["num_bytes"].sum())
            rows += ref.num_rows
        return (decoded / rows, stored / rows) if rows else (0.0, 0.0)


def open_plan(spec: FetchSpec) -> Plan:
    """Make a plan again anywhere, from plain data; the selection comes from the catalog, and the first plan's own pin holds the snapshot.

    Raises:
        StateMismatchError: The lake gives another plan than the one the spec was made of.
    """
    connect = importlib.import_module("loader").connect  # the package imports us
    table = connect(spec.location, catalog=spec.catalog, create=False).table(spec.table)
    plan: Plan = table.scan(columns=list(spec.columns), where=spec.where, snapshot=spec.snapshot, closed_before=spec.closed_before).plan()
    plan.release()
    if (plan.selection_hash, plan.num_rows) != (spec.selection, spec.num_rows):
        raise StateMismatchError(
            f"table {spec.table!r} at snapshot {spec.snapshot} selects {plan.num_rows:,} rows (selection {plan.selection_hash}) and the rank's plan has "
            f"{spec.num_rows:,} (selection {spec.selection}): run the same Headrace and lake on every host"
        )
    return plan


def open_fetcher(spec: FetchSpec) -> BlockFetcher:
    """The fetcher of a plan, anywhere. Raises as `open_plan`."""
    return open_plan(spec).fetcher()


def make_plan(scan: Scan) -> Plan:
    """Plan a scan: pin, prune, count or load, and list the blocks."""
    view = scan.table.view(scan.snapshot)
    lake = scan.table.lake
    closed_before = scan.closed_before_value(view)
    read, label = resolve_columns(view, scan.columns, closed_before)
    definition = {"lake": lake.database.lake_id, "table": view.spec.id, "snapshot": view.snapshot_id, "where": scan.where, "closed_before": closed_before}
    name = selection_hash(definition)
    pin = lake.pin(view.table, view.snapshot_id, f"plan {name}", PIN_SECONDS)
    try:
        stored = lake.catalog.load_selection(view.table, view.snapshot_id, name)
        selection = Selection.from_bytes(stored) if stored is not None else select(scan, view, closed_before)
        if stored is None and (scan.where is not None or closed_before is not None):
            lake.catalog.save_selection(view.table, view.snapshot_id, name, selection.to_bytes(), pin.id)
    except BaseException:
        lake.unpin(pin)  # nobody releases a plan that was never made
        raise
    by_id = {ref.segment_id: ref for ref in view.segments}
    kept = np.flatnonzero(selection.blocks["selected"])
    blocks = selection.blocks[kept]
    ids, segment_index = np.unique(blocks["segment_id"], return_inverse=True)
    segments = tuple(by_id[int(segment_id)] for segment_id in ids)
    starts = [np.cumsum((0, *ref.block_rows[:-1]), dtype=np.int64) for ref in segments]
    first_block = np.cumsum([0, *(len(part) for part in starts)])
    return Plan(
        scan=scan,
        view=view,
        pin=pin,
        columns=scan.columns,
        read=read,
        label=label,
        where=scan.where,
        closed_before=closed_before,
        selection_hash=name,
        segments=segments,
        blocks=blocks,
        segment_index=segment_index.astype(np.int64),
        row_starts=np.concatenate([np.zeros(0, np.int64), *starts])[first_block[segment_index] + blocks["block"]],
        bits={new: selection.bits[old] for new, old in enumerate(kept.tolist()) if old in selection.bits},
    )


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Count:
    """One block to look at."""

    ref: SegmentRef
    verdict: Verdict
    block: int
    row_start: int
    num_rows: int


def select(scan: Scan, view: SnapshotView, closed_before: int | None) -> Selection:
    """Find the selected rows of every block, reading only what pruning leaves open and only the columns that decide."""
    predicate = None if scan.where is None else parse(scan.where, view.schema.to_arrow())
    time = None if view.time_column is None else read_columns(view.schema, [view.time_column])[0]
    last_time = None if closed_before is None or time is None else closed_limit(view.attribution, time.type, closed_before)
    names = list(predicate.columns if predicate is not None else ())
    if last_time is not None and time is not None and time.name not in names:
        names.append(time.name)
    counter = _Counter(scan, view, predicate, tuple(names), time, last_time, closed_before)
    verdicts = [(ref, judge_segment(ref, predicate, time, last_time)) for ref in view.segments]
    open_refs = [(ref, verdict) for ref, verdict in verdicts if verdict is not Verdict.NONE]
    items: list[_Count] = []
    with ThreadPoolExecutor(COUNT_THREADS, thread_name_prefix="headrace-count") as pool:
        for (ref, verdict), possible in zip(open_refs, pool.map(lambda pair: counter.possible_blocks(*pair), open_refs), strict=True):
            starts = np.cumsum((0, *ref.block_rows[:-1])).tolist()
            rows = zip(range(len(ref.block_rows)), starts, ref.block_rows, strict=True)
            items += [_Count(ref=ref, verdict=verdict, block=b, row_start=start, num_rows=n) for b, start, n in rows if possible[b]]
        found = list(pool.map(counter.count, items))
    keys = [(item.ref.segment_id, item.block, item.num_rows, selected) for item, (selected, _) in zip(items, found, strict=True)]
    return Selection(blocks=np.array(keys, BLOCK_KEY), bits={index: bits for index, (_, bits) in enumerate(found) if bits is not None})


class _Counter:
    """Evaluates a selection over single blocks; used by several threads."""

    def __init__(
        self,
        scan: Scan,
        view: SnapshotView,
        predicate: Predicate | None,
        names: tuple[str, ...],
        time: ReadColumn | None,
        last_time: int | None,
        closed_before: int | None,
    ) -> None:
        self._predicate = predicate
        self._time = time
        self._last_time = last_time
        self._read, self._label = resolve_columns(view, names, closed_before)
        self._fetcher = BlockFetcher(view, scan.table.lake.storage, self._read)

    def possible_blocks(self, ref: SegmentRef, verdict: Verdict) -> npt.NDArray[np.bool_]:
        """Which blocks of a segment the statistics leave open."""
        possible = np.ones(len(ref.block_rows), np.bool_)
        if verdict is not Verdict.COUNT:
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

    def count(self, item: _Count) -> tuple[int, npt.NDArray[np.uint8] | None]:
        """How many rows of a block are selected, and which, as bits; None where all or none are."""
        if item.verdict is not Verdict.COUNT and item.ref.live_rows == item.ref.num_rows:
            return item.num_rows, None
        mask = self._mask(item)
        selected = int(np.count_nonzero(mask))
        return selected, np.packbits(mask, bitorder="little") if 0 < selected < item.num_rows else None

    def _mask(self, item: _Count) -> npt.NDArray[np.bool_]:
        """bool [rows of the block]: which are selected."""
        rows = slice(item.row_start, item.row_start + item.num_rows)
        mask = np.ones(item.num_rows, np.bool_)
        if item.ref.live_rows < item.ref.num_rows:
            deleted = self._fetcher.fold(item.ref).left  # erased rows keep their place
            if deleted is not None:
                mask &= ~deleted[rows]
        if item.verdict is not Verdict.COUNT:
            return mask
        place = BlockPlace(ref=item.ref, block=item.block, row_start=item.row_start, num_rows=item.num_rows, selected=None)
        decoded = decode(self._fetcher.fetch_place(FetchRequest(sequence=0, shard=0, block=item.block), place), self._read, label=self._label)
        names = [column.name for column in self._read]
        if self._predicate is not None:
            arrays = [to_arrow(column, read.type) for column, read in zip(decoded, self._read, strict=True)]
            mask &= self._predicate.mask(pa.table(arrays, names=names))
        if self._last_time is not None and self._time is not None:
            times = decoded[names.index(self._time.name)]
            assert isinstance(times, FixedColumn)
            mask &= times.values <= self._last_time
            if times.validity is not None:
                mask &= times.validity != 0
        return mask
