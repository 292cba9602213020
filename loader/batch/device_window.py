"""Window fill on a GPU: encoded blocks are copied as they arrive, decoded together, patched, and permuted into the window's planes.

Everything here puts work on streams and returns; nothing waits for the device but memory that it still uses. What a window needs for as long as it is held
(planes, pools of lists, the piece of each row) stays in the heap, what is read once is free again at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.device import BatchDevice
from loader.batch.device_columns import DeviceColumns
from loader.batch.device_patches import PatchTables
from loader.batch.device_pieces import Piece, PieceRegions
from loader.batch.device_tables import ITEMS, NO_PLANE, ONES, PIECE_ITEMS, PLANES_PER_BLOCK, TILE_ROWS, WINDOW_PLANE, places
from loader.batch.window import window_rows
from loader.decode.cuda import Decoding
from loader.decode.inflate import inflate_into_slab, inflated_bytes
from loader.decode.join import join_programs
from loader.decode.place import place_regions
from loader.decode.program import build
from loader.kernels.native import NO_ERROR
from loader.kernels.runtime import Event
from loader.scan.columns import LabelFill
from loader.scan.encoded import EncodedBlock
from loader.segment.layout import PADDING_BYTES

Array = npt.NDArray[Any]
PATCH_TILES = 16  # blocks that share a patch: a stride, not a limit


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DeviceWindow:
    """A decoded, permuted window on the device. Nothing in it is written again.

    Attributes:
        num_rows: Rows.
        num_pieces: Blocks it comes from.
        planes: Address of u64 [2 C], the address of each plane, or 0 for validity without a null.
        pieces: Address of u32 [rows].
        pools: Address of POOL_PIECE [lists, pieces].
        report: uint64 [1], pinned: the error word of patches and permutation, once `decoded` has happened.
        has_validity: bool [C], columns that may have a null.
        blocks: uint32 [rows], index in the plan's list of blocks; on the host.
        rows: uint32 [rows], row inside the block; on the host.
        decoding: What decoding will have said.
        copied: Happens when the encoded bytes are on the device.
        decoded: Happens when the window is filled.
        plan_blocks: Index in the plan's list of each piece.
        chunk_piece: int64 [chunks of the program].
        chunk_column: int64 [chunks of the program], or -1.
        spans: What it holds of the heap.
        num_bytes: Their bytes.
    """

    num_rows: int
    num_pieces: int
    planes: int
    pieces: int
    pools: int
    report: npt.NDArray[np.uint64]
    has_validity: npt.NDArray[np.bool_]
    blocks: npt.NDArray[np.uint32]
    rows: npt.NDArray[np.uint32]
    decoding: Decoding
    copied: Event
    decoded: Event
    plan_blocks: tuple[int, ...]
    chunk_piece: npt.NDArray[np.int64]
    chunk_column: npt.NDArray[np.int64]
    spans: tuple[int, ...]
    num_bytes: int


class DeviceWindowFill:
    """Collects the blocks of one window.

    Args:
        device: Where to.
        columns: What the blocks decode to.
        piece: int64 [rows], for each row of the window, in the order of yielding, which piece it comes from.
        ordinal: int64 [rows], and its ordinal among the selected rows of that piece's block.
        label: How null labels read.
    """

    def __init__(
        self, device: BatchDevice, columns: DeviceColumns, piece: npt.NDArray[np.int64], ordinal: npt.NDArray[np.int64], label: LabelFill | None = None
    ) -> None:
        self._device, self._columns, self._label = device, columns, label
        self._piece, self._ordinal = piece, ordinal
        self._pieces: list[Piece] = []
        self._selected: list[npt.NDArray[np.int64] | None] = []
        self._spans: list[int] = []

    def add(self, number: int, block: EncodedBlock) -> None:
        """Put the copy of a block on its way and read its headers.

        Args:
            number: Index in the plan's list.
            block: May be dropped when this returns.

        Raises:
            CorruptSegmentError: Its headers do not hold together.
            DeviceMemoryError: There is no room for its encoded bytes.
        """
        present, offsets, sizes, shared = block.program_chunks()
        used = block.slab.size - PADDING_BYTES
        program = build(block.slab, offsets, sizes, shared=shared)
        more = inflated_bytes(program)
        if more:
            room = self._device.large(used + more + PADDING_BYTES)
            room[:used] = block.slab[:used]
            program, used = inflate_into_slab(program, room, used)
            slab = self._device.copy_slab(room, used)
        else:
            slab = self._device.copy_slab(block.slab, used)
        columns = np.full(program.num_rows.size, -1, np.int64)
        columns[: present.size] = present
        self._selected.append(block.selected_rows())
        self._pieces.append(Piece(block=number, num_rows=block.num_rows, slab=slab, program=program, columns=columns, patches=block.patches))

    def discard(self) -> None:
        """Give back what was taken, where the window will not be finished."""
        if self._pieces or self._spans:
            self._device.synchronize()
        for piece in self._pieces:
            self._device.free_slab(piece.slab, None)
        for span in self._spans:
            self._device.free_heap(span)
        self._pieces, self._spans = [], []

    def finish(self) -> DeviceWindow:
        """Put decoding, patching and permuting on the work stream.

        Raises:
            CorruptSegmentError: Chunks have other regions than their columns need.
            SchemaError: A list holds a null.
            DeviceMemoryError: The window has no room.
        """
        device, base = self._device, self._device.heap_base
        regions = PieceRegions(self._columns, self._pieces)
        starts = np.zeros(regions.table.size, np.int64)
        pool_places, pool_bytes = places(regions.num_bytes()[regions.is_pool])
        once_places, once_bytes = places(regions.num_bytes()[~regions.is_pool])
        pools, once = self._take(pool_bytes, "the lists of a window"), self._take(once_bytes, "what decodes to a window", passing=True)
        starts[regions.is_pool], starts[~regions.is_pool] = pools + pool_places, once + once_places
        planes, pool_pieces = regions.planes(base + starts), regions.pools(base + starts)
        items = regions.item_validity(base + starts)
        patches = PatchTables(self._columns, planes, pool_pieces["pool_count"].astype(np.int64), items)
        for number, piece in enumerate(self._pieces):
            for column, patch in piece.patches.items():
                patches.add(column, number, patch, piece.num_rows)
        copied = device.copied()
        decoding = self._decode(starts)
        held = self._hold(planes, pool_pieces, patches)
        passing = self._permute(held, planes, patches, items)
        report = device.pinned(8).view(np.uint64)
        device.runtime.copy_to_host(report, held.error, 8, device.work)
        decoded = device.sent(report)
        for piece in self._pieces:
            device.free_slab(piece.slab, decoded)
        for span in (once, *passing):
            device.free_heap(span)
        blocks = np.array([piece.block for piece in self._pieces], np.uint32)
        window = DeviceWindow(
            num_rows=len(self._piece),
            num_pieces=len(self._pieces),
            planes=held.planes,
            pieces=held.pieces,
            pools=held.pools,
            report=report,
            has_validity=held.has_validity,
            blocks=blocks[self._piece],
            rows=held.rows,
            decoding=decoding,
            copied=copied,
            decoded=decoded,
            plan_blocks=tuple(blocks.tolist()),
            chunk_piece=regions.chunk_piece,
            chunk_column=regions.chunk_column,
            spans=(pools, held.span),
            num_bytes=pool_bytes + held.num_bytes,
        )
        self._pieces, self._spans = [], []
        return window

    def _take(self, num_bytes: int, what: str, *, passing: bool = False) -> int:
        span = self._device.take_heap(num_bytes, what, passing=passing)
        self._spans.append(span)
        return span

    def _decode(self, starts: npt.NDArray[np.int64]) -> Decoding:
        """One program for all pieces, regions at `starts` of the heap, behind their copies."""
        device, programs, at = self._device, [], 0
        for piece in self._pieces:
            size = piece.program.regions.size
            programs.append(place_regions(piece.program, starts[at : at + size]))
            at += size
        program = join_programs(programs, [piece.slab for piece in self._pieces], [0] * len(programs))
        return device.decode(program)

    def _hold(self, planes: Array, pools: Array, patches: PatchTables) -> _Held:
        """Take and upload what the window keeps: planes to be written, and the tables that batches read."""
        columns, device, num_rows = self._columns, self._device, len(self._piece)
        count = len(columns)
        has_validity = (planes["kind"][count:] != ONES).any(axis=1)
        sizes = np.concatenate([columns.item_bytes * columns.width, has_validity]) * num_rows
        plane_places, plane_bytes = places(sizes)
        more = [one.values for one in patches.more]
        rows = window_rows(self._piece, self._ordinal, self._selected)
        tables: list[Array] = [np.array([NO_ERROR], np.uint64), self._piece.astype(np.uint32), np.zeros(2 * count, np.uint64), pools, *more]
        table_places, table_bytes = places([table.nbytes for table in tables])
        span = self._take(plane_bytes + table_bytes, "a window")
        outs = np.where(np.concatenate([np.ones(count, np.bool_), has_validity]), device.heap_base + span + plane_places, 0).astype(np.uint64)
        at = (device.heap_base + span + plane_bytes + table_places).tolist()
        for one, address in zip(patches.more, at[4:], strict=True):
            record = pools[one.list_number, one.piece]
            record["more"], record["more_count"] = address, one.values.size
        tables[2] = outs
        device.upload(span + plane_bytes, tables)
        return _Held(
            span=span,
            num_bytes=plane_bytes + table_bytes,
            error=at[0],
            pieces=at[1],
            planes=at[2],
            pools=at[3],
            outs=outs,
            has_validity=has_validity,
            rows=rows,
        )

    def _permute(self, held: _Held, planes: Array, patches: PatchTables, items: dict[tuple[int, int], int]) -> tuple[int, ...]:
        """Scatter patches and permute; returns the spans that are free once this is launched."""
        device, columns, num_rows = self._device, self._columns, len(self._piece)
        checked = sorted({column for column, _ in items})
        shown = np.flatnonzero(held.outs)
        table = np.zeros(len(shown) + len(checked), WINDOW_PLANE)
        table["plane"] = np.concatenate([shown, len(planes) + np.arange(len(checked))])
        table["out"][: len(shown)] = held.outs[shown]
        table["item_bytes"] = np.concatenate([columns.item_bytes, np.ones(len(columns), np.int64)])[shown].tolist() + [1] * len(checked)
        table["width"] = np.concatenate([columns.width, np.ones(len(columns), np.int64)])[shown].tolist() + columns.width[checked].tolist()
        table["column"] = np.concatenate([shown % len(columns), checked]).astype(np.uint32)
        table["validity_plane"] = [NO_PLANE] * len(shown) + [len(columns) + column for column in checked]
        more = np.zeros((len(checked), planes.shape[1]), PIECE_ITEMS)
        more["kind"], more["num_rows"] = ONES, planes["num_rows"][0]
        for (column, piece), address in items.items():
            more[checked.index(column), piece]["items"], more[checked.index(column), piece]["kind"] = address, ITEMS
        fills = self._label is not None and bool(held.has_validity[self._label.label])
        label = columns.label_fill(self._label) if fills and self._label is not None else np.zeros(0, np.uint8)
        zeroed = self._take(patches.zeroed_bytes, "the patches of a window", passing=True) if patches.zeroed_bytes else 0
        # addresses of the arrays must be known before the records that name them
        sizes = [array.nbytes for array in patches.arrays]
        arrays, array_bytes = places(sizes)
        patch_span = self._take(array_bytes, "the patches of a window", passing=True) if patches.num_patches else 0
        records = patches.records(device.heap_base + zeroed, (device.heap_base + patch_span + arrays).tolist())
        tables = [held.rows, table, np.concatenate([planes, more]), label, records]
        span = self._take(places([one.nbytes for one in tables])[1], "the tables of a window", passing=True)
        at = device.upload(span, tables)
        if patches.num_patches:
            device.upload(patch_span, patches.arrays)
            if patches.zeroed_bytes:
                device.runtime.zero(device.heap_base + zeroed, patches.zeroed_bytes, device.work)
            device.launch("scatter_patches", (len(records), PATCH_TILES), (at[4], held.error))
        grid = (-(-num_rows // TILE_ROWS), -(-len(table) // PLANES_PER_BLOCK))
        device.launch("permute_window", grid, (at[1], len(table), at[2], planes.shape[1], held.pieces, at[0], num_rows, at[3] if fills else 0, held.error))
        return (span, *([patch_span] if patches.num_patches else []), *([zeroed] if patches.zeroed_bytes else []))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Held:
    """What a window keeps, with its addresses."""

    span: int
    num_bytes: int
    error: int
    pieces: int
    planes: int
    pools: int
    outs: npt.NDArray[np.uint64]
    has_validity: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.uint32]
