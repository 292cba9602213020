"""Groups of rows: requests or sessions that stay together in a batch. Found by a counting pass over their columns, kept as one bit a row.

A group is the selected rows that agree in the columns of `group_by`. They must lie next to each other in one segment, blocks after blocks; a table that
is clustered by those columns keeps them so. Groups are then the units of order: `GroupedLayout` deals, shuffles and batches them where a plain layout does
rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.errors import SchemaError
from loader.scan import order as ordering
from loader.scan.order import Layout, Order, Window
from loader.scan.selection import RowBits
from loader.segment.key_index import is_key_type, keys_of

if TYPE_CHECKING:
    from loader.schema import Schema

Int64Array = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bits = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupRuns:
    """The runs of selected rows of one block that agree in the group's columns.

    Attributes:
        num_rows: Rows stored in the block.
        first_rows: int64 [runs], the row that begins each.
        words: uint64 [runs, 2], a hash of what each agrees in.
    """

    num_rows: int
    first_rows: Int64Array
    words: U64


def check_group_columns(schema: Schema, group_by: Sequence[str]) -> tuple[str, ...]:
    """The columns by name.

    Raises:
        ColumnNotFoundError: One is not in the schema.
        ValueError: It is a text, or empty.
        SchemaError: A column is of a type that does not group.
    """
    if isinstance(group_by, str):
        raise ValueError(f"group_by is the text {group_by!r}; give a list: group_by=[{group_by!r}]")
    names = tuple(schema.column(name).name for name in group_by)
    for name in names:
        if not is_key_type(schema.column(name).type):
            raise SchemaError(f"group_by names {name!r}, which is {schema.column(name).type}: rows are grouped by integers, dates, times or texts")
    return names


def runs_of(columns: Sequence[pa.ChunkedArray], names: Sequence[str], mask: npt.NDArray[np.bool_]) -> GroupRuns:
    """The runs of a block's selected rows.

    Args:
        columns: Those of `group_by`, every stored row.
        names: Theirs.
        mask: bool [rows], which are selected; at least one.

    Raises:
        SchemaError: A selected row has a null there.
    """
    rows = np.flatnonzero(mask)
    chosen = [column.combine_chunks().take(pa.array(rows)) for column in columns]
    for name, column in zip(names, chosen, strict=True):
        if column.null_count:
            raise SchemaError(f'group_by names {name!r}, and a selected row is null there: it belongs to no group; add where="{name} is not null"')
    keys = keys_of(chosen, hashed=True)
    words = np.stack([keys.low, keys.low if keys.high is None else keys.high], axis=1)
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (words[1:] != words[:-1]).any(axis=1)
    return GroupRuns(num_rows=len(mask), first_rows=rows[is_first], words=words[is_first])


def check_groups(table: str, group_by: Sequence[str], blocks: npt.NDArray[Any], runs: dict[int, GroupRuns]) -> dict[int, Bits]:
    """The rows that begin a group, as bits, by index of the block: a run that goes on from the block before begins none.

    Args:
        table: Name.
        group_by: The columns.
        blocks: BLOCK_KEY records.
        runs: By index in `blocks`, in its order.

    Raises:
        SchemaError: Rows of one group lie apart; names two places.
    """
    starts: dict[int, Bits] = {}
    before: tuple[int, U64] | None = None  # segment and hash of the last run
    words, owners = [], []
    for index, found in sorted(runs.items()):
        segment = int(blocks["segment_id"][index])
        goes_on = before is not None and before[0] == segment and bool((before[1] == found.words[0]).all())
        begin = np.zeros(found.num_rows, np.bool_)
        begin[found.first_rows[int(goes_on) :]] = True
        starts[index] = np.packbits(begin, bitorder="little")
        words.append(found.words[int(goes_on) :])
        owners.append(np.full(len(words[-1]), index))
        before = segment, found.words[-1]
    if words:
        _check_apart(table, group_by, blocks, np.concatenate(words), np.concatenate(owners))
    return starts


def _check_apart(table: str, group_by: Sequence[str], blocks: npt.NDArray[Any], words: U64, owners: Int64Array) -> None:
    by_word = np.lexsort((words[:, 1], words[:, 0]))
    ordered = words[by_word]
    twice = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    if not len(twice):
        return
    places = [f"block {int(blocks['block'][at])} of segment {int(blocks['segment_id'][at])}" for at in owners[by_word[twice[0] : twice[0] + 2]].tolist()]
    raise SchemaError(
        f"rows of one group by {', '.join(group_by)} lie apart in table {table!r}: in {' and in '.join(places)} ({len(twice):,} such groups). A group is "
        f"batched whole only where its rows lie together: create the table with bucket_by and cluster_by beginning with {group_by[0]!r}, then "
        "table.compact(full=True) merges what streams wrote apart"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The groups of a plan.

    Attributes:
        starts: Which rows begin a group.
        num_by_block: int64 [blocks], groups that begin in each block.
        lead: int64 [blocks], selected rows of each block that belong to a group of the block before.
        blocks: BLOCK_KEY records of the plan.
        selected: By index in `blocks`, the selected rows of partly selected blocks, as bits.
    """

    starts: RowBits
    num_by_block: Int64Array
    lead: Int64Array
    blocks: npt.NDArray[Any]
    selected: dict[int, Bits]

    @classmethod
    def of(cls, blocks: npt.NDArray[Any], selected: dict[int, Bits], starts: dict[int, Bits]) -> Groups:
        """Of a plan's blocks, the bits of its selection and of the rows that begin a group."""
        groups = cls(
            starts=RowBits(starts, len(blocks)),
            num_by_block=np.zeros(len(blocks), np.int64),
            lead=np.zeros(len(blocks), np.int64),
            blocks=blocks,
            selected=selected,
        )
        for block in range(len(blocks)):
            ordinals = groups._begin(block)
            groups.num_by_block[block] = len(ordinals)
            groups.lead[block] = ordinals[0] if len(ordinals) else int(blocks["selected"][block])
        return groups

    def _begin(self, block: int) -> Int64Array:
        """Ordinals of the selected rows of a block that begin a group."""
        num_rows = int(self.blocks["num_rows"][block])
        begin = self.starts.of(block, num_rows)
        if block in self.selected:
            begin = begin[np.unpackbits(self.selected[block], count=num_rows, bitorder="little").view(np.bool_)]
        return np.flatnonzero(begin)

    @property
    def num_groups(self) -> int:
        return int(self.num_by_block.sum())

    @property
    def mean_rows(self) -> float:
        """Rows of a group, on average."""
        return float(self.blocks["selected"].sum(dtype=np.int64) / max(self.num_groups, 1))

    def bounds(self, block: int) -> Int64Array:
        """int64 [groups + 1]: the ordinal that begins each group of a block, then the number of its selected rows."""
        return np.append(self._begin(block), int(self.blocks["selected"][block]))

    def spill(self, block: int) -> list[tuple[int, int]]:
        """(block, rows) of the blocks behind one that begin with rows of its last group."""
        found, segments, selected = [], self.blocks["segment_id"], self.blocks["selected"]
        after = block + 1
        while after < len(self.blocks) and segments[after] == segments[block] and self.lead[after]:
            found.append((after, int(self.lead[after])))
            if self.lead[after] < selected[after]:
                break
            after += 1
        return found

    def offsets(self, blocks: npt.NDArray[Any], rows: npt.NDArray[Any]) -> Int64Array:
        """int64 [groups + 1], where groups begin among rows that are whole groups, by block of the plan and row in it; the last is their number."""
        return np.append(np.flatnonzero(self.starts.at(blocks, rows)), len(rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedLayout(Layout):
    """A layout whose units are groups: ordinals, positions, shards and windows count groups, and a window's pieces are rows.

    Where a group goes on in the next block, the piece of its block brings a piece of that one: such a block is read twice.

    Attributes:
        groups: Of the plan.
    """

    groups: Groups

    @classmethod
    def lay_out(cls, groups: Groups, order: Order) -> GroupedLayout:
        """The groups of a plan in an order."""
        plain = ordering.lay_out(groups.num_by_block, order)
        return cls(order=order, blocks=plain.blocks, first=plain.first, starts=plain.starts, groups=groups)

    def pieces(self, window: Window) -> tuple[Int64Array, Int64Array, Int64Array]:
        """The pieces of a window: block of the plan, first ordinal, one past the last ordinal of its selected rows; int64 [pieces] each."""
        return self._rows_of(window).pieces

    def draw(self, window: Window) -> tuple[Int64Array, Int64Array]:
        """The rows of a window in the order of yielding: (piece, ordinal in the piece's block), int64 [rows] each."""
        spans = self._drawn(window)
        offset = np.cumsum(spans.length) - spans.length
        piece = np.repeat(spans.piece, spans.length)
        return piece, np.arange(len(piece)) + np.repeat(spans.start - offset, spans.length)

    def unit_offsets(self, window: Window) -> Int64Array:
        """int64 [groups + 1], where each group of a window begins among its rows, in the order of yielding."""
        spans = self._drawn(window)
        offsets = np.zeros(window.num_rows + 1, np.int64)
        np.add.at(offsets, spans.group + 1, spans.length)
        return np.cumsum(offsets)

    def _rows_of(self, window: Window) -> _Rows:
        blocks, heads, tails = ordering.window_pieces(self, window)
        pieces: list[tuple[int, int, int]] = []
        bounds, numbers, spills = [], [], []
        for block, head, tail in zip(blocks.tolist(), heads.tolist(), tails.tolist(), strict=True):
            bound = self.groups.bounds(block)
            numbers.append(len(pieces))
            bounds.append(bound)
            pieces.append((block, int(bound[head]), int(bound[tail])))
            more = self.groups.spill(block) if tail == len(bound) - 1 else []
            spills.append(range(len(pieces), len(pieces) + len(more)))
            pieces += [(after, 0, rows) for after, rows in more]
        columns = np.array(pieces, np.int64).reshape(-1, 3)
        return _Rows(pieces=(columns[:, 0], columns[:, 1], columns[:, 2]), bounds=bounds, numbers=np.array(numbers, np.int64), spills=spills)

    def _drawn(self, window: Window) -> _Spans:
        """The window's groups in the order of yielding, as spans of rows: one each, and one more for each block that a group goes on in."""
        rows = self._rows_of(window)
        unit, ordinal = ordering.window_draw(self, window)
        width = np.array([len(bound) for bound in rows.bounds], np.int64)
        bounds, at = np.concatenate(rows.bounds), (np.cumsum(width) - width)[unit] + ordinal
        group, piece = [np.arange(len(unit))], [rows.numbers[unit]]
        start, length = [bounds[at]], [bounds[at + 1] - bounds[at]]
        last = {int(number): int(place) for place, number in zip(*_lasts(unit, ordinal, width - 2), strict=True)}
        for number, spill in enumerate(rows.spills):
            if len(spill):
                members = np.array(spill, np.int64)
                group.append(np.full(len(members), last[number]))
                piece.append(members)
                start.append(np.zeros(len(members), np.int64))
                length.append(rows.pieces[2][members])
        groups = np.concatenate(group)
        by_group = np.argsort(groups, kind="stable")
        return _Spans(
            group=groups[by_group], piece=np.concatenate(piece)[by_group], start=np.concatenate(start)[by_group], length=np.concatenate(length)[by_group]
        )


def _lasts(unit: Int64Array, ordinal: Int64Array, last: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Where the last group of each block stands in a draw, and of which piece it is."""
    places = np.flatnonzero(ordinal == last[unit])
    return places, unit[places]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """A window's pieces as rows: those of its blocks, each followed by those it goes on in."""

    pieces: tuple[Int64Array, Int64Array, Int64Array]
    bounds: list[Int64Array]
    numbers: Int64Array
    spills: list[range]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Spans:
    """Runs of rows of one piece; int64 [spans] each: the group in the order of yielding, the piece, its first ordinal, its rows."""

    group: Int64Array
    piece: Int64Array
    start: Int64Array
    length: Int64Array
