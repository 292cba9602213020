"""How the columns of a scan become planes on a GPU: column c has its values or list views in plane c and its validity in plane C + c. The weights of a
map are a list column of their own, behind the columns that are read.

Owns what is the same for every window and batch of a loader, as arrays over columns, so that no work on the host grows with columns but NumPy's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.device_tables import LABEL_FILL, NO_PLANE
from loader.batch.window import Columns
from loader.scan.columns import LabelFill

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DeviceColumns:
    """Columns as arrays.

    Attributes:
        columns: What they are.
        item_bytes: int64 [C], of a plane's item; 8 for list views.
        width: int64 [C], items a row.
        leaf_bytes: int64 [C], of a leaf value.
        value_types: uint8 [C].
        is_list: bool [C].
        lists: int64 [lists], columns that are lists, the unexpanded ones first.
        list_number: int64 [C], place in `lists`, or -1.
        num_unique: Of `lists`, how many come unexpanded.
        weights: int64 [columns read], the column of a map's weights, or -1.
    """

    columns: Columns
    item_bytes: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]
    leaf_bytes: npt.NDArray[np.int64]
    value_types: npt.NDArray[np.uint8]
    is_list: npt.NDArray[np.bool_]
    lists: npt.NDArray[np.int64]
    list_number: npt.NDArray[np.int64]
    num_unique: int
    weights: npt.NDArray[np.int64]

    @classmethod
    def of(cls, columns: Columns) -> DeviceColumns:
        """The arrays of some columns."""
        leaves = columns.leaves
        leaf_bytes = np.array([leaf.dtype.itemsize for leaf in leaves], np.int64)
        is_list = np.zeros(len(leaves), np.bool_)
        is_list[list(columns.lists)] = True
        lists = np.array([*sorted(columns.unique), *(index for index in columns.lists if index not in columns.unique)], np.int64)
        list_number = np.full(len(leaves), -1, np.int64)
        list_number[lists] = np.arange(len(lists))
        return cls(
            columns=columns,
            item_bytes=np.where(is_list, 8, leaf_bytes),
            width=np.where(is_list, 1, np.array([leaf.values_per_entry for leaf in leaves], np.int64)),
            leaf_bytes=leaf_bytes,
            value_types=np.array([leaf.value_type for leaf in leaves], np.uint8),
            is_list=is_list,
            lists=lists,
            list_number=list_number,
            num_unique=len(columns.unique),
            weights=np.array([columns.weights.get(index, -1) for index in range(len(columns.read))], np.int64),
        )

    def __len__(self) -> int:
        return len(self.item_bytes)

    def name(self, column: int) -> str:
        return self.columns.name(column)

    def label_fill(self, label: LabelFill) -> Array:
        """The record by which window.cu fills null labels."""
        record, count = np.zeros(1, LABEL_FILL), len(self)
        dtype = self.columns.read[label.label].leaf.dtype
        default = np.zeros(1, dtype)
        default[0] = label.default
        record["value"] = int.from_bytes(default.tobytes(), "little")
        record["value_plane"], record["validity_plane"] = label.label, count + label.label
        record["time_plane"] = record["time_validity_plane"] = NO_PLANE
        if label.time is not None:
            record["time_plane"], record["time_validity_plane"] = label.time, count + label.time
            record["last_closed"] = label.last_closed_time
            record["time_item_bytes"] = self.item_bytes[label.time]
            record["time_is_unsigned"] = self.columns.read[label.time].leaf.dtype.kind == "u"
        return record
