"""Batch assembly on a GPU: five launches whatever the number of columns. `begin` gathers rows and sums list lengths, `finish` lays the lists out once the
host knows their totals, which come back by event while the batch before is finished.

Bit for bit what `assemble` makes on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loader.batch.device import BatchDevice
from loader.batch.device_arrays import DeviceArrays, FixedPlaces, ListPlaces
from loader.batch.device_buffers import DeviceLease
from loader.batch.device_columns import DeviceColumns
from loader.batch.device_tables import (
    BATCH_PART,
    ENTRY_BITS,
    LIST_COLUMN,
    LIST_OUT,
    MAX_BATCH_ROWS,
    PLANES_PER_BLOCK,
    TILE_ROWS,
    TILE_VALUES,
    places,
)
from loader.batch.device_window import DeviceWindow
from loader.batch.parts import Part
from loader.batch.window import NULL_ITEMS
from loader.errors import CorruptSegmentError, SchemaError
from loader.kernels.native import NO_ERROR, describe_error

if TYPE_CHECKING:
    from loader.kernels.runtime import Event

Array = npt.NDArray[Any]
ERROR_NULL_ITEM = 9  # of lanes.cuh


class BatchUnderWay:
    """A batch of which the rows are gathered, or about to be.

    Attributes:
        parts: Where its rows come from.
        totals_known: Happens when the sums of its lists are on the host.
    """

    def __init__(self, parts: Sequence[Part[DeviceWindow]], num_rows: int, num_samples: int) -> None:
        self.parts, self.num_rows, self.num_samples = tuple(parts), num_rows, num_samples
        self.span = -1
        self.report: Array = np.zeros(0, np.uint64)
        self.totals_known: Event = None
        self.fixed: DeviceLease | None = None
        self.fixed_places: FixedPlaces | None = None
        self.tables: list[int] = []
        self.lists: Array = np.zeros(0, LIST_COLUMN)


class DeviceAssembler:
    """Makes batches on a device. One thread.

    Args:
        device: Where windows lie.
        columns: Of windows and batches.
    """

    def __init__(self, device: BatchDevice, columns: DeviceColumns) -> None:
        self._device, self._columns = device, columns

    def begin(self, parts: Sequence[Part[DeviceWindow]], *, pad_to: int = 0) -> BatchUnderWay:
        """Gather rows and add up lists; nothing waits.

        Args:
            parts: In the order of the batch; none of no rows.
            pad_to: Least number of rows; missing ones are zeros and empty lists.

        Raises:
            ValueError: The batch has 2^24 rows or more.
            DeviceMemoryError: There is no room.
        """
        num_samples = sum(part.num_rows for part in parts)
        batch = BatchUnderWay(parts, max(num_samples, pad_to), num_samples)
        if batch.num_rows >= MAX_BATCH_ROWS:
            raise ValueError(f"a batch of {batch.num_rows:,} rows on one GPU; fewer than {MAX_BATCH_ROWS:,} are possible: lower global_batch_size")
        device, columns = self._device, self._columns
        has_validity = np.zeros(len(columns), np.bool_)
        for part in parts:
            has_validity |= part.window.has_validity
        batch.fixed_places = FixedPlaces.of(columns, batch.num_rows, has_validity)
        batch.fixed = device.pool.empty(batch.fixed_places.num_bytes)
        tiles, num_lists = -(-batch.num_rows // TILE_ROWS), len(columns.lists)
        batch.lists = self._list_columns(batch.num_rows)
        table_bytes = int(batch.lists["slots"].sum(dtype=np.int64)) * 4
        scratch_bytes = 3 * 4 * batch.num_rows * columns.num_unique
        report, sums = np.full(1 + num_lists, NO_ERROR, np.uint64), num_lists * max(tiles, 1)
        tables = [report, self._parts(parts), batch.fixed_places.planes(batch.fixed.address), batch.lists]
        starts, num_bytes = places([*(table.nbytes for table in tables), 8 * sums, table_bytes, scratch_bytes])
        batch.span = device.take_heap(num_bytes, "the tables of a batch", passing=True)
        at = batch.tables = (device.heap_base + batch.span + starts).tolist()
        self._place_scratch(batch.lists, at[5], at[6], batch.num_rows)
        try:
            self._start(batch, tables, table_bytes, tiles)
        except BaseException:
            device.free_heap(batch.span)
            raise
        return batch

    def _start(self, batch: BatchUnderWay, tables: list[Array], table_bytes: int, tiles: int) -> None:
        """Upload, launch, and send the sums back."""
        device, at, num_lists = self._device, batch.tables, len(self._columns.lists)
        device.upload(batch.span, tables)
        if table_bytes:
            device.runtime.zero(at[5], table_bytes, device.work)
        self._launch_rows(batch, tiles)
        batch.report = device.pinned(8 * (1 + num_lists)).view(np.uint64)[: 1 + num_lists]
        device.runtime.copy_to_host(batch.report, at[0], batch.report.nbytes, device.work)
        batch.totals_known = device.sent(batch.report)

    def _launch_rows(self, batch: BatchUnderWay, tiles: int) -> None:
        """Rows, and the sums of lists."""
        assert batch.fixed_places is not None
        device, columns, at = self._device, self._columns, batch.tables
        num_parts, num_lists, num_planes = len(batch.parts), len(columns.lists), batch.fixed_places.num_planes
        groups = -(-num_planes // PLANES_PER_BLOCK) + columns.num_unique
        if not tiles:
            return
        if groups:
            device.launch("batch_rows", (tiles, groups), (at[1], num_parts, at[2], num_planes, at[3], batch.num_rows, batch.num_samples, at[0]))
        if num_lists:
            device.launch("list_sums", (tiles, num_lists), (at[1], num_parts, at[3], batch.num_rows, batch.num_samples, at[4], at[0]))
            device.launch("scan_lists", (1, num_lists), (at[4], tiles, at[0] + 8))

    def _parts(self, parts: Sequence[Part[DeviceWindow]]) -> Array:
        table, at = np.zeros(len(parts), BATCH_PART), 0
        for record, part in zip(table, parts, strict=True):
            window = part.window
            record["planes"], record["pieces"], record["pools"], record["num_pieces"] = window.planes, window.pieces, window.pools, window.num_pieces
            record["at"], record["start"], record["step"] = at, part.start, part.step
            at += part.num_rows
        return table

    def _list_columns(self, num_rows: int) -> Array:
        columns = self._columns
        table = np.zeros(len(columns.lists), LIST_COLUMN)
        table["plane"] = table["column"] = columns.lists
        table["list"] = np.arange(len(table))
        table["slots"][: columns.num_unique] = 1 << (2 * num_rows).bit_length()
        return table

    def _place_scratch(self, lists: Array, tables: int, scratch: int, num_rows: int) -> None:
        """Memory for the unexpanded columns: hash table, first row of each row's list, number of each list, row of each list."""
        number = np.arange(self._columns.num_unique)
        unique = lists[: len(number)]
        unique["table"] = tables + 4 * number * unique["slots"].astype(np.int64)
        for place, name in enumerate(("first", "number", "entry_row")):
            unique[name] = scratch + 4 * num_rows * (3 * number + place)

    def finish(self, batch: BatchUnderWay) -> DeviceArrays:
        """Lay the lists out. Blocks until the sums are known, which they are if there was other work meanwhile.

        Raises:
            CorruptSegmentError: A block did not decode, or a view leaves its pool.
            SchemaError: A list holds a null.
        """
        device, columns, runtime = self._device, self._columns, self._device.runtime
        runtime.synchronize(batch.totals_known)
        self._check(batch)
        num_lists, num_rows = len(columns.lists), batch.num_rows
        totals = batch.report[1:].astype(np.int64) if num_rows else np.zeros(num_lists, np.int64)
        values, entries = totals >> ENTRY_BITS, totals & ((1 << ENTRY_BITS) - 1)
        offset_places, offset_bytes = places(8 * (entries + 1))
        inverse_places, inverse_bytes = places(np.full(columns.num_unique, 8 * num_rows))
        value_places, value_bytes = places(values * columns.leaf_bytes[columns.lists])
        offsets, out = device.pool.empty(offset_bytes + inverse_bytes), device.pool.empty(value_bytes)
        if num_lists and num_rows:
            tiles = -(-values // TILE_VALUES)
            outs = np.zeros(num_lists, LIST_OUT)
            outs["offsets"], outs["values"] = offsets.address + offset_places, out.address + value_places
            outs["inverse"][: columns.num_unique] = offsets.address + offset_bytes + inverse_places
            outs["first_tile"], outs["num_tiles"] = np.cumsum(tiles) - tiles, tiles
            outs["item_bytes"], outs["num_entries"] = columns.leaf_bytes[columns.lists], entries
            self._launch_lists(batch, outs)
        elif num_lists:
            runtime.zero(offsets.address, offset_bytes, device.work)
        device.free_heap(batch.span)
        assert batch.fixed is not None and batch.fixed_places is not None
        return DeviceArrays(
            num_rows=num_rows,
            num_samples=batch.num_samples,
            columns=columns,
            fixed=batch.fixed,
            fixed_places=batch.fixed_places,
            offsets=offsets,
            values=out,
            list_places=ListPlaces(
                offsets=offset_places, inverses=offset_bytes + inverse_places, values=value_places, num_entries=entries, num_values=values, num_rows=num_rows
            ),
            blocks=_join([part.window.blocks[part.rows] for part in batch.parts]),
            rows=_join([part.window.rows[part.rows] for part in batch.parts]),
            ready=device.done(),
            runtime=runtime,
        )

    def _launch_lists(self, batch: BatchUnderWay, outs: Array) -> None:
        device, columns, at, num_rows = self._device, self._columns, batch.tables, batch.num_rows
        num_tiles, row_tiles = int(outs["num_tiles"].sum(dtype=np.int64)), -(-num_rows // TILE_ROWS)
        starts, num_bytes = places([outs.nbytes, 4 * num_tiles])
        span = device.take_heap(num_bytes, "the tables of a batch", passing=True)
        table, first_entry = (device.heap_base + span + starts).tolist()
        device.upload(span, [outs])
        common = (at[1], len(batch.parts), at[3], table)
        device.launch("list_offsets", (row_tiles, len(outs)), (*common, num_rows, batch.num_samples, at[4], first_entry))
        blocks = num_tiles + columns.num_unique * row_tiles
        if blocks:
            device.launch("list_values", (blocks, 1), (*common, len(outs), num_tiles, num_rows, batch.num_samples, first_entry))
        device.free_heap(span)

    def discard(self, batch: BatchUnderWay) -> None:
        """Give back what a batch holds that will not be finished."""
        self._device.synchronize()
        self._device.free_heap(batch.span)

    def _check(self, batch: BatchUnderWay) -> None:
        """Raise what the kernels reported of the batch. Words of its windows came before."""
        word = int(batch.report[0])
        if word != NO_ERROR:
            self.raise_error(word, "a batch")

    def raise_error(self, word: int, where: str) -> None:
        """What an error word of window.cu or batch.cu means.

        Raises:
            CorruptSegmentError: A row, patch or view lies outside.
            SchemaError: A list holds a null.
        """
        number, tile, reason = describe_error(word)
        name = repr(self._columns.name(number)) if number < len(self._columns) else f"number {number}"
        if word & 0xFF == ERROR_NULL_ITEM:
            raise SchemaError(f"column {name} has nulls inside its lists: {NULL_ITEMS}")
        raise CorruptSegmentError(f"{where}: column {name}: {reason} (rows from {tile * TILE_ROWS:,} on)")


def _join(pieces: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.uint32]:
    return np.concatenate([np.zeros(0, np.uint32), *pieces])
