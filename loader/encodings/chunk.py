"""One column of one block to chunk bytes: validity, views level by level, and the leaf's values."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from loader.encodings.bits import Bitmap
from loader.encodings.builder import ChunkBuilder
from loader.encodings.cascade import choose_stream
from loader.encodings.chooser import Decision, as_integers, encode_booleans, encode_mask, encode_values
from loader.encodings.frame import frame
from loader.encodings.leaf import LeafType
from loader.encodings.options import EncodeOptions
from loader.encodings.overlap import ranges
from loader.encodings.shred import Leaf, ListNode, Node
from loader.encodings.target import OUT_KINDS, Target
from loader.encodings.views import Layout, choose_layout, distinct_rows, emit_views, layout_bytes
from loader.segment.layout import Role, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
_WIDE_INTEGERS = (ValueType.INT64, ValueType.UINT64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """Bytes of a chunk, how they were chosen, and the feature bits that decoding them needs."""

    data: Array
    decision: Decision
    features: int


def encode_chunk(node: Node, leaf: LeafType, num_rows: int, options: EncodeOptions) -> EncodedChunk:
    """Encode one column of one block.

    Args:
        node: From `shred`.
        leaf: Its physical type.
        num_rows: Rows of the block.
        options: What encoders may use.
    """
    builder = ChunkBuilder()
    decision = _encode_node(builder, node, leaf, 0, options)
    return EncodedChunk(data=builder.finish(num_rows), decision=decision, features=builder.features)


def _encode_node(builder: ChunkBuilder, node: Node, leaf: LeafType, depth: int, options: EncodeOptions) -> Decision:
    if isinstance(node, Leaf):
        return _encode_leaf(builder, node, leaf, depth, options)
    if node.validity is not None:
        region = builder.region(Role.VALIDITY, depth=depth, item_bytes=1, value_type=ValueType.BOOL, count=node.validity.size)
        encode_mask(Target(builder=builder, region=region, out_kind=OUT_KINDS[1], count=node.validity.size), node.validity, options)
    if node.weights is not None:
        return _encode_map(builder, node, node.weights, leaf, options)
    slide = leaf.value_type != ValueType.UINT8 or isinstance(node.child, ListNode)
    planes = _planes(node.child, leaf) if options.list_views else None
    layout = choose_layout(node.lengths, planes, item_bytes=_item_bytes(node.child, leaf, options), options=options, slide=slide)
    views = emit_views(builder, layout, depth=depth, count=node.lengths.size, options=options)
    pool = _encode_node(builder, _take(node.child, layout), leaf, depth + 1, options)
    return Decision(tree=f"{layout.text}(pool={pool.tree}, {views})", reason=f"{layout.reason}; pool {pool.reason}")


def _encode_map(builder: ChunkBuilder, node: ListNode, weights: Node, leaf: LeafType, options: EncodeOptions) -> Decision:
    """Keys and weights: one set of views for both, or, where keys repeat and weights do not, one each."""
    assert leaf.weights is not None
    count, children = node.lengths.size, ((node.child, leaf), (weights, leaf.weights))
    planes = [_planes(child, kind) if options.list_views else None for child, kind in children]
    item_bytes = [_item_bytes(child, kind, options) for child, kind in children]
    both = None if planes[0] is None or planes[1] is None else [*planes[0], *planes[1]]
    common = choose_layout(node.lengths, both, item_bytes=sum(item_bytes), options=options)
    own = [choose_layout(node.lengths, plane, item_bytes=size, options=options) for plane, size in zip(planes, item_bytes, strict=True)]
    apart = sum(layout_bytes(layout, size) for layout, size in zip(own, item_bytes, strict=True)) < layout_bytes(common, sum(item_bytes))
    layouts = own if apart else [common, common]
    pools, views = [], []
    for group, ((child, kind), layout) in enumerate(zip(children, layouts, strict=True)):
        # only keys are looked up in a dictionary that blocks share
        options = dataclasses.replace(options, shared=None) if group else options
        with builder.weights() if group else contextlib.nullcontext():
            views.append(emit_views(builder, layout, depth=0, count=count, options=options) if apart or not group else "")
            pools.append(_encode_node(builder, _take(child, layout), kind, 1, options))
    reason = f"pool {pools[0].reason}; weights {pools[1].reason}"
    if apart:
        trees = [f"{layout.text}(pool={pool.tree}, {view})" for layout, pool, view in zip(layouts, pools, views, strict=True)]
        return Decision(tree=f"map({trees[0]}, {trees[1]})", reason=f"{own[0].reason}; weights {own[1].reason}; {reason}")
    return Decision(tree=f"map {common.text}(keys={pools[0].tree}, weights={pools[1].tree}, {views[0]})", reason=f"{common.reason}; {reason}")


def _planes(child: Node, leaf: LeafType) -> list[Array] | None:
    """What must agree for items to be equal: values, and validity if there are nulls; None where items cannot be compared.

    Items that are lists are compared by number: equal lists have equal numbers.
    """
    if isinstance(child, ListNode):
        inner = _planes(child.child, leaf)
        if inner is None or len(inner) > 1:
            return None
        values = distinct_rows(inner[0], _offsets(child.lengths), np.arange(child.lengths.size))[0]
    elif leaf.fixed_size:
        return None
    else:
        values = as_integers(child.values, leaf.value_type)
    if child.validity is None:
        return [values]
    return [np.where(child.validity, values, np.zeros(1, values.dtype)), child.validity]


def _offsets(lengths: Array) -> Array:
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _item_bytes(child: Node, leaf: LeafType, options: EncodeOptions) -> float:
    """Encoded bytes of an item, estimated from a stretch of items."""
    if isinstance(child, ListNode):
        mean_items = float(child.lengths.mean()) if child.lengths.size else 0.0
        return 0.5 + mean_items * _item_bytes(child.child, leaf, options)
    if leaf.value_type == ValueType.UINT8 or not child.values.size:
        return float(leaf.dtype.itemsize)
    middle = child.values.size // 2
    stretch = as_integers(child.values[max(middle - 2048, 0) : middle + 2048], leaf.value_type)
    parts = frame(stretch)
    if parts.deltas.dtype != np.uint32:
        return float(leaf.dtype.itemsize)
    return max(choose_stream(parts.deltas, options, budget=1).num_bytes / stretch.size, 0.05)


def _take(child: Node, layout: Layout) -> Node:
    if layout.parts is None:
        return child
    items = ranges(*layout.parts)
    validity = None if child.validity is None else child.validity[items]
    if isinstance(child, Leaf):
        return Leaf(values=child.values[items], validity=validity)
    lengths = child.lengths[items]
    inner = Layout(lengths=lengths, num_items=int(lengths.sum()), parts=(_offsets(child.lengths)[items], lengths))
    return ListNode(lengths=lengths, validity=validity, child=_take(child.child, inner))


def _encode_leaf(builder: ChunkBuilder, node: Leaf, leaf: LeafType, depth: int, options: EncodeOptions) -> Decision:
    nulls = None
    if node.validity is not None:
        nulls = Bitmap(builder, node.validity)
        nulls.emit_validity(depth)
    if leaf.fixed_size:
        # the entries' nulls are zeros already; what the op spreads are null items
        nulls = None
        if node.item_validity is not None:
            nulls = Bitmap(builder, node.item_validity)
            nulls.emit_validity(depth + 1)
    count, item_bytes, base = node.values.size, leaf.dtype.itemsize, 0
    values = as_integers(node.values, leaf.value_type)
    if depth and nulls is None and leaf.value_type in _WIDE_INTEGERS and count:
        parts = frame(values)
        if parts.span < 1 << 32:
            values, item_bytes, base = parts.deltas, 4, parts.base
    region = builder.region(Role.VALUES, depth=depth, item_bytes=item_bytes, value_type=leaf.value_type, count=count, base=base)
    target = Target(builder=builder, region=region, out_kind=OUT_KINDS[item_bytes], count=count, nulls=nulls)
    if leaf.value_type == ValueType.BOOL and count:
        return encode_booleans(target, values, options)
    stands_for = leaf.value_type if leaf.value_type >= ValueType.FLOAT16 or (depth and leaf.value_type == ValueType.UINT8) else None
    return encode_values(target, values, options, stands_for)
