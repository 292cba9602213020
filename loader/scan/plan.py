"""Plans: the blocks of a pinned snapshot with their exact selected row counts. Everything a rank needs before the first batch.

A selection that needs counting is counted once, over only the columns it reads, and stored in the catalog under the hash of its definition; every
other rank and fetch actor loads it. Which rows are selected never depends on who counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loader.catalog.commit import now_micros
from loader.catalog.manifest import Within
from loader.catalog.quarantine import WHOLE_BLOCK, Quarantined
from loader.catalog.records import Pin, SnapshotView, TableSpec
from loader.catalog.segments import Segments
from loader.catalog.version import origin
from loader.errors import CatalogBusyError, StateMismatchError
from loader.scan import order as ordering
from loader.scan.bad_blocks import UNREADABLE
from loader.scan.columns import LabelFill, ReadColumn
from loader.scan.counting import block_starts, resolve_columns, select
from loader.scan.encoded import BadBlock
from loader.scan.facts import Facts
from loader.scan.fetch import BlockFetcher, BlockPlace, FetchSpec, OpensPlan
from loader.scan.groups import GroupedLayout, Groups
from loader.scan.order import Layout, Order
from loader.scan.predicate import parse
from loader.scan.prune import within
from loader.scan.sampling import Sample
from loader.scan.selection import RowWeights, Selection, selection_hash
from loader.segment.reader import SegmentReader
from loader.table.times import closed_limit

if TYPE_CHECKING:
    from loader.scan.scan import Scan

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
        row_weights: What each row stands for, where the scan samples.
        quarantined: Why a block is not read, by index in `blocks`.
        groups: Where groups of rows begin, where the scan groups: then they are what an order deals, and what a position counts.
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
    row_weights: RowWeights | None = None
    groups: Groups | None = None
    quarantined: dict[int, BadBlock] = dataclasses.field(default_factory=dict)

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
    def num_units(self) -> int:
        """What positions count: groups where the scan groups, else selected rows."""
        return self.num_rows if self.groups is None else self.groups.num_groups

    def lay_out(self, order: Order) -> Layout:
        """The blocks in the order of an epoch, by rows or, where the scan groups, by groups."""
        return ordering.lay_out(self.blocks["selected"], order) if self.groups is None else GroupedLayout.lay_out(self.groups, order)

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
            bad=self.quarantined.get(block),
        )

    def quarantine(self, block: int, bad: BadBlock) -> None:
        """Have later plans go on without a damaged block."""
        segment, number, now = int(self.blocks["segment_id"][block]), int(self.blocks["block"][block]), now_micros()
        found = [
            Quarantined(segment_id=segment, block=number, column_id=column_id, reason=bad.reason, found_at=now)
            for column_id in bad.column_ids or (WHOLE_BLOCK,)
        ]
        self.scan.table.lake.catalog.add_quarantine(self.view.spec.id, found)

    def window_rows(self, order: Order) -> int:
        """Rows of a window at most; of groups, as many as windows have on average."""
        if self.groups is None:
            return ordering.most_window_rows(self.num_rows, int(self.blocks["selected"].max(initial=0)), order)
        return math.ceil(ordering.most_window_rows(self.num_units, int(self.groups.num_by_block.max(initial=0)), order) * self.groups.mean_rows)

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
            **({} if self.scan.sample is None else {"sample": self.scan.sample.to_dict()}),
            **({} if self.groups is None else {"group_by": list(self.scan.group_by), "num_units": self.num_units}),
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
            sample=None if self.scan.sample is None else self.scan.sample.to_dict(),
            group_by=self.scan.group_by,
            since=self.scan.since,
            block_bytes=int(self.encoded_row_bytes * self.num_rows / max(self.num_blocks, 1)),
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
            with contextlib.suppress(*UNREADABLE):  # whoever reads its blocks says so, if the policy is to say it
                sizes = [_chunk_bytes(fetcher.reader(*section), [self.read[i].id for i in members]) for section, members in fetcher.sources(ref).items()]
                decoded, stored, rows = decoded + sum(size for size, _ in sizes), stored + sum(size for _, size in sizes), rows + ref.num_rows
        return (decoded / rows, stored / rows) if rows else (0.0, 0.0)


def _chunk_bytes(reader: SegmentReader, ids: list[int]) -> tuple[int, int]:
    """(decoded, stored) bytes of some columns of a segment."""
    chunks, shared = reader.chunks(ids, np.arange(reader.num_blocks)), reader.dictionaries(ids)[0]  # every block that is fetched brings its dictionaries
    both = [int(chunks[name].sum()) + reader.num_blocks * int(shared[name].sum()) for name in ("arena_bytes", "num_bytes")]
    return both[0], both[1]


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
    chosen = {"sample": None if spec.sample is None else Sample.of(spec.sample), "group_by": spec.group_by}
    scan = table.scan(columns=list(spec.columns), where=spec.where, snapshot=spec.snapshot, closed_before=spec.closed_before, **chosen)
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
        **({} if scan.sample is None else {"sample": scan.sample.to_dict() | {"column": None}}),
        **({"group_by": list(scan.group_by)} if scan.group_by else {}),
        **({} if scan.since is None else {"since": scan.since, "by_watermark": scan.offers_by_time}),
    }
    name = selection_hash(definition)
    pin = lake.pin(view.table, view.snapshot_id, f"plan {name}", PIN_SECONDS)
    try:
        stored = lake.catalog.load_selection(view.table, view.snapshot_id, name)
        selection = Selection.from_bytes(stored) if stored is not None else select(scan, view, closed_before)
        is_counted = scan.where is not None or closed_before is not None or scan.since is not None or scan.sample is not None or bool(scan.group_by)
        if stored is None and is_counted:
            lake.catalog.save_selection(view.table, view.snapshot_id, name, selection.to_bytes(), pin.id)
    except BaseException:
        lake.unpin(pin)  # nobody releases a plan that was never made
        raise
    selection = selection.only(np.flatnonzero(selection.blocks["selected"]))
    blocks = selection.blocks
    listed = Segments.of(view.segments)
    ids = blocks["segment_id"]
    is_first = np.diff(ids, prepend=-1) != 0  # blocks lie by segment
    mask = np.zeros(len(listed), np.bool_)
    mask[listed.index_of(ids[is_first])] = True
    segments, segment_index = listed.where(mask), np.cumsum(is_first) - 1
    first_block, _, starts = block_starts(segments)
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
        bits=selection.bits,
        row_weights=None if scan.sample is None or selection.codes is None else RowWeights(selection.codes, scan.sample.weights(), scan.sample.column),
        quarantined=_quarantined(blocks, lake.catalog.load_quarantine(view.spec.id), {column.id for column in read}),
        groups=None if selection.starts is None else Groups.of(blocks, selection.bits, selection.starts),
    )


def _quarantined(blocks: npt.NDArray[Any], found: list[Quarantined], column_ids: set[int]) -> dict[int, BadBlock]:
    """Those blocks of a plan, by index, of which a column that is read is in quarantine."""
    places = {(each.segment_id, each.block): each for each in found if each.column_id == WHOLE_BLOCK or each.column_id in column_ids}
    if not places:
        return {}
    near = np.flatnonzero(np.isin(blocks["segment_id"], [segment for segment, _ in places]))
    keys = {at: (int(blocks["segment_id"][at]), int(blocks["block"][at])) for at in near.tolist()}
    return {
        at: BadBlock(kind="CorruptSegmentError", reason=places[key].reason, column_ids=(places[key].column_id,), known=True)
        for at, key in keys.items()
        if key in places
    }


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
