"""What the blocks of a window decode to, as tables over [plane, piece] and [list, piece] of device addresses. Owns the checks of regions against columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.device_columns import DeviceColumns
from loader.batch.device_tables import ITEMS, ONES, PIECE_ITEMS, POOL_PIECE, ZEROS
from loader.batch.window import NULL_ITEMS
from loader.decode.program import Program
from loader.errors import CorruptSegmentError, SchemaError
from loader.scan.encoded import BlockPatch
from loader.segment.layout import Role

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A block of a window.

    Attributes:
        block: Index in the plan's list.
        num_rows: Rows stored.
        slab: Where its bytes start in the slab area.
        program: Decodes it.
        columns: int64 [chunks of the program], the column of each, or -1.
        patches: By column.
    """

    block: int
    num_rows: int
    slab: int
    program: Program
    columns: npt.NDArray[np.int64]
    patches: dict[int, BlockPatch]


class PieceRegions:
    """The regions of all pieces of a window end to end. Shapes: R regions, C columns, L lists, P pieces.

    Attributes:
        table: REGION_ITEM [R].
        column: int64 [R], or -1.
        piece: int64 [R].
        is_pool: bool [R], what lists point into: needed for as long as the window is.
    """

    def __init__(self, columns: DeviceColumns, pieces: Sequence[Piece]) -> None:
        self._columns, self._pieces = columns, pieces
        programs = [piece.program for piece in pieces]
        starts = np.cumsum([0, *(program.num_rows.size for program in programs)])
        self.chunk_column = np.concatenate([piece.columns for piece in pieces])
        self.chunk_piece = np.repeat(np.arange(len(pieces)), np.diff(starts))
        self.table = np.concatenate([program.regions for program in programs])
        sizes = [program.regions.size for program in programs]
        chunk = self.table["chunk"].astype(np.int64) + np.repeat(starts[:-1], sizes)
        self.column, self.piece, self._role = self.chunk_column[chunk], self.chunk_piece[chunk], self.table["role"].astype(np.int64)
        self._part_maps()
        self.is_list = (self.column >= 0) & columns.is_list[self.column]
        self.is_pool = self.is_list & self._is(Role.VALUES, 1)
        self._num_rows = np.array([piece.num_rows for piece in pieces], np.int64)
        self._check()

    def _part_maps(self) -> None:
        """The weights of a map become a list column of their own."""
        of_weights = (self._role >= Role.WEIGHT_VALUES) & (self.column >= 0)
        self._role[of_weights] -= Role.WEIGHT_VALUES
        self.column = np.where(of_weights, self._columns.weights[self.column], self.column)

    def _is(self, role: Role, depth: int) -> npt.NDArray[np.bool_]:
        return np.asarray((self.column >= 0) & (self._role == role) & (self.table["depth"] == depth))

    def num_bytes(self) -> npt.NDArray[np.int64]:
        """int64 [R]."""
        return np.asarray(self.table["count"].astype(np.int64) * self.table["item_bytes"])

    def _refuse(self, bad: npt.NDArray[np.bool_], what: str) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            self._corrupt(int(self.column[at]), int(self.piece[at]), what)

    def _corrupt(self, column: int, piece: int, what: str) -> None:
        raise CorruptSegmentError(f"block {self._pieces[piece].block} of the plan, column {self._columns.name(column)!r}: {what}")

    def _check(self) -> None:
        """Every chunk must have the regions that its column's type says, and no other size of them."""
        columns, table, column = self._columns, self.table, self.column
        rows, count, item_bytes = self._num_rows[self.piece], table["count"], table["item_bytes"]
        values = self._is(Role.VALUES, 0) & ~self.is_list
        leaf = values | self.is_pool
        self._refuse(leaf & (table["value_type"] != columns.value_types[column]), "its values are of another type than the column")
        self._refuse(values & (item_bytes != columns.leaf_bytes[column]), "its values are narrower than the column")
        self._refuse(self.is_pool & (item_bytes > columns.leaf_bytes[column]), "its values are wider than the column")
        self._refuse(values & (count != rows * columns.width[column]), "it has another number of values than rows")
        views, validity = self._is(Role.VIEWS, 0) & self.is_list, self._is(Role.VALIDITY, 0)
        self._refuse(views & ((count != rows) | (item_bytes != 8)), "it has another number of lists than rows")
        self._refuse(validity & ((count != rows) | (item_bytes != 1)), "it has another number of validity bytes than rows")
        items = self._is(Role.VALIDITY, 1) & ~self.is_list
        self._refuse(items & ((count != rows * columns.width[column]) | (item_bytes != 1)), "it has another number of validity bytes than values")
        nulls = self._is(Role.VALIDITY, 1) & self.is_list
        if nulls.any():
            raise SchemaError(f"column {columns.name(int(column[np.argmax(nulls)]))!r} has nulls inside its lists: {NULL_ITEMS}")
        self._check_found(values | views)

    def _check_found(self, shown: npt.NDArray[np.bool_]) -> None:
        """Every chunk has one region of values or views, a list one of the pool too; the weights of a map may have the views of its keys."""
        columns, shape = self._columns, (len(self._columns), len(self._pieces))
        found, pools = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        np.add.at(found, (self.column[shown], self.piece[shown]), 1)
        np.add.at(pools, (self.column[self.is_pool], self.piece[self.is_pool]), 1)
        for number, piece in enumerate(self._pieces):
            present = piece.columns[piece.columns >= 0]
            weights = columns.weights[present]
            wrong = (found[present, number] != 1) | (pools[present, number] != columns.is_list[present])
            wrong |= (weights >= 0) & ((found[weights, number] > 1) | (pools[weights, number] != 1))
            if wrong.any():
                self._corrupt(int(present[np.argmax(wrong)]), number, "its chunk has no values, or more than one region of them")
            wrong = piece.program.num_rows[: present.size] != piece.num_rows
            if wrong.any():
                self._corrupt(int(present[np.argmax(wrong)]), number, f"its chunk has another number of rows than the block's {piece.num_rows:,}")

    def planes(self, addresses: npt.NDArray[np.int64]) -> Array:
        """PIECE_ITEMS [2 C, P], with region k at `addresses[k]`."""
        count = len(self._columns)
        keys = np.flatnonzero(self._columns.weights >= 0)
        weights = self._columns.weights[keys]
        planes = np.zeros((2 * count, len(self._pieces)), PIECE_ITEMS)
        planes["kind"], planes["num_rows"] = ZEROS, self._num_rows
        for number, piece in enumerate(self._pieces):
            planes["kind"][count + piece.columns[piece.columns >= 0], number] = ONES
        shown = (self._is(Role.VALUES, 0) & ~self.is_list) | (self._is(Role.VIEWS, 0) & self.is_list)
        for chosen, first in ((shown, 0), (self._is(Role.VALIDITY, 0), count)):
            at = first + self.column[chosen], self.piece[chosen]
            planes["items"][at], planes["kind"][at] = addresses[chosen], ITEMS
        planes[weights] = np.where(planes["kind"][weights] == ZEROS, planes[keys], planes[weights])  # where both lists have the same views
        planes["kind"][count + weights] = ONES  # a map is null as one
        return planes

    def pools(self, addresses: npt.NDArray[np.int64]) -> Array:
        """POOL_PIECE [L, P], with region k at `addresses[k]`."""
        pools = np.zeros((len(self._columns.lists), len(self._pieces)), POOL_PIECE)
        pools["item_bytes"] = self._columns.leaf_bytes[self._columns.lists][:, None]
        chosen = self.is_pool
        at = self._columns.list_number[self.column[chosen]], self.piece[chosen]
        pools["pool"][at], pools["base"][at] = addresses[chosen], self.table["base"][chosen]
        pools["pool_count"][at], pools["item_bytes"][at] = self.table["count"][chosen], self.table["item_bytes"][chosen]
        return pools

    def item_validity(self, addresses: npt.NDArray[np.int64]) -> dict[tuple[int, int], int]:
        """Where fixed-size lists store validity of their items, by (column, piece)."""
        chosen = np.flatnonzero(self._is(Role.VALIDITY, 1) & ~self.is_list)
        keys = zip(self.column[chosen].tolist(), self.piece[chosen].tolist(), strict=True)
        return dict(zip(keys, addresses[chosen].tolist(), strict=True))
