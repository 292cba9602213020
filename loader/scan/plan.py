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

from loader.catalog.manifest import Within
from loader.catalog.records import Pin, SegmentRef, SnapshotView, TableSpec
from loader.catalog.segments import Segments
from loader.catalog.version import origin
from loader.decode.arrow import to_arrow
from loader.decode.result import FixedColumn
from loader.errors import CatalogBusyError, StateMismatchError
from loader.scan import order as ordering
from loader.scan.columns import LabelFill, ReadColumn, read_columns
from loader.scan.condition import Condition
from loader.scan.decoded import decode
from loader.scan.encoded import FetchRequest
from loader.scan.facts import Facts
from loader.scan.fetch import BlockFetcher, BlockPlace, FetchSpec, OpensPlan
from loader.scan.order import Layout, Order
from loader.scan.predicate import parse
from loader.scan.prune import Pruned, patched, possible_blocks, within
from loader.scan.selection import BLOCK_KEY, Selection, selection_hash
from loader.scan.since import Since
from loader.table.times import closed_limit

if TYPE_CHECKING:
    from loader.scan.scan import Scan

COUNT_THREADS = 4
PIN_SECONDS = 24 * 3600
ROW_SAMPLES = 4
Int64Array = npt.NDArray[np.int64]


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
    segments: Segments
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

    def lay_out(self, order: Order) -> Layout:
        """The blocks in the order of an epoch."""
        return ordering.lay_out(self.blocks["selected"], order)

    def window_rows(self, order: Order) -> int:
        """Rows of a window at most."""
        return ordering.most_window_rows(self.num_rows, int(self.blocks["selected"].max(initial=0)), order)

    @property
    def block_sources(self) -> None:
        """Of a mix, the source of each block."""
        return None

    @property
    def shard_blocks(self) -> int:
        """Blocks that the canonical shards divide among them."""
        return self.num_blocks

    def label_of(self, block: int) -> LabelFill | None:
        """How null labels of a block of the plan read."""
        return self.label

    def state(self) -> dict[str, Any]:
        """What a loader's state says of what is read; plain values."""
        return {
            "table": self.table,
            "snapshot": self.snapshot,
            "columns": list(self.columns),
            "where": self.where,
            "closed_before": self.closed_before,
            "selection": self.selection_hash,
            "num_rows": self.num_rows,
        }

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
            closed_before=self.scan.closed_before if self.scan.since is not None else self.closed_before,
            selection=self.selection_hash,
            num_rows=self.num_rows,
            since=self.scan.since,
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
        largest = np.argsort(-self.segments.field("num_rows"), kind="stable")[:ROW_SAMPLES]
        for ref in [self.segments[at] for at in largest.tolist()]:
            for section, members in fetcher.sources(ref).items():
                reader = fetcher.reader(*section)
                ids = [self.read[i].id for i in members]
                chunks = reader.chunks(ids, np.arange(reader.num_blocks))
                shared = reader.dictionaries(ids)[0]  # every block that is fetched brings them
                decoded += int(chunks["arena_bytes"].sum()) + reader.num_blocks * int(shared["arena_bytes"].sum())
                stored += int(chunks["num_bytes"].sum()) + reader.num_blocks * int(shared["num_bytes"].sum())
            rows += ref.num_rows
        return (decoded / rows, stored / rows) if rows else (0.0, 0.0)


def open_plan(spec: FetchSpec | OpensPlan) -> Any:
    """Make a plan again anywhere, from plain data; the selection comes from the catalog, and the first plan's own pin holds the snapshot.

    A spec of several scans opens itself, and each of them here.

    Raises:
        StateMismatchError: The lake gives another plan than the one the spec was made of.
    """
    if not isinstance(spec, FetchSpec):
        return spec.open()
    connect = importlib.import_module("loader").connect  # the package imports us
    table = connect(spec.location, catalog=spec.catalog, create=False).table(spec.table)
    scan = table.scan(columns=list(spec.columns), where=spec.where, snapshot=spec.snapshot, closed_before=spec.closed_before)
    plan: Plan = dataclasses.replace(scan, since=spec.since).plan()
    plan.release()
    if (plan.selection_hash, plan.num_rows) != (spec.selection, spec.num_rows):
        raise StateMismatchError(
            f"table {spec.table!r} at snapshot {spec.snapshot} selects {plan.num_rows:,} rows (selection {plan.selection_hash}) and the rank's plan has "
            f"{spec.num_rows:,} (selection {spec.selection}): run the same Headrace and lake on every host"
        )
    return plan


def open_fetcher(spec: FetchSpec | OpensPlan) -> Any:
    """The fetcher of a plan, anywhere. Raises as `open_plan`."""
    return open_plan(spec).fetcher()


def make_plan(scan: Scan) -> Plan:
    """Plan a scan: pin, prune, count or load, and list the blocks."""
    view = open_view(scan)
    lake = scan.table.lake
    closed_before = scan.closed_before_value(view)
    read, label = resolve_columns(view, scan.columns, closed_before)
    definition = {
        "lake": origin(lake.database.lake_id),
        "table": view.spec.id,
        "snapshot": view.snapshot_id,
        "where": scan.where,
        "closed_before": closed_before,
        **({} if scan.since is None else {"since": scan.since, "by_watermark": scan.offers_by_time}),
    }
    name = selection_hash(definition)
    pin = lake.pin(view.table, view.snapshot_id, f"plan {name}", PIN_SECONDS)
    try:
        stored = lake.catalog.load_selection(view.table, view.snapshot_id, name)
        selection = Selection.from_bytes(stored) if stored is not None else select(scan, view, closed_before)
        if stored is None and (scan.where is not None or closed_before is not None or scan.since is not None):
            lake.catalog.save_selection(view.table, view.snapshot_id, name, selection.to_bytes(), pin.id)
    except BaseException:
        lake.unpin(pin)  # nobody releases a plan that was never made
        raise
    kept = np.flatnonzero(selection.blocks["selected"])
    blocks = selection.blocks[kept]
    listed = Segments.of(view.segments)
    ids = blocks["segment_id"]
    is_first = np.diff(ids, prepend=-1) != 0  # blocks lie by segment
    mask = np.zeros(len(listed), np.bool_)
    mask[listed.index_of(ids[is_first])] = True
    segments, segment_index = listed.where(mask), np.cumsum(is_first) - 1
    first_block, _, starts = _blocks(segments)
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
        segment_index=segment_index,
        row_starts=starts[first_block[segment_index] + blocks["block"]],
        bits={} if not selection.bits else {new: selection.bits[old] for new, old in enumerate(kept.tolist()) if old in selection.bits},
    )


def open_view(scan: Scan) -> SnapshotView:
    """The snapshot that a scan reads, or what of it the scan's predicate can need; to find what came since another, the handle brings its own view forward."""
    if scan.since is not None:
        return scan.table.view(scan.snapshot)

    def needed(spec: TableSpec) -> Within | None:
        if scan.where is None and not isinstance(scan.closed_before, int):
            return None
        facts = Facts() if scan.where is None else parse(scan.where, spec.schema.to_arrow()).facts
        time, last_time = spec.time_column, None
        if isinstance(scan.closed_before, int) and time is not None:
            last_time = closed_limit(spec.attribution, time.type, scan.closed_before)
        place = within(spec, facts, last_time)
        return None if place == Within() else place

    return scan.table.part_view(scan.snapshot, needed)


def _blocks(segments: Segments) -> tuple[Int64Array, Int64Array, Int64Array]:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Count:
    """One block to look at; `is_whole` where only deleted rows are not selected."""

    ref: SegmentRef
    is_whole: bool
    block: int
    row_start: int
    num_rows: int


def select(scan: Scan, view: SnapshotView, closed_before: int | None) -> Selection:
    """Find the selected rows of every block, reading only what pruning leaves open and only the columns that decide."""
    condition = Condition.of(view, scan.where, closed_before)
    pruned = condition.prune(view, scan.table.lake.database)
    since = Since.of(scan.since, view, condition, scan.closed_before, scan.table.lake.database)
    if since is not None:
        pruned = since.prune(pruned)
    segments = pruned.segments
    first_block, owner, starts = _blocks(segments)
    keys = np.zeros(len(owner), BLOCK_KEY)
    keys["segment_id"], keys["num_rows"] = segments.field("segment_id")[owner], segments.block_rows()
    keys["block"] = np.arange(len(owner)) - first_block[owner]
    keys["selected"] = keys["num_rows"]
    open_segments = np.flatnonzero(~pruned.whole | (segments.field("live_rows") < segments.field("num_rows")))
    if not len(open_segments):
        return Selection(blocks=keys, bits={})
    counter = _Counter(scan, view, condition, since)
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
        found = list(pool.map(counter.count, [item for _, item in items]))
    bits = {}
    for (at, _), (selected, chosen) in zip(items, found, strict=True):
        keys["selected"][at] = selected
        if chosen is not None:
            bits[at] = chosen
    return Selection(blocks=keys, bits=bits)


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
        self._read, self._label = resolve_columns(view, condition.columns, scan.closed_before_value(view))
        self._fetcher = BlockFetcher(view, scan.table.lake.storage, self._read)

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

    def count(self, item: _Count) -> tuple[int, npt.NDArray[np.uint8] | None]:
        """How many rows of a block are selected, and which, as bits; None where all or none are."""
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
        if item.is_whole:
            return mask
        times: FixedColumn | None = None
        place = BlockPlace(ref=item.ref, block=item.block, row_start=item.row_start, num_rows=item.num_rows, selected=None)
        decoded = decode(self._fetcher.fetch_place(FetchRequest(sequence=0, shard=0, block=item.block), place), self._read, label=self._label)
        names = [column.name for column in self._read]
        if self._predicate is not None:
            arrays = [to_arrow(column, read.type) for column, read in zip(decoded, self._read, strict=True)]
            mask &= self._predicate.mask(pa.table(arrays, names=names))
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
        return mask
