"""A fetched block decoded to columns: chunks through the decode program, then patches scattered, then closed labels filled.

Owns the order of these three steps and the null columns of segments older than a column. Works on bytes in memory only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loader.decode.arrow import widened
from loader.decode.result import DecodedColumn, FixedColumn, ListColumn, decode_block, num_entries
from loader.encodings.leaf import LeafType
from loader.encodings.shred import Leaf, ListNode, Node, shred
from loader.scan.columns import LabelFill, ReadColumn
from loader.scan.encoded import BlockPatch, EncodedBlock

LENGTH_SHIFT = np.uint64(32)
Bits: TypeAlias = npt.NDArray[np.uint8]


class Arena:
    """Memory that decoding writes into, block after block; grows to the largest."""

    def __init__(self) -> None:
        self.memory: npt.NDArray[np.uint8] | None = None


def decode(
    block: EncodedBlock,
    columns: Sequence[ReadColumn],
    *,
    label: LabelFill | None = None,
    threads: int = 1,
    arena: Arena | None = None,
) -> list[DecodedColumn]:
    """All columns of a block, every stored row of it.

    Args:
        block: Encoded chunks, in the order of `columns`.
        columns: What they are.
        label: How null labels read.
        threads: For the native executor.
        arena: Memory to decode into: what is returned lies in it and is overwritten by the next call. Default fresh memory.

    Raises:
        CorruptSegmentError: A chunk does not decode.
    """
    present, offsets, sizes, shared = block.program_chunks()
    memory = None if arena is None else arena.memory
    leaves = [columns[i].leaf for i in present.tolist()]
    decoded = decode_block(block.slab, offsets, sizes, leaves, threads=threads, arena=memory, shared=shared)
    if arena is not None:
        arena.memory = decoded.arena
    found = dict(zip(present.tolist(), decoded.columns, strict=True))
    out = [found[i] if i in found else null_column(column.leaf, block.num_rows) for i, column in enumerate(columns)]
    for index, patch in block.patches.items():
        out[index] = scatter(out[index], columns[index], patch)
    if label is not None:
        out[label.label] = fill_label(out, label)
    return out


def null_column(leaf: LeafType, num_rows: int) -> DecodedColumn:
    """A column of nulls, as a segment older than the column reads."""
    validity = np.zeros(num_rows, np.uint8)
    if not leaf.depth:
        shape = (num_rows, leaf.fixed_size) if leaf.fixed_size else (num_rows,)
        return FixedColumn(values=np.zeros(shape, leaf.dtype), validity=validity)
    views = np.zeros(num_rows, np.uint64)
    child = dataclasses.replace(null_column(dataclasses.replace(leaf, depth=leaf.depth - 1, weights=None), 0), validity=None)
    weights = None if leaf.weights is None else dataclasses.replace(null_column(leaf.weights, num_rows), validity=None)
    assert weights is None or isinstance(weights, ListColumn)
    return ListColumn(views=views, validity=validity, child=child, weights=weights)


def scatter(column: DecodedColumn, read: ReadColumn, patch: BlockPatch) -> DecodedColumn:
    """Put the values of a patch into a decoded column. Fixed-width values are written in place; lists are redirected into a longer pool."""
    node = shred(patch.values, read.leaf)
    if isinstance(column, FixedColumn):
        assert isinstance(node, Leaf)
        values = node.values.reshape(len(patch.rows), *column.values.shape[1:])
        if node.validity is not None:
            values = np.where(node.validity.reshape(-1, *[1] * (values.ndim - 1)), values, np.zeros(1, values.dtype))
        column.values[patch.rows] = values
        items = None if node.item_validity is None else node.item_validity.reshape(values.shape)
        return dataclasses.replace(
            column,
            validity=_patched(column.validity, len(column.values), patch.rows, node.validity),
            item_validity=_patched(column.item_validity, column.values.shape, patch.rows, items),
        )
    assert isinstance(node, ListNode)
    patched = _redirect(column, node, patch.rows, read.leaf)
    validity = _patched(column.validity, len(column.views), patch.rows, node.validity)
    if column.weights is None:
        return dataclasses.replace(patched, validity=validity)
    assert node.weights is not None
    assert read.leaf.weights is not None
    # the two lists part here: their pools grow by themselves
    apart = dataclasses.replace(column.weights, views=column.weights.views.copy()) if column.weights.views is column.views else column.weights
    weights = _redirect(apart, dataclasses.replace(node, child=node.weights), patch.rows, read.leaf.weights)
    return dataclasses.replace(patched, validity=validity, weights=weights)


def _redirect(column: ListColumn, node: ListNode, rows: npt.NDArray[np.uint32], leaf: LeafType) -> ListColumn:
    """Let the views of some rows show new lists at the end of a longer pool."""
    starts = num_entries(column.child) + np.cumsum(node.lengths) - node.lengths
    column.views[rows] = starts.astype(np.uint64) | node.lengths.astype(np.uint64) << LENGTH_SHIFT
    return dataclasses.replace(column, child=_longer(column.child, node.child, dataclasses.replace(leaf, depth=leaf.depth - 1)), base=0)


def _longer(pool: DecodedColumn, node: Node, leaf: LeafType) -> DecodedColumn:
    """A pool with more entries at its end, in the leaf's own type."""
    before = num_entries(pool)
    if isinstance(pool, FixedColumn):
        assert isinstance(node, Leaf)
        values = node.values.reshape(-1, *pool.values.shape[1:])
        shape, added = (before + len(values), *pool.values.shape[1:]), slice(before, None)
        items = None if node.item_validity is None else node.item_validity.reshape(values.shape)
        return FixedColumn(
            values=np.concatenate([widened(pool.values, pool.base, leaf.dtype), values]),
            validity=_patched(_padded(pool.validity, shape[:1]), shape[:1], added, node.validity),
            item_validity=_patched(_padded(pool.item_validity, shape), shape, added, items),
        )
    assert isinstance(node, ListNode)
    starts = num_entries(pool.child) + np.cumsum(node.lengths) - node.lengths
    views = np.concatenate([pool.views, starts.astype(np.uint64) | node.lengths.astype(np.uint64) << LENGTH_SHIFT])
    validity = _patched(_padded(pool.validity, views.shape), views.shape, slice(before, None), node.validity)
    return ListColumn(views=views, validity=validity, child=_longer(pool.child, node.child, dataclasses.replace(leaf, depth=leaf.depth - 1)))


def _padded(validity: Bits | None, shape: tuple[int, ...]) -> Bits | None:
    """A validity of a pool for a longer one; what is added is present."""
    if validity is None:
        return None
    return np.concatenate([validity, np.ones((shape[0] - len(validity), *shape[1:]), np.uint8)])


def _patched(validity: Bits | None, shape: int | tuple[int, ...], rows: Any, patch: npt.NDArray[Any] | None) -> Bits | None:
    """A validity with a patch's own at `rows`; None stands for no null, before and after."""
    if validity is None and patch is None:
        return None
    validity = np.ones(shape, np.uint8) if validity is None else validity
    validity[rows] = 1 if patch is None else patch
    return validity


def fill_label(columns: Sequence[DecodedColumn], label: LabelFill) -> DecodedColumn:
    """The label column with its default where it is null and its window is closed."""
    column = columns[label.label]
    if not isinstance(column, FixedColumn) or column.validity is None:
        return column
    filled = column.validity == 0
    if label.time is not None:
        times = columns[label.time]
        assert isinstance(times, FixedColumn)
        filled &= times.values <= label.last_closed_time
        if times.validity is not None:
            filled &= times.validity != 0
    column.values[filled] = label.default
    column.validity[filled] = 1
    return column
