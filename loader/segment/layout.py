"""The byte layout of a segment as NumPy dtypes and constants: FORMAT.md in code, and nothing else.

Every record is little-endian, without padding of its own, and is read with `np.frombuffer`. The C++ and CUDA sources in
`loader/kernels` mirror the records a decoder needs; a test holds the two equal.
"""

from __future__ import annotations

import enum

import numpy as np

MAGIC = b"HEADRACE"
FORMAT_VERSION = 1
ALIGNMENT = 64  # of chunks, sections and regions
PADDING_BYTES = 8192  # readable bytes after a slab and after an arena, so that inner loops need no bounds checks
VECTOR = 1024  # values in a vector, the unit of decode
LANES = 32  # 32-bit words side by side in a packed vector
MAX_BLOCK_ROWS = 65_536
SECTION_PAGE_BYTES = 4096  # a checksum for each page of a footer section
NO_REGION = 0xFFFF
SHARED_REGION = 0xFFFE  # as a dictionary: the values of the shared chunk that goes with this one


class Feature(enum.IntFlag):
    """Features a reader must know to read the segment. An unknown bit is refused by name or number."""

    NULLS = 1 << 0  # validity regions
    LIST_VIEWS = 1 << 1  # lists, strings and binary as views into pools
    DICTIONARY = 1 << 2
    EXCEPTIONS = 1 << 3
    DELTA = 1 << 4
    CLASS_SPLIT = 1 << 5
    RUN_ENDS = 1 << 6
    DECIMAL_FLOATS = 1 << 7
    QUANTISED = 1 << 8
    COMPRESSED_BYTES = 1 << 9
    SHARED_DICTIONARIES = 1 << 10
    ENTROPY = 1 << 11
    COLUMN_FILE = 1 << 12  # holds some columns of another segment, aligned by position
    OVERLAY = 1 << 13  # holds patches of other segments, not rows of its own
    MAPS = 1 << 14  # columns of two aligned lists


KNOWN_FEATURES = (
    Feature.NULLS
    | Feature.LIST_VIEWS
    | Feature.DICTIONARY
    | Feature.EXCEPTIONS
    | Feature.DELTA
    | Feature.CLASS_SPLIT
    | Feature.RUN_ENDS
    | Feature.DECIMAL_FLOATS
    | Feature.QUANTISED
    | Feature.COMPRESSED_BYTES
    | Feature.SHARED_DICTIONARIES
    | Feature.COLUMN_FILE
    | Feature.OVERLAY
    | Feature.MAPS
)

SYSTEM_COLUMN_BASE = 0xFFFF_FF00  # column ids from here on are Headrace's own
SEQUENCE_COLUMN_ID = 0xFFFF_FF00  # commit sequence of each row, int64; absent in a fresh segment
ROW_COLUMN_ID = 0xFFFF_FF01  # overlays: the row of the patched segment, uint32
ORDER_COLUMN_ID = 0xFFFF_FF02  # overlays: the order value of each patch, int64
LOOKUP_ROWS_COLUMN_ID = 0xFFFF_FF03  # the one column, all zero, of a column file that is there for its LOOKUP_ROWS section


class ValueType(enum.IntEnum):
    """Physical type of leaf values. Logical types (timestamps, strings…) come from the Arrow schema section."""

    BOOL = 0  # one byte in the arena, 0 or 1
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5  # also the bytes of strings and binaries
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT16 = 9
    FLOAT32 = 10
    FLOAT64 = 11
    BFLOAT16 = 12


VALUE_DTYPES: dict[ValueType, np.dtype] = {
    ValueType.BOOL: np.dtype("u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.FLOAT16: np.dtype("<f2"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.FLOAT64: np.dtype("<f8"),
    ValueType.BFLOAT16: np.dtype("<u2"),
}


class Section(enum.IntEnum):
    """Kinds of footer sections. A reader ignores kinds it does not know: what must be known is a Feature."""

    COLUMNS = 1
    NAME_INDEX = 2
    NAMES = 3
    BLOCKS = 4
    CHUNKS = 5
    STATS = 6
    ARROW_SCHEMA = 7
    KEY_INDEX = 8
    PROPERTIES = 9
    SHARED_CHUNKS = 10
    LOOKUP_ROWS = 11


class Role(enum.IntEnum):
    """What a region of the arena holds."""

    VALUES = 0
    VALIDITY = 1  # one byte an entry: 1 present, 0 null
    VIEWS = 2  # one u64 an entry: start in the low half, length in the high half; points into depth + 1
    SCRATCH = 3  # read by later levels only
    WEIGHT_VALUES = 4  # 4 to 6: as 0 to 2, of the second list of a map
    WEIGHT_VALIDITY = 5
    WEIGHT_VIEWS = 6  # at depth 0 absent where both lists have the same views


class OpKind(enum.IntEnum):
    """How an op finds its input x(i)."""

    COPY = 0  # raw items of the chunk, stored as they are
    DIRECT = 1  # x(i) = source(i)
    NULLS = 2  # x(i) = source(number of set bits before i) where bit i is set, else 0
    RANK = 3  # x(i) = number of set bits up to and including i, minus 1
    SPLIT = 4  # x(i) = source[class of i](number of items of that class before i)
    RUNS = 5  # x(i) = source(number of set bits up to and including i, minus 1)


class SourceKind(enum.IntEnum):
    """Where a 32-bit stream lives."""

    CONSTANT = 0  # `value` everywhere
    PACKED = 1  # frame of reference + bit packing, vector by vector
    PLAIN = 2  # u32 items in a region of the arena, written by an earlier level
    BITS = 3  # one bit a value, least significant first, in 32-bit words
    PACKED_EXCEPTIONS = 4  # PACKED, and a vector may hold values wider than its width


class Scan(enum.IntEnum):
    """A running sum inside each vector, from the vector's anchor."""

    NONE = 0
    ZIGZAG_SUM = 1
    SUM = 2
    EXCLUSIVE_SUM = 3


class OutKind(enum.IntEnum):
    """How a value is stored."""

    U8 = 0
    U16 = 1
    U32 = 2
    U64 = 3
    VIEW = 4
    F32_DECIMAL = 5  # an integer divided by the op's scale, as float32
    F64_DECIMAL = 6
    F32_FROM_F16 = 7  # float16 bits, as float32
    F32_FROM_BF16 = 8
    F32_SCALED_I8 = 9  # int8 times the float32 whose bits are the op's scale


OUT_ITEM_BYTES = np.array([1, 2, 4, 8, 8, 4, 8, 4, 4, 4], np.uint8)  # by OutKind

HEADER = np.dtype(
    [("magic", "S8"), ("version", "<u4"), ("header_bytes", "<u4"), ("features", "<u8"), ("segment_id", "V16"), ("reserved", "V20"), ("checksum", "<u4")]
)
TAIL = np.dtype(
    [
        ("directory_offset", "<u8"),
        ("num_sections", "<u4"),
        ("reserved", "<u4"),
        ("segment_bytes", "<u8"),
        ("features", "<u8"),
        ("num_rows", "<u8"),
        ("num_columns", "<u4"),
        ("num_blocks", "<u4"),
        ("version", "<u4"),
        ("checksum", "<u4"),  # CRC32C of the directory, then of the tail's first 52 bytes
        ("magic", "S8"),
    ]
)
DIRECTORY_ENTRY = np.dtype(
    [
        ("kind", "<u4"),
        ("record_bytes", "<u4"),
        ("offset", "<u8"),
        ("num_bytes", "<u8"),
        ("count", "<u8"),
        ("checksums_offset", "<u8"),  # one u32 CRC32C for each SECTION_PAGE_BYTES of the section
        ("reserved", "<u8"),
    ]
)
COLUMN = np.dtype(
    [
        ("column_id", "<u4"),
        ("value_type", "u1"),  # of a map's keys
        ("depth", "u1"),  # of the leaf: 0 for a fixed-width column, 1 for a list of numbers or a string
        ("flags", "u1"),  # bit 0: nullable, bit 1: a map
        ("weights", "u1"),  # of a map's second list: value type in the low 4 bits, depth of the leaf in the high
        ("name_offset", "<u4"),
        ("name_bytes", "<u4"),
        ("schema_index", "<u4"),  # position of the field in the Arrow schema section
        ("fixed_size", "<u4"),  # items of a fixed-size list, else 0
        ("name_hash", "<u8"),
    ]
)
COLUMN_NULLABLE = 1
COLUMN_IS_MAP = 2
NAME_ENTRY = np.dtype([("name_hash", "<u8"), ("column_index", "<u4"), ("reserved", "<u4")])
BLOCK = np.dtype([("row_start", "<u8"), ("num_rows", "<u4"), ("flags", "<u4")])
CHUNK = np.dtype([("offset", "<u8"), ("num_bytes", "<u4"), ("checksum", "<u4"), ("arena_bytes", "<u8")])
SHARED_CHUNK = np.dtype(
    [("column_index", "<u4"), ("reserved", "<u4"), ("offset", "<u8"), ("num_bytes", "<u4"), ("checksum", "<u4"), ("arena_bytes", "<u8")]
)  # the dictionary that the blocks of a column share; column_index is a row of COLUMNS
STATS = np.dtype([("min", "<u8"), ("max", "<u8"), ("num_values", "<u8"), ("null_count", "<u4"), ("flags", "<u4")])
STATS_HAS_RANGE = 1

CHUNK_HEADER = np.dtype(
    [
        ("num_rows", "<u4"),
        ("num_regions", "<u2"),
        ("num_ops", "<u2"),
        ("num_sources", "<u2"),
        ("num_levels", "u1"),
        ("flags", "u1"),
        ("num_bytes", "<u4"),  # of the whole chunk, this header included
        ("arena_bytes", "<u8"),  # all regions, each rounded up to ALIGNMENT
        ("reserved", "<u8"),
    ]
)
REGION = np.dtype([("role", "u1"), ("depth", "u1"), ("item_bytes", "u1"), ("value_type", "u1"), ("flags", "<u4"), ("count", "<u8"), ("base", "<i8")])
OP = np.dtype(
    [
        ("kind", "u1"),
        ("out_kind", "u1"),
        ("scan", "u1"),
        ("num_sources", "u1"),
        ("level", "u1"),
        ("flags", "u1"),
        ("out_region", "<u2"),
        ("count", "<u4"),
        ("out_offset", "<u4"),  # bytes into the region
        ("first_source", "<u2"),
        ("dict_region", "<u2"),
        ("dict_count", "<u4"),
        ("anchors", "<u4"),
        ("scan_anchors", "<u4"),
        ("bits0", "<u4"),
        ("bits1", "<u4"),
        ("patches", "<u4"),
        ("num_patches", "<u4"),
        ("scale", "<u4"),
        ("reserved", "<u4"),
        ("base", "<i8"),
    ]
)
SOURCE = np.dtype(
    [
        ("kind", "u1"),
        ("reserved", "u1"),
        ("region", "<u2"),
        ("data", "<u4"),
        ("meta", "<u4"),
        ("value", "<u4"),
        ("count", "<u4"),
        ("num_words", "<u4"),
    ]
)
CHUNK_USES_SHARED = 1  # flag of a chunk: some op looks up SHARED_REGION
COPY_IS_ZSTD = 1  # flag of a COPY op: its bytes are one zstd frame
MAX_CLASSES = 4  # of a SPLIT op
PATCH_F32 = np.dtype([("position", "<u4"), ("bits", "<u4")])
PATCH_F64 = np.dtype([("position", "<u4"), ("reserved", "<u4"), ("bits", "<u8")])
VECTOR_META = np.dtype([("word_offset", "<u4"), ("base", "<u4"), ("width", "u1"), ("reserved", "u1"), ("num_exceptions", "<u2")])


def round_up(value: int, multiple: int = ALIGNMENT) -> int:
    """The next multiple at or above `value`."""
    return -(-value // multiple) * multiple
