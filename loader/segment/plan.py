"""What all segments of one schema share: physical types, orders of columns, and the footer sections about columns.

Kept from write to write, so that small and wide tables do not pay for each column in Python again.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings.leaf import LeafType, leaf_type
from loader.encodings.options import EncodeOptions
from loader.encodings.quantise import KINDS
from loader.errors import SchemaError
from loader.kernels import native
from loader.segment.footer import ColumnEntry, SectionContent, column_sections
from loader.segment.layout import Feature, Section, ValueType
from loader.segment.options import WriteOptions

Array = np.ndarray[Any, np.dtype[Any]]
WRITER = "headrace"
QUANTISE_KEY = b"headrace.quantise"
MOST_PLANS = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WritePlan:
    """How tables of one schema are written.

    Attributes:
        leaves: Physical type of each column, by its place in the table.
        order: Places of the columns in the table, by id.
        column_ids: uint32, ascending.
        value_types: Of the columns' leaves, by id.
        file_order: uint32, places in `order` as their chunks lie in a block.
        quantise: How much precision each column may lose, by its place in the table; None for none.
        native: Which columns the native encoder takes, by id, bool.
        encode: What encoders may use.
        sections: Footer sections that depend on the schema alone.
        features: Feature bits that the columns' types need.
    """

    leaves: Sequence[LeafType]
    order: Sequence[int]
    column_ids: Array
    value_types: Sequence[ValueType]
    file_order: Array
    quantise: Sequence[str | None]
    native: Array
    encode: EncodeOptions
    sections: dict[Section, SectionContent]
    features: int

    def properties(self, options: WriteOptions) -> str:
        """PROPERTIES up to its encodings, an open JSON object."""
        return json.dumps({"writer": WRITER, "cluster_by": list(options.cluster_by), **options.properties}, separators=(",", ":"))[:-1]


_plans: OrderedDict[Any, WritePlan] = OrderedDict()
_lock = threading.Lock()


def plan_of(schema: pa.Schema, column_ids: Sequence[int], options: WriteOptions) -> WritePlan:
    """The plan for a schema, made once.

    Raises:
        SchemaError: A column's type cannot be stored, or options name columns that are not there.
        ValueError: Ids do not match the columns.
    """
    stored = schema.serialize().to_pybytes()
    asked = (options.dictionary, options.list_views, options.compress, options.effort, options.column_order, tuple(options.quantise.items()))
    key = (stored, tuple(column_ids), asked, native.load() is None)
    with _lock:
        found = _plans.pop(key, None)
        if found is not None:
            _plans[key] = found
            return found
    made = _make(schema, stored, column_ids, options)
    with _lock:
        _plans[key] = made
        if len(_plans) > MOST_PLANS:
            _plans.popitem(last=False)
    return made


def _make(schema: pa.Schema, stored: bytes, column_ids: Sequence[int], options: WriteOptions) -> WritePlan:
    if len(column_ids) != len(schema) or len(set(column_ids)) != len(column_ids):
        raise ValueError(f"{len(schema)} columns need as many different ids, got {list(column_ids)[:20]}")
    fields = list(schema)
    leaves = [leaf_type(field.type, field.name) for field in fields]
    names = {field.name for field in fields}
    if unknown := sorted(set(options.quantise) - names):
        raise SchemaError(f"quantise names columns that are not there: {', '.join(unknown[:5])}")
    if unknown := sorted(set(options.column_order) - names):
        raise SchemaError(f"column_order names columns that are not there: {', '.join(unknown[:5])}")
    quantise = [_quantise(field, leaf, options) for field, leaf in zip(fields, leaves, strict=True)]
    order = sorted(range(len(fields)), key=lambda index: column_ids[index])
    rank = {name: place for place, name in enumerate(options.column_order)}
    file_order = sorted(range(len(order)), key=lambda place: rank.get(fields[order[place]].name, len(rank)))
    entries = [
        ColumnEntry(column_id=column_ids[index], name=fields[index].name, leaf=leaves[index], nullable=fields[index].nullable, schema_index=index)
        for index in order
    ]
    return WritePlan(
        leaves=leaves,
        order=order,
        column_ids=np.array([column_ids[index] for index in order], np.uint32),
        value_types=[leaves[index].value_type for index in order],
        file_order=np.array(file_order, np.uint32),
        quantise=quantise,
        native=_native_columns(schema)[order] & np.array([quantise[index] is None for index in order], np.bool_),
        encode=EncodeOptions(dictionary=options.dictionary, list_views=options.list_views, compress=options.compress, effort=options.effort),
        sections=column_sections(entries) | {Section.ARROW_SCHEMA: SectionContent(data=stored, count=1)},
        features=_features(leaves),
    )


def _features(leaves: Sequence[LeafType]) -> int:
    features = 0
    if any(leaf.depth for leaf in leaves):
        features |= Feature.LIST_VIEWS | Feature.NULLS
    if any(leaf.fixed_size for leaf in leaves):
        features |= Feature.NULLS
    if any(leaf.weights is not None for leaf in leaves):
        features |= Feature.MAPS
    return int(features)


def _quantise(field: pa.Field, leaf: LeafType, options: WriteOptions) -> str | None:
    """How much precision a column may lose, by the options or its field's metadata; None for none, the default."""
    kind = options.quantise.get(field.name) or ((field.metadata or {}).get(QUANTISE_KEY) or b"").decode() or None
    if kind is not None and (kind not in KINDS or leaf.value_type != ValueType.FLOAT32):
        raise SchemaError(f"column {field.name!r} ({field.type}) cannot be quantised to {kind!r}: float32 columns can, to {', '.join(KINDS)}")
    return kind


def _native_columns(schema: pa.Schema) -> Array:
    """Which columns are of types that the native encoder knows, bool."""
    library = native.load()
    if library is None:
        return np.zeros(len(schema), np.bool_)
    capsule = schema.__arrow_c_schema__()
    return library.encodable_columns(pointer(capsule, b"arrow_schema"), len(schema))


def pointer(capsule: Any, name: bytes) -> int:
    """The address that a capsule of the Arrow C data interface holds, good as long as the capsule lives."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    return int(get(capsule, name))
