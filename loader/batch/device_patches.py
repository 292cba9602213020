"""Patches of a window as tables for one launch: what Arrow holds becomes rows, items and validity bytes that a kernel scatters.

Owns the cases: a column that stores no validity, one that a block is too old to have, and lists, whose new values form a second pool.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.device_columns import DeviceColumns
from loader.batch.device_tables import INVERTED, ITEMS, ONES, PATCH, ZEROS, aligned
from loader.batch.window import NULL_ITEMS
from loader.encodings.shred import Leaf, shred
from loader.errors import CorruptSegmentError, SchemaError
from loader.scan.encoded import BlockPatch

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MoreValues:
    """The values of a patched list column of one piece, in the leaf's own type."""

    list_number: int
    piece: int
    values: Array


class PatchTables:
    """Collects the patches of a window. Addresses come last: `records` puts them in.

    Args:
        columns: Of the window.
        planes: PIECE_ITEMS [planes, pieces], addresses of what was decoded; changed where a patch needs memory of its own.
        pool_counts: int64 [lists, pieces], items of the pools.
        item_validity: PIECE_ITEMS by (column, piece) of fixed-size lists that store validity of items.
    """

    def __init__(self, columns: DeviceColumns, planes: Array, pool_counts: npt.NDArray[np.int64], item_validity: dict[tuple[int, int], int]) -> None:
        self._columns, self._planes, self._pool_counts, self._item_validity = columns, planes, pool_counts, item_validity
        self.arrays: list[Array] = []
        self.more: list[MoreValues] = []
        # column, target, is it in zeroed memory, rows, items, width, unit bytes, rows of the block
        self._patches: list[tuple[int, int, bool, int, int, int, int, int]] = []
        self._fixups: list[tuple[int, int, int]] = []
        self.zeroed_bytes = 0

    @property
    def num_patches(self) -> int:
        return len(self._patches)

    def add(self, column: int, piece: int, patch: BlockPatch, num_rows: int) -> None:
        """One column's patch of one piece.

        Raises:
            SchemaError: It has nulls inside lists.
        """
        read = self._columns.columns.read[column]
        node = shred(patch.values, read.leaf)
        rows = self._array(patch.rows.astype(np.uint32))
        unit, width = int(self._columns.item_bytes[column]), int(self._columns.width[column])
        if isinstance(node, Leaf):
            present, items = node.validity, node.values.reshape(len(patch.rows), width)
            if present is not None:
                items = np.where(present[:, None], items, np.zeros(1, items.dtype))
            self._add_item_validity(column, piece, node, rows, num_rows)
        else:
            present, child = node.validity, node.child
            items = self._redirect(column, piece, node.lengths, child)
            weights = int(self._columns.weights[column])
            if weights >= 0:
                own = self._planes[weights, piece]["items"] != self._planes[column, piece]["items"]
                starts = self._redirect(weights, piece, node.lengths, node.weights)
                if not own and not np.array_equal(starts, items):
                    raise CorruptSegmentError(f"column {read.name!r}: keys and weights share their views and differ in number")
                if own or self._planes[weights, piece]["kind"] == ZEROS:
                    self._patch(weights, piece, rows, self._array(starts), 1, 8, num_rows, missing=ITEMS)
        is_old = self._planes[column, piece]["kind"] == ZEROS
        self._patch(column, piece, rows, self._array(items), width, unit, num_rows, missing=ITEMS)
        validity = len(self._columns) + column
        if is_old or self._planes[validity, piece]["kind"] == ITEMS:
            present = np.ones(len(patch.rows), np.uint8) if present is None else present.astype(np.uint8)
            self._patch(validity, piece, rows, self._array(present), 1, 1, num_rows, missing=ITEMS)
        elif present is not None:
            self._patch(validity, piece, rows, self._array((~present).astype(np.uint8)), 1, 1, num_rows, missing=INVERTED)

    def _redirect(self, column: int, piece: int, lengths: npt.NDArray[np.int64], child: Any) -> Array:
        """The views of new lists, past the end of the pool."""
        if not isinstance(child, Leaf) or child.validity is not None:
            raise SchemaError(f"column {self._columns.name(column)!r} has nulls inside its lists: {NULL_ITEMS}")
        number = int(self._columns.list_number[column])
        starts = int(self._pool_counts[number, piece]) + np.cumsum(lengths) - lengths
        self.more.append(MoreValues(list_number=number, piece=piece, values=child.values))
        return np.asarray(starts.astype(np.uint64) | lengths.astype(np.uint64) << np.uint64(32))

    def _add_item_validity(self, column: int, piece: int, node: Leaf, rows: int, num_rows: int) -> None:
        width = int(self._columns.width[column])
        target = self._item_validity.get((column, piece))
        if target is not None:
            count = node.values.size
            items = np.ones(count, np.uint8) if node.item_validity is None else node.item_validity.reshape(-1).astype(np.uint8)
            self._patches.append((column, target, False, rows, self._array(items), width, 1, num_rows))
        elif node.item_validity is not None:
            holes = ~node.item_validity.reshape(-1, width).all(axis=1)
            if (holes if node.validity is None else holes & node.validity).any():
                raise SchemaError(f"column {self._columns.name(column)!r} has nulls inside its lists: {NULL_ITEMS}")

    def _patch(self, plane: int, piece: int, rows: int, items: int, width: int, unit: int, num_rows: int, *, missing: int) -> None:
        """Scatter into a plane of a piece, which gets zeroed memory where it has none."""
        record = self._planes[plane, piece]
        zeroed = record["kind"] in (ZEROS, ONES)
        target = int(record["items"])
        if zeroed:
            target, self.zeroed_bytes = self.zeroed_bytes, self.zeroed_bytes + int(aligned(num_rows * width * unit))
            record["kind"], record["num_rows"] = missing, num_rows
            self._fixups.append((plane, piece, target))
        self._patches.append((plane % len(self._columns), target, zeroed, rows, items, width, unit, num_rows))

    def _array(self, array: Array) -> int:
        self.arrays.append(array)
        return len(self.arrays) - 1

    def records(self, zeroed: int, arrays: list[int]) -> Array:
        """PATCH records, once it is known where zeroed memory starts and where each of `arrays` lies; puts addresses into the planes too."""
        for plane, piece, at in self._fixups:
            self._planes[plane, piece]["items"] = zeroed + at
        table = np.zeros(len(self._patches), PATCH)
        for record, (column, target, is_zeroed, rows, items, width, unit, num_rows) in zip(table, self._patches, strict=True):
            record["target"] = target + (zeroed if is_zeroed else 0)
            record["rows"], record["items"], record["count"] = arrays[rows], arrays[items], self.arrays[rows].size
            record["width"], record["unit_bytes"], record["num_rows"], record["column"] = width, unit, num_rows, column
        return table
