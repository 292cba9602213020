"""Selections: which rows of which blocks a plan reads, as bits, with a flat form for the catalog and a hash of what defines them.

Beside the selected rows a selection may say where groups of rows start, and by which rule of a sample a row was kept: planes of one bit a stored row each.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loader.errors import SchemaError, StateMismatchError

SELECTION_VERSION = 1
PLANES_VERSION = 2  # of the flat form of a selection with planes; others are as they ever were
BLOCK_KEY = np.dtype([("segment_id", "<i8"), ("block", "<u4"), ("num_rows", "<u4"), ("selected", "<u4")])
HEADER = np.dtype([("version", "<u4"), ("num_blocks", "<u4")])
PLANES = np.dtype([("has_starts", "<u4"), ("code_planes", "<u4")])
MIXED = 255
Bits: TypeAlias = npt.NDArray[np.uint8]


def selection_hash(definition: dict[str, Any]) -> str:
    """A name for a selection: equal definitions select equal rows of one snapshot."""
    text = json.dumps({"version": SELECTION_VERSION, **definition}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """The rule of a sample that kept each row.

    Attributes:
        num_planes: Bits of a code.
        constant: uint8 [blocks], the code of all selected rows of a block, MIXED where they differ.
        planes: By index of a mixed block, uint8 [num_planes, bytes]: bit k of the code of each stored row.
    """

    num_planes: int
    constant: npt.NDArray[np.uint8]
    planes: dict[int, Bits]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Selected rows, block by block. Bits are one a stored row, least significant first.

    Attributes:
        blocks: BLOCK_KEY records, by (segment, block), of every block that was looked at.
        bits: By index in `blocks`, uint8; only blocks of which some rows are selected and some not.
        starts: By index in `blocks`, the rows that begin a group; None where rows are not grouped. Every block with a selected row is there.
        codes: Of a sample; None where there is none.
    """

    blocks: npt.NDArray[Any]
    bits: dict[int, Bits]
    starts: dict[int, Bits] | None = None
    codes: Codes | None = None

    @property
    def partly(self) -> list[int]:
        """Blocks of which some rows are selected and some not."""
        return [int(at) for at in np.flatnonzero((self.blocks["selected"] > 0) & (self.blocks["selected"] < self.blocks["num_rows"]))]

    def only(self, kept: npt.NDArray[np.int64]) -> Selection:
        """Some of the blocks, by index, renumbered in their order."""
        number = {old: new for new, old in enumerate(kept.tolist())}
        starts, codes = self.starts, self.codes
        if starts is not None:
            starts = {number[old]: found for old, found in starts.items() if old in number}
        if codes is not None:
            planes = {number[old]: found for old, found in codes.planes.items() if old in number}
            codes = dataclasses.replace(codes, constant=codes.constant[kept], planes=planes)
        bits = {number[old]: found for old, found in self.bits.items() if old in number}
        return Selection(blocks=self.blocks[kept], bits=bits, starts=starts, codes=codes)

    def to_bytes(self) -> bytes:
        """Header, block records, the bits of each partly selected block; then, where there are any, the starts of groups and the codes."""
        has_planes = self.starts is not None or self.codes is not None
        header = np.zeros(1, HEADER)
        header["version"], header["num_blocks"] = PLANES_VERSION if has_planes else SELECTION_VERSION, len(self.blocks)
        parts = [header.tobytes(), self.blocks.astype(BLOCK_KEY).tobytes(), *(self.bits[index].tobytes() for index in sorted(self.bits))]
        if has_planes:
            flags = np.zeros(1, PLANES)
            flags["has_starts"], flags["code_planes"] = self.starts is not None, 0 if self.codes is None else self.codes.num_planes
            parts.insert(1, flags.tobytes())
        if self.starts is not None:
            parts += [self.starts[index].tobytes() for index in sorted(self.starts)]
        if self.codes is not None:
            parts += [self.codes.constant.tobytes(), *(self.codes.planes[index].tobytes() for index in sorted(self.codes.planes))]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Selection:
        """Read what `to_bytes` wrote.

        Raises:
            StateMismatchError: It was stored by another version, or is cut short.
        """
        header = np.frombuffer(data, HEADER, 1) if len(data) >= HEADER.itemsize else np.zeros(1, HEADER)
        version = int(header["version"][0])
        if version not in (SELECTION_VERSION, PLANES_VERSION):
            raise StateMismatchError(f"the stored selection is of version {version}, this Headrace reads {SELECTION_VERSION}: plan again under it")
        cursor = _Cursor(data, HEADER.itemsize)
        flags = cursor.take(PLANES, 1)[0] if version == PLANES_VERSION else np.zeros(1, PLANES)[0]
        blocks = cursor.take(BLOCK_KEY, int(header["num_blocks"][0]))
        num_bytes = ((blocks["num_rows"].astype(np.int64) + 7) // 8).tolist()
        found = cls(blocks=blocks, bits={})
        found.bits.update({index: cursor.take(np.uint8, num_bytes[index]) for index in found.partly})
        starts, codes, num_planes = None, None, int(flags["code_planes"])
        if flags["has_starts"]:
            starts = {index: cursor.take(np.uint8, num_bytes[index]) for index in np.flatnonzero(blocks["selected"]).tolist()}
        if num_planes:
            constant = cursor.take(np.uint8, len(blocks))
            mixed = np.flatnonzero(constant == MIXED).tolist()
            planes = {index: cursor.take(np.uint8, num_planes * num_bytes[index]).reshape(num_planes, -1) for index in mixed}
            codes = Codes(num_planes=num_planes, constant=constant, planes=planes)
        cursor.end()
        return dataclasses.replace(found, starts=starts, codes=codes)


class _Cursor:
    """Reads arrays one behind the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def take(self, dtype: Any, count: int) -> npt.NDArray[Any]:
        start, kind = self._at, np.dtype(dtype)
        self._at += count * kind.itemsize
        if self._at > len(self._data):
            raise StateMismatchError(f"the stored selection has {len(self._data)} bytes and needs at least {self._at}: it is cut short")
        return np.frombuffer(self._data, kind, count, start)

    def end(self) -> None:
        if self._at != len(self._data):
            raise StateMismatchError(f"the stored selection has {len(self._data)} bytes and needs {self._at}: it is damaged, and must be counted again")


class RowBits:
    """One bit for every stored row of the blocks of a plan, to be looked up by many rows at once.

    Args:
        blocks: By index of the block in the plan, uint8; one that is not there has no bit set.
        num_blocks: Of the plan.
    """

    def __init__(self, blocks: dict[int, Bits], num_blocks: int) -> None:
        self._starts = np.zeros(num_blocks, np.int64)
        members = sorted(blocks)
        sizes = [len(blocks[index]) for index in members]
        self._starts[members] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[: len(members)] + 1
        self._bits = np.concatenate([np.zeros(1, np.uint8), *(blocks[index] for index in members)])  # byte 0 is for blocks that are not there

    def at(self, blocks: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """uint8 [n], 0 or 1, of rows by their block in the plan and their number in it."""
        starts, numbers = self._starts[blocks], rows.astype(np.int64)
        where = np.where(starts > 0, starts + (numbers >> 3), 0)
        return ((self._bits[where] >> (numbers & 7).astype(np.uint8)) & 1).astype(np.uint8)

    def of(self, block: int, num_rows: int) -> npt.NDArray[np.bool_]:
        """bool [rows] of one block."""
        start = int(self._starts[block])
        if not start:
            return np.zeros(num_rows, np.bool_)
        return np.unpackbits(self._bits[start : start + (num_rows + 7) // 8], count=num_rows, bitorder="little").view(np.bool_)


class RowWeights:
    """The weight of every row that a sample kept.

    Args:
        codes: Of the plan's blocks.
        weights: float32 [codes], by code.
        column: Name of the column of weights.
    """

    def __init__(self, codes: Codes, weights: npt.NDArray[np.float32], column: str) -> None:
        self.column = column
        self._constant, self._weights = codes.constant, weights
        self._chosen: npt.NDArray[np.int64] | None = None
        num_blocks = len(codes.constant)
        self._planes = [RowBits({index: planes[k] for index, planes in codes.planes.items()}, num_blocks) for k in range(codes.num_planes)]

    def of_blocks(self, chosen: npt.NDArray[np.int64]) -> RowWeights:
        """The weights of some of the blocks, in a plan of these alone."""
        found = copy.copy(self)
        found._chosen = chosen if self._chosen is None else self._chosen[chosen]
        return found

    def at(self, blocks: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """float32 [n], of rows by their block in the plan and their number in it."""
        blocks = blocks if self._chosen is None else self._chosen[blocks]
        codes = self._constant[blocks].astype(np.int64)
        mixed = np.flatnonzero(codes == MIXED)
        if len(mixed):
            here, numbers = blocks[mixed], rows[mixed]
            planes = [plane.at(here, numbers).astype(np.int64) << k for k, plane in enumerate(self._planes)]
            codes[mixed] = np.sum(planes, axis=0)
        found: npt.NDArray[np.float32] = self._weights[codes]
        return found


class JoinedWeights:
    """The weights of rows of several plans, of which some sample; where one does not, a row stands for itself."""

    def __init__(self, parts: Sequence[RowWeights | None], block_starts: npt.NDArray[np.int64], column: str) -> None:
        self._parts, self._block_starts, self.column = tuple(parts), block_starts, column

    @classmethod
    def of(cls, parts: Sequence[RowWeights | None], block_starts: npt.NDArray[np.int64]) -> JoinedWeights | None:
        """None where no part samples.

        Raises:
            SchemaError: Parts call their weights by different names.
        """
        names = sorted({part.column for part in parts if part is not None})
        if len(names) > 1:
            raise SchemaError(f"the weights of the samples are called {' and '.join(names)}: give all of them one name, Sample(column=…)")
        return cls(parts, block_starts, names[0]) if names else None

    def at(self, blocks: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """As `RowWeights.at`, by the joined plan's numbers."""
        found = np.ones(len(blocks), np.float32)
        owners = np.searchsorted(self._block_starts, blocks, "right") - 1
        for number, part in enumerate(self._parts):
            own = np.flatnonzero(owners == number)
            if part is not None and len(own):
                found[own] = part.at(blocks[own] - self._block_starts[number], rows[own])
        return found


def code_planes(codes: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], num_planes: int) -> tuple[int, Bits | None]:
    """(the code that all selected rows of a block have, None), or (MIXED, its planes).

    Args:
        codes: uint8 [rows], of every stored row.
        mask: bool [rows], which are selected.
        num_planes: Bits of a code.
    """
    kept = codes[mask]
    if (kept == kept[:1]).all():
        return int(kept[0]) if len(kept) else 0, None
    return MIXED, np.stack([np.packbits((codes >> k) & 1, bitorder="little") for k in range(num_planes)])
