"""A reader of segments in plain Python, written from FORMAT.md alone: proof that the page is enough. Nothing of Headrace is imported.

Slow and strict; gives physical values: integers and floats, lists of them, None. Strings are lists of bytes, times their integers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

MAGIC = b"HEADRACE"
VECTOR = 1024
KNOWN_FEATURES = 0b111_0111_1111_1111  # NULLS to SHARED_DICTIONARIES, COLUMN_FILE, OVERLAY, MAPS
VALUE_CODES = "BbhiqBHIQefdH"  # of struct, by value type; bool a byte, bfloat16 its 16 bits
COPY, DIRECT, NULLS, RANK, SPLIT, RUNS = range(6)
CONSTANT, PACKED, PLAIN, BITS, PACKED_EXCEPTIONS = range(5)
ZIGZAG_SUM, SUM, EXCLUSIVE_SUM = 1, 2, 3
VIEW, F32_DECIMAL, F64_DECIMAL, F32_FROM_F16, F32_FROM_BF16, F32_SCALED_I8 = 4, 5, 6, 7, 8, 9
OUT_BYTES = (1, 2, 4, 8, 8, 4, 8, 4, 4, 4)
VALUES, VALIDITY, VIEWS = 0, 1, 2
WEIGHTS = 4  # what roles of the second list of a map are above those of the first
M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    value = M32
    for byte in data:
        value = value >> 8 ^ CRC_TABLE[(value ^ byte) & 255]
    return value ^ M32


def check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


class Segment:
    """A whole segment in memory. `inflate(frame, num_bytes)` is a zstd decoder, which Python does not bring along."""

    def __init__(self, data: bytes, inflate: Callable[[bytes, int], bytes] | None = None) -> None:
        self.data, self.inflate = data, inflate
        magic, version, header_bytes, features, self.segment_id = struct.unpack_from("<8sIIQ16s", data)
        check(magic == MAGIC and version == 1 and header_bytes == 64 and not features & ~KNOWN_FEATURES, "header")
        check(crc32c(data[:60]) == struct.unpack_from("<I", data, 60)[0], "checksum of the header")
        tail = len(data) - 64
        directory, sections, _, size, again, self.num_rows, self.num_columns, self.num_blocks, version, checksum, magic = struct.unpack_from(
            "<QIIQQQIIII8s", data, tail
        )
        check(magic == MAGIC and version == 1 and size == len(data) and again == features, "tail")
        check(crc32c(data[directory : directory + 48 * sections] + data[tail : tail + 52]) == checksum, "checksum of the directory")
        self.sections = {}
        for number in range(sections):
            kind, _, offset, num_bytes, _, checksums, _ = struct.unpack_from("<IIQQQQQ", data, directory + 48 * number)
            section = data[offset : offset + num_bytes]
            for page in range(0, num_bytes, 4096):
                check(crc32c(section[page : page + 4096]) == struct.unpack_from("<I", data, checksums + page // 1024)[0], f"checksum of section {kind}")
            self.sections[kind] = section
        self.blocks = [row[:2] for row in struct.iter_unpack("<QII", self.sections[4])]
        self.columns = [self._column(record) for record in struct.iter_unpack("<IBBBBIIIIQ", self.sections[1])]

    def _column(self, record: tuple[int, ...]) -> dict[str, Any]:
        column_id, value_type, depth, flags, weights, name_offset, name_bytes, schema_index, fixed_size, name_hash = record
        name = self.sections[3][name_offset : name_offset + name_bytes].decode()
        check(hashlib.blake2b(name.encode(), digest_size=8).digest() == struct.pack("<Q", name_hash), f"hash of the name {name}")
        column = {"id": column_id, "value_type": value_type, "depth": depth, "name": name, "schema_index": schema_index, "fixed_size": fixed_size}
        if flags & 2:
            column["weights"] = {"value_type": weights & 15, "depth": weights >> 4, "fixed_size": 0}
        return column

    def _shared(self, row: int) -> Chunk | None:
        """The chunk with the dictionary that the blocks of a column share."""
        for column, _, offset, num_bytes, checksum, arena_bytes in struct.iter_unpack("<IIQIIQ", self.sections.get(10, b"")):
            if column == row:
                chunk = self.data[offset : offset + num_bytes]
                check(offset % 64 == 0 and crc32c(chunk) == checksum, "checksum of a shared chunk")
                return Chunk(chunk, arena_bytes, self.inflate)
        return None

    def locate(self, name: str) -> int:
        """Row of COLUMNS, by the name index."""
        wanted = struct.unpack("<Q", hashlib.blake2b(name.encode(), digest_size=8).digest())[0]
        rows = [row for name_hash, row, _ in struct.iter_unpack("<QII", self.sections[2]) if name_hash == wanted]
        return next(row for row in rows if self.columns[row]["name"] == name)

    def read(self, name: str) -> list[Any]:
        """All rows of a column."""
        row = self.locate(name)
        found: list[Any] = []
        shared = self._shared(row)
        for block, (row_start, num_rows) in enumerate(self.blocks):
            check(row_start == len(found), "blocks lie end to end")
            offset, num_bytes, checksum, arena_bytes = struct.unpack_from("<QIIQ", self.sections[5], 24 * (row * self.num_blocks + block))
            chunk = self.data[offset : offset + num_bytes]
            check(offset % 64 == 0 and crc32c(chunk) == checksum, f"checksum of {name}")
            decoded = Chunk(chunk, arena_bytes, self.inflate, shared)
            check(decoded.num_rows == num_rows, "rows of a chunk")
            found += decoded.column(self.columns[row])
        return found


def mix(x: int) -> int:
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & M64
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & M64
    return x ^ x >> 32


LANES = (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD), (0xC2B2AE3D27D4EB4F, 0xC4CEB9FE1A85EC53)
NULL_WORD = 0x27D4EB2F165667C5
SALT = 0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D, 0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31


def key_words(values: Sequence[tuple[int | bytes, bool]]) -> tuple[int, int]:
    """The hash of a key's (value, is null) pairs; whatever integer or bytes stand for the type of a null."""
    lanes = []
    for seed, odd in LANES:
        state = seed
        for value, null in values:
            if isinstance(value, bytes):
                value = b"" if null else value
                words = [len(value), *(int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 8))]
            else:
                words = [NULL_WORD if null else value & M64]
            for word in words:
                state = mix(state * odd + mix(word + seed & M64) & M64)
            state = mix(state + NULL_WORD & M64) if null else state
        lanes.append(state)
    return lanes[0], lanes[1]


def filter_bits(low: int, num_blocks: int) -> tuple[int, list[int]]:
    """The block of a key in the Bloom filter, and its bit in each of the block's words."""
    hashed = mix(low)
    return (hashed >> 32) * num_blocks >> 32, [((hashed & M32) * salt & M32) >> 27 for salt in SALT]


class KeyIndex:
    """The key index of a segment."""

    def __init__(self, section: bytes) -> None:
        version, key_bytes, count, self.num_blocks, low, high = struct.unpack_from("<IIQQQQ", section)
        check(version == 1, "version of the key index")
        at, self.words = 64, []
        for _ in range(key_bytes // 8):
            self.words.append(struct.unpack_from(f"<{count}Q", section, at))
            at += -(-8 * count // 64) * 64
        self.rows = struct.unpack_from(f"<{count}I", section, at)
        self.filter = struct.unpack_from(f"<{8 * self.num_blocks}I", section, at + -(-4 * count // 64) * 64)
        check(not count or (low, high) == (self.words[0][0], self.words[0][-1]), "range of the key index")

    def find(self, *words: int) -> int | None:
        """The row of a key."""
        block, bits = filter_bits(words[0], self.num_blocks)
        if not all(self.filter[8 * block + word] >> bit & 1 for word, bit in enumerate(bits)):
            return None
        return next((row for row, *key in zip(self.rows, *self.words, strict=True) if tuple(key) == words), None)


class Chunk:
    """One column of one block, decoded."""

    def __init__(self, data: bytes, arena_bytes: int, inflate: Callable[[bytes, int], bytes] | None = None, shared: Chunk | None = None) -> None:
        self.data, self.inflate, self.shared = data, inflate, shared
        self.num_rows, num_regions, num_ops, num_sources, num_levels, flags, num_bytes, arena, _ = struct.unpack_from("<IHHHBBIQQ", data)
        check(num_bytes == len(data) and flags in (0, 1) and arena == arena_bytes, "chunk header")
        at = 32
        self.regions = [struct.unpack_from("<BBBBIQq", data, at + 24 * number) for number in range(num_regions)]
        at += 24 * num_regions
        ops = [Op(*struct.unpack_from("<6BHIIHHI8Iq", data, at + 64 * number)) for number in range(num_ops)]
        at += 64 * num_ops
        self.sources = [struct.unpack_from("<BBHIIIII", data, at + 24 * number) for number in range(num_sources)]
        self.memory = [bytearray(count * item) for _, _, item, _, _, count, _ in self.regions]
        check(sum(-(-len(memory) // 64) * 64 for memory in self.memory) == arena, "arena")
        for level in range(num_levels):
            for op in ops:
                if op.level == level:
                    self._run(op)

    def _run(self, op: Op) -> None:
        size = OUT_BYTES[op.out_kind]
        out = self.memory[op.out_region]
        if op.kind == COPY:
            start, num_bytes = self.sources[op.first_source][3], self.sources[op.first_source][7]
            if op.flags & 1:
                assert self.inflate is not None, "compressed bytes need a decoder"
                inflated = self.inflate(self.data[start : start + num_bytes], op.count * size)
                check(len(inflated) == op.count * size, "compressed bytes")
                out[op.out_offset : op.out_offset + op.count * size] = inflated
                return
            out[op.out_offset : op.out_offset + op.count * size] = self.data[start : start + op.count * size]
            return
        values = self._input(op)
        if op.dict_region != 0xFFFF:
            if op.dict_region == 0xFFFE:
                assert self.shared is not None
                check(self.shared.num_rows == 0 and self.shared.regions[0][:2] == (VALUES, 0), "a shared dictionary")
                entries = self.shared.memory[0]
            else:
                entries = self.memory[op.dict_region]
            items = [entries[code * size : code * size + size] if code is not None else bytes(size) for code in values]
            check(all(code is None or code < op.dict_count for code in values), "a code without an entry")
        else:
            items = [(item if item is not None else 0).to_bytes(size, "little") for item in self._store(op, values)]
        for number in range(op.num_patches):
            if op.out_kind == F32_DECIMAL:
                position, bits = struct.unpack_from("<II", self.data, op.patches + 8 * number)
            else:
                position, _, bits = struct.unpack_from("<IIQ", self.data, op.patches + 16 * number)
            items[position] = bits.to_bytes(size, "little")
        out[op.out_offset : op.out_offset + op.count * size] = b"".join(items)

    def _bits(self, at: int, count: int) -> list[int]:
        return [self.data[at + number // 8] >> number % 8 & 1 for number in range(count)]

    def _source(self, number: int) -> list[int]:
        kind, _, region, data, meta, value, count, _ = self.sources[number]
        if kind == CONSTANT:
            return [value] * count
        if kind == PLAIN:
            return list(struct.unpack_from(f"<{count}I", self.memory[region]))
        if kind == BITS:
            return self._bits(data, count)
        return [value for vector in range(-(-count // VECTOR)) for value in self._vector(kind, data, meta + 12 * vector, min(VECTOR, count - vector * VECTOR))]

    def _vector(self, kind: int, data: int, meta: int, count: int) -> list[int]:
        word_offset, base, width, _, num_exceptions = struct.unpack_from("<IIBBH", self.data, meta)
        check(kind == PACKED_EXCEPTIONS or num_exceptions == 0, "exceptions")
        rows = (count + 31) // 32
        num_words = (rows * width + 31) // 32 * 32
        words = struct.unpack_from(f"<{num_words + num_exceptions}I", self.data, data + 4 * word_offset)
        values = []
        for i in range(count):
            row, lane = i // 32, i % 32
            word, shift = row * width // 32 * 32 + lane, row * width % 32
            bits = words[word] >> shift if width else 0
            if shift + width > 32:
                bits |= words[word + 32] << 32 - shift
            values.append(bits & (1 << width) - 1)
        for exception in words[num_words:]:
            values[exception & 1023] += exception >> 10 << width
        return [(value + base) & M32 for value in values]

    def _input(self, op: Op) -> list[Any]:
        """x(i); None where NULLS has no value."""
        if op.kind in (NULLS, RANK, RUNS):
            bits = self._bits(op.bits0, op.count)
        if op.kind == RANK:
            return [rank - 1 for rank in _running(bits)]
        if op.kind == SPLIT:
            classes = self._bits(op.bits0, op.count)
            if op.num_sources > 2:
                classes = [low + 2 * high for low, high in zip(classes, self._bits(op.bits1, op.count), strict=True)]
            streams = [iter(self._source(op.first_source + number)) for number in range(op.num_sources)]
            return [next(streams[number]) for number in classes]
        values = self._source(op.first_source)
        if op.num_sources == 2 and not op.scan:
            values = [low + (high << 32) for low, high in zip(values, self._source(op.first_source + 1), strict=True)]
        if op.kind == DIRECT:
            return values
        if op.kind == RUNS:
            return [values[rank - 1] for rank in _running(bits)]
        check(op.kind == NULLS and len(values) == sum(bits), "an op of an unknown kind, or nulls that do not add up")
        present = iter(values)
        return [next(present) if bit else None for bit in bits]

    def _store(self, op: Op, values: list[Any]) -> list[Any]:
        sums = self._scan(op, values) if op.scan else values
        if op.out_kind == VIEW:
            lengths = values if op.scan == EXCLUSIVE_SUM else self._source(op.first_source + 1)
            return [start | length << 32 for start, length in zip(sums, lengths, strict=True)]
        if op.out_kind in (F32_DECIMAL, F64_DECIMAL):
            return [None if value is None else _decimal(value + op.base, op.scale, op.out_kind) for value in sums]
        if op.out_kind >= F32_FROM_F16:
            return [None if value is None else _dequantised(value + op.base, op.scale, op.out_kind) for value in sums]
        mask = (1 << 8 * OUT_BYTES[op.out_kind]) - 1
        return [None if value is None else value + op.base & mask for value in sums]

    def _scan(self, op: Op, values: Sequence[int]) -> list[int]:
        sums = []
        for vector in range(0, len(values), VECTOR):
            (total,) = struct.unpack_from("<I", self.data, op.scan_anchors + 4 * (vector // VECTOR))
            for value in values[vector : vector + VECTOR]:
                before, step = total, value >> 1 ^ -(value & 1) if op.scan == ZIGZAG_SUM else value
                total = total + step & M32
                sums.append(before if op.scan == EXCLUSIVE_SUM else total)
        return sums

    def _region(self, role: int, depth: int) -> tuple[Any, ...] | None:
        for (found, at, item, value_type, _, count, base), memory in zip(self.regions, self.memory, strict=True):
            if (found, at) == (role, depth):
                return item, value_type, count, base, memory
        return None

    def _flags(self, depth: int, count: int, group: int) -> list[int]:
        region = self._region(VALIDITY + group, depth)
        return [1] * count if region is None else list(region[4])

    def column(self, record: dict[str, Any]) -> list[Any]:
        """The rows as Python values; a map as a list of pairs."""
        keys = self._list(record, 0)
        if "weights" not in record:
            return keys
        weights = self._list(record["weights"], WEIGHTS)
        rows: list[Any] = []
        for row, values in zip(keys, weights, strict=True):
            check(row is None or len(row) == len(values), "keys and weights")
            rows.append(None if row is None else [list(pair) for pair in zip(row, values, strict=True)])
        return rows

    def _list(self, record: dict[str, Any], group: int) -> list[Any]:
        entries = self._leaf(record, group)
        for depth in reversed(range(record["depth"])):
            region = self._region(VIEWS + group, depth)
            if region is None and group and not depth:
                region = self._region(VIEWS, depth)
            check(region is not None, "views are missing")
            assert region is not None
            views = struct.unpack(f"<{region[2]}Q", region[4])
            present = self._flags(depth, len(views), group)
            entries = [entries[view & M32 : (view & M32) + (view >> 32)] if here else None for view, here in zip(views, present, strict=True)]
        return entries

    def _leaf(self, record: dict[str, Any], group: int) -> list[Any]:
        depth, fixed = record["depth"], record["fixed_size"]
        region = self._region(VALUES + group, depth)
        check(region is not None, "values are missing")
        assert region is not None
        item, value_type, count, base, memory = region
        code = VALUE_CODES[record["value_type"]]
        check(value_type == record["value_type"], "value type")
        if item < struct.calcsize(f"<{code}"):
            narrow = struct.unpack(f"<{count}{ {1: 'B', 2: 'H', 4: 'I'}[item] }", memory)
            size = struct.calcsize(f"<{code}")
            memory = b"".join((base + value & (1 << 8 * size) - 1).to_bytes(size, "little") for value in narrow)
        values: list[Any] = list(struct.unpack(f"<{count}{code}", memory))
        if fixed:
            items = [value if here else None for value, here in zip(values, self._flags(depth + 1, count, group), strict=True)]
            values = [items[start : start + fixed] for start in range(0, count, fixed)]
        return [value if here else None for value, here in zip(values, self._flags(depth, len(values), group), strict=True)]


class Op:
    """An op record by its field names."""

    def __init__(self, *fields: int) -> None:
        self.kind, self.out_kind, self.scan, self.num_sources, self.level, self.flags, self.out_region, self.count, self.out_offset = fields[:9]
        self.first_source, self.dict_region, self.dict_count, self.anchors, self.scan_anchors, self.bits0, self.bits1, self.patches = fields[9:17]
        self.num_patches, self.scale, _, self.base = fields[17:]


def _running(bits: list[int]) -> list[int]:
    total, sums = 0, []
    for bit in bits:
        total += bit
        sums.append(total)
    return sums


def _dequantised(value: int, scale: int, out_kind: int) -> int:
    """Bit pattern of the float32 that 16 or 8 bits stand for."""
    if out_kind == F32_FROM_BF16:
        return value << 16 & M32
    if out_kind == F32_SCALED_I8:
        signed = (value & 255 ^ 128) - 128
        return int(struct.unpack("<I", struct.pack("<f", signed * struct.unpack("<f", struct.pack("<I", scale))[0]))[0])
    half = value & 0xFFFF
    if half & 0x7FFF > 0x7C00:
        return (half & 0x8000) << 16 | 0x7F800000 | (half & 0x3FF) << 13
    return int(struct.unpack("<I", struct.pack("<f", struct.unpack("<e", struct.pack("<H", half))[0]))[0])


def _decimal(value: int, scale: int, out_kind: int) -> int:
    """Bit pattern of (signed value) / scale, each conversion and the division rounded once."""
    if out_kind == F64_DECIMAL:
        signed = (value & M64 ^ 1 << 63) - (1 << 63)
        return int(struct.unpack("<Q", struct.pack("<d", float(signed) / float(scale)))[0])
    signed = (value & M32 ^ 1 << 31) - (1 << 31)
    top, bottom = (struct.unpack("<f", struct.pack("<f", float(number)))[0] for number in (signed, scale))
    return int(struct.unpack("<I", struct.pack("<f", top / bottom))[0])
