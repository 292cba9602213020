"""The footer's bytes: sections with page checksums, directory and tail. Both ways: `write_footer`, and `read_tail` with its refusals."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.encodings.leaf import LeafType
from loader.errors import CorruptSegmentError, TruncatedSegmentError, UnsupportedVersionError
from loader.segment.checksum import crc32c, page_checksums
from loader.segment.layout import (
    ALIGNMENT,
    BLOCK,
    CHUNK,
    COLUMN,
    COLUMN_IS_MAP,
    COLUMN_NULLABLE,
    DIRECTORY_ENTRY,
    FORMAT_VERSION,
    HEADER,
    KNOWN_FEATURES,
    MAGIC,
    NAME_ENTRY,
    SECTION_PAGE_BYTES,
    SHARED_CHUNK,
    STATS,
    TAIL,
    Feature,
    Section,
    ValueType,
    round_up,
)

Array = np.ndarray[Any, np.dtype[Any]]
_CHECKED_TAIL_BYTES = 52
_RECORDS = {
    Section.COLUMNS: COLUMN,
    Section.NAME_INDEX: NAME_ENTRY,
    Section.BLOCKS: BLOCK,
    Section.CHUNKS: CHUNK,
    Section.STATS: STATS,
    Section.SHARED_CHUNKS: SHARED_CHUNK,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnEntry:
    """A row of the COLUMNS section."""

    column_id: int
    name: str
    leaf: LeafType
    nullable: bool
    schema_index: int


def name_hash(name: str) -> int:
    """The hash of a column name in the footer."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=1024)
def stated_leaf(value_type: int, depth: int, fixed_size: int, flags: int, weights: int) -> LeafType:
    """The physical type that a COLUMN record states.

    Raises:
        CorruptSegmentError: It states none.
    """
    if not flags & COLUMN_IS_MAP:
        return LeafType(value_type=ValueType(value_type), depth=depth, fixed_size=fixed_size)
    if not depth or not weights >> 4 or weights & 15 > ValueType.BFLOAT16:
        raise CorruptSegmentError(f"the COLUMNS section states a map of lists {depth} and {weights >> 4} deep and of weights of type {weights & 15}")
    second = LeafType(value_type=ValueType(weights & 15), depth=weights >> 4)
    return LeafType(value_type=ValueType(value_type), depth=depth, fixed_size=fixed_size, weights=second)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SectionContent:
    """Bytes of a section and its records; for sections without records of their own the count means nothing."""

    data: bytes
    count: int


def record_bytes(kind: Section) -> int:
    """Bytes of a record of a section, 1 where it has none."""
    return _RECORDS[kind].itemsize if kind in _RECORDS else 1


def column_sections(columns: Sequence[ColumnEntry]) -> dict[Section, SectionContent]:
    """COLUMNS, NAME_INDEX and NAMES of columns sorted by id."""
    names = [column.name.encode() for column in columns]
    records = np.zeros(len(columns), COLUMN)
    records["column_id"] = [column.column_id for column in columns]
    records["schema_index"] = [column.schema_index for column in columns]
    records["flags"] = [column.nullable * COLUMN_NULLABLE | (column.leaf.weights is not None) * COLUMN_IS_MAP for column in columns]
    weights = [column.leaf.weights for column in columns]
    records["weights"] = [0 if leaf is None else leaf.value_type | leaf.depth << 4 for leaf in weights]
    records["value_type"] = [column.leaf.value_type for column in columns]
    records["depth"] = [column.leaf.depth for column in columns]
    records["fixed_size"] = [column.leaf.fixed_size for column in columns]
    records["name_bytes"] = [len(name) for name in names]
    records["name_offset"] = np.cumsum(records["name_bytes"]) - records["name_bytes"]
    records["name_hash"] = [name_hash(column.name) for column in columns]
    index = np.zeros(len(columns), NAME_ENTRY)
    order = np.argsort(records["name_hash"], kind="stable")
    index["name_hash"], index["column_index"] = records["name_hash"][order], order
    return {
        Section.COLUMNS: SectionContent(data=records.tobytes(), count=len(columns)),
        Section.NAME_INDEX: SectionContent(data=index.tobytes(), count=len(columns)),
        Section.NAMES: SectionContent(data=b"".join(names), count=len(columns)),
    }


def write_footer(*, offset: int, sections: dict[Section, SectionContent], features: int, num_rows: int, num_columns: int, num_blocks: int) -> bytes:
    """Sections, directory and tail of a segment.

    Args:
        offset: Where the footer starts, on 64 bytes.
        sections: All of them.
        features: Feature bits.
        num_rows: Rows of the segment.
        num_columns: Columns of the segment.
        num_blocks: Blocks of the segment.
    """
    footer = bytearray()
    directory = np.zeros(len(sections), DIRECTORY_ENTRY)
    for entry, (kind, section) in zip(directory, sorted(sections.items()), strict=True):
        data, checksums = section.data, page_checksums(section.data, SECTION_PAGE_BYTES).tobytes()
        entry["kind"], entry["record_bytes"], entry["count"] = kind, record_bytes(kind), section.count
        entry["offset"], entry["num_bytes"], entry["checksums_offset"] = offset + len(footer), len(data), offset + len(footer) + round_up(len(data))
        for part in (data, checksums):
            footer += part
            footer += bytes(-len(footer) % ALIGNMENT)
    tail = np.zeros(1, TAIL)
    tail["directory_offset"], tail["num_sections"], tail["features"] = offset + len(footer), len(directory), features
    footer += directory.tobytes()
    footer += bytes(-len(footer) % ALIGNMENT)
    tail["segment_bytes"] = offset + len(footer) + TAIL.itemsize
    tail["num_rows"], tail["num_columns"], tail["num_blocks"] = num_rows, num_columns, num_blocks
    tail["version"], tail["magic"] = FORMAT_VERSION, MAGIC
    tail["checksum"] = crc32c(directory.tobytes() + tail.tobytes()[:_CHECKED_TAIL_BYTES])
    return bytes(footer + tail.tobytes())


def add_section(segment: memoryview, kind: Section, content: bytes) -> bytearray:
    """A segment's bytes with one more section, without records, of a kind above those that it has."""
    tail = np.frombuffer(segment[-TAIL.itemsize :], TAIL).copy()
    start, count = int(tail["directory_offset"][0]), int(tail["num_sections"][0])
    out = bytearray(segment[:start])
    entry = np.zeros(1, DIRECTORY_ENTRY)
    entry["kind"], entry["record_bytes"], entry["count"], entry["offset"], entry["num_bytes"] = kind, record_bytes(kind), 1, len(out), len(content)
    entry["checksums_offset"] = len(out) + round_up(len(content))
    for part in (content, page_checksums(content, SECTION_PAGE_BYTES).tobytes()):
        out += part
        out += bytes(-len(out) % ALIGNMENT)
    directory = bytes(segment[start : start + count * DIRECTORY_ENTRY.itemsize]) + entry.tobytes()
    tail["directory_offset"], tail["num_sections"] = len(out), count + 1
    out += directory
    out += bytes(-len(out) % ALIGNMENT)
    tail["segment_bytes"] = len(out) + TAIL.itemsize
    tail["checksum"] = crc32c(directory + tail.tobytes()[:_CHECKED_TAIL_BYTES])
    out += tail.tobytes()
    return out


def check_version(version: int, features: int, where: str) -> None:
    """Refuse what this version cannot read, by name.

    Raises:
        UnsupportedVersionError: A newer version or an unknown feature.
    """
    if version > FORMAT_VERSION:
        raise UnsupportedVersionError(f"{where} has format version {version}, this Headrace reads up to {FORMAT_VERSION}: upgrade Headrace to read it")
    unknown = features & ~int(KNOWN_FEATURES)
    if unknown:
        bits = [bit for bit in range(64) if unknown >> bit & 1]
        names = ", ".join(Feature(1 << bit).name or str(bit) if 1 << bit in Feature.__members__.values() else f"bit {bit}" for bit in bits)
        raise UnsupportedVersionError(f"{where} uses features that this Headrace does not know ({names}): upgrade Headrace to read it")


def read_tail(tail_bytes: memoryview, num_bytes: int, where: str) -> Any:
    """The TAIL record of a segment, its form checked; the checksum needs the directory and is `check_directory`'s.

    Args:
        tail_bytes: The last 64 bytes.
        num_bytes: Of the segment.
        where: File name for errors.

    Raises:
        TruncatedSegmentError: The end is not a segment's end.
        CorruptSegmentError: The tail contradicts itself.
    """
    tail = np.frombuffer(tail_bytes, TAIL)[0]
    if tail["magic"] != MAGIC:
        raise TruncatedSegmentError(f"{where} does not end in a segment's tail ({num_bytes:,} bytes): it was cut off or is no segment; fetch or write it again")
    check_version(int(tail["version"]), int(tail["features"]), where)
    stated = int(tail["segment_bytes"])
    if stated != num_bytes:
        kind = TruncatedSegmentError if stated > num_bytes else CorruptSegmentError
        raise kind(f"{where} has {num_bytes:,} bytes and its tail states {stated:,}: it was cut off or joined with something; fetch or write it again")
    start, sections = int(tail["directory_offset"]), int(tail["num_sections"])
    end = start + sections * DIRECTORY_ENTRY.itemsize
    if int(tail["version"]) < 1 or start < HEADER.itemsize or end > num_bytes - TAIL.itemsize:
        raise CorruptSegmentError(f"{where}: the tail at offset {num_bytes - TAIL.itemsize:,} points outside of the file; fetch or write it again")
    return tail


def check_directory(directory: memoryview, tail_bytes: memoryview, where: str, num_bytes: int) -> Array:
    """The DIRECTORY_ENTRY records, checksum and bounds verified.

    Raises:
        CorruptSegmentError: They do not hold.
    """
    tail = np.frombuffer(tail_bytes, TAIL)[0]
    if crc32c(bytes(directory) + bytes(tail_bytes[:_CHECKED_TAIL_BYTES])) != int(tail["checksum"]):
        raise CorruptSegmentError(f"{where}: checksum of the directory at offset {int(tail['directory_offset']):,} does not match; fetch or write it again")
    entries = np.frombuffer(directory, DIRECTORY_ENTRY)
    for kind, _, offset, size, _, checksums_offset, _ in entries.tolist():
        if offset + size > num_bytes or checksums_offset + 4 * -(-size // SECTION_PAGE_BYTES) > num_bytes:
            raise CorruptSegmentError(f"{where}: section {kind} lies outside of the file; fetch or write it again")
    return entries
