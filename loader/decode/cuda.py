"""The CUDA executor: a decode program as one launch of `decode_stage` a level, on whatever runtime there is. Equal to the CPU executor bit for bit.

Owns the op tables' way to the device and the error word's way back. Compressed bytes are inflated on the host before
(`inflate.inflate_into_slab`); slabs, arenas and their order on streams are the caller's.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np

from loader.decode.inflate import inflate_into_slab, inflated_bytes
from loader.decode.program import Program
from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.kernels.runtime import DeviceMemory, Event, Runtime, Stream
from loader.segment.layout import PADDING_BYTES, VECTOR, Feature

Array = np.ndarray[Any, np.dtype[Any]]
WARPS_PER_BLOCK, THREADS = 8, 256
TABLE_BYTES = 4 << 20
_ERROR_BYTES = 64  # the error word, and what keeps the tables behind it aligned
KNOWN_FEATURES = Feature((1 << 9) - 1)  # lanes.cuh's
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """The first thing that a decode met and could not use.

    Attributes:
        chunk: Position in the program's chunks.
        reason: In words.
        error: What a check raises.
    """

    chunk: int
    reason: str
    error: CorruptSegmentError


class _Table:
    """A place for one program's tables, on both sides; free again when its event is done."""

    def __init__(self, runtime: Runtime, num_bytes: int) -> None:
        self.host, self.result = runtime.empty_pinned(num_bytes), runtime.empty_pinned(8).view(np.uint64)
        self.device: DeviceMemory = runtime.empty_device(num_bytes)
        self.uploaded, self.decoded = runtime.event(), runtime.event()
        self.decoding: Decoding | None = None


class Decoding:
    """A decode on its way.

    Attributes:
        event: Happens when the arena is written and the error word is back.
        num_launches: Of kernels.
    """

    def __init__(self, runtime: Runtime, ops: Array, table: _Table | None, num_launches: int) -> None:
        self._runtime, self._ops, self._table, self.num_launches = runtime, ops, table, num_launches
        self.event: Event = runtime.event() if table is None else table.decoded
        self._word: int | None = native.NO_ERROR if table is None else None

    def is_done(self) -> bool:
        return self._word is not None or self._runtime.is_done(self.event)

    def failure(self) -> Failure | None:
        """What was wrong, or None. Blocks until the decode is done."""
        if self._word is None and self._table is not None:
            self._runtime.synchronize(self.event)
            self._word, self._table.decoding, self._table = int(self._table.result[0]), None, None
        word = self._word
        if word is None or word == native.NO_ERROR:
            return None
        op, _, reason = native.describe_error(word)
        return Failure(chunk=int(self._ops["chunk"][op]), reason=reason, error=native.corrupt_chunk(self._ops, word))

    def check(self) -> None:
        """Block until the decode is done.

        Raises:
            CorruptSegmentError: A stream holds what its op cannot use; names the chunk by its position in the program.
        """
        failure = self.failure()
        if failure is not None:
            raise failure.error


class CudaExecutor:
    """Runs programs on a device. One thread at a time.

    Args:
        runtime: The device.
        table_bytes: Room for a program's tables, on the host and the device. A larger program makes it grow, with a warning.
        num_tables: Programs that may be on their way at once; one more waits for the oldest.
    """

    def __init__(self, runtime: Runtime, *, table_bytes: int = TABLE_BYTES, num_tables: int = 3) -> None:
        self.runtime = runtime
        self._tables = [_Table(runtime, table_bytes) for _ in range(num_tables)]
        self._next = 0

    def decode(
        self, program: Program, *, slab: int, slab_bytes: int, arena: int, arena_bytes: int, stream: Stream, copy_stream: Stream | None = None
    ) -> Decoding:
        """Put a decode on a stream. Nothing blocks, unless all tables are on their way.

        Args:
            program: Over the slab, without compressed bytes; of one block, or joined.
            slab: Device address on 8 bytes; PADDING_BYTES behind the slab are readable.
            slab_bytes: Without that padding.
            arena: Device address on 64 bytes; PADDING_BYTES behind the arena are readable.
            arena_bytes: Without that padding.
            stream: Where the kernels run. What fills the slab is ordered before it by the caller.
            copy_stream: Where the tables are copied; `stream` if None. Behind the slab's own copy they wait for no later one.

        Raises:
            CorruptSegmentError: The tables do not fit slab and arena.
            ValueError: The program needs what the kernels cannot do.
        """
        self._check(program, slab_bytes, arena_bytes)
        items = _first_items(program)
        if program.ops.size == 0 or not any(int(level[-1]) for level in items):
            return Decoding(self.runtime, program.ops, None, 0)
        table = self._free_table(_ERROR_BYTES + program.ops.nbytes + program.sources.nbytes + sum(level.nbytes for level in items))
        places = _fill(table, program, items)
        runtime = self.runtime
        runtime.copy_to_device(table.device.address, table.host[: places[-1]], copy_stream or stream)
        if copy_stream is not None:
            runtime.record(table.uploaded, copy_stream)
            runtime.wait(stream, table.uploaded)
        launches = 0
        for level, (first_items, at) in enumerate(zip(items, places[2:], strict=False)):
            num_items, first_op = int(first_items[-1]), int(program.level_starts[level])
            if not num_items:
                continue
            ops = table.device.address + places[0] + first_op * program.ops.itemsize
            pointers = (slab, arena, ops, table.device.address + places[1], table.device.address + at)
            arguments = (*pointers, first_op, first_items.size - 1, table.device.address)
            runtime.launch("decode_stage", (-(-num_items // WARPS_PER_BLOCK), 1), THREADS, arguments, stream)
            launches += 1
        runtime.copy_to_host(table.result, table.device.address, 8, stream)
        runtime.record(table.decoded, stream)
        table.decoding = Decoding(runtime, program.ops, table, launches)
        return table.decoding

    def _check(self, program: Program, slab_bytes: int, arena_bytes: int) -> None:
        unknown = Feature(program.features) & ~KNOWN_FEATURES
        if unknown:
            raise ValueError(f"the kernels cannot decode {unknown!r}: inflate compressed bytes with inflate_into_slab before")
        library = native.load()
        if library is not None:
            library.check_program(program.ops, program.sources, slab_bytes, arena_bytes)
        elif program.arena_bytes > arena_bytes:
            raise ValueError(f"the program writes {program.arena_bytes:,} bytes, the arena has {arena_bytes:,}")

    def _free_table(self, num_bytes: int) -> _Table:
        """The table that was used longest ago, once its decode is done."""
        number = self._next
        self._next = (number + 1) % len(self._tables)
        table = self._tables[number]
        if table.decoding is not None:
            table.decoding.failure()  # it keeps its answer
        self.runtime.synchronize(table.decoded)
        if table.host.nbytes < num_bytes:
            logger.warning("a program's tables take %s bytes, more than the %s of table_bytes: allocating anew", f"{num_bytes:,}", f"{table.host.nbytes:,}")
            table = self._tables[number] = _Table(self.runtime, num_bytes + num_bytes // 4)
        return table


def _first_items(program: Program) -> list[Array]:
    """For each level, the vectors before each of its ops, and of all; uint32."""
    ends = np.cumsum(-(-program.ops["count"].astype(np.int64) // VECTOR))
    before = np.concatenate([np.zeros(1, np.int64), ends])
    starts = program.level_starts.tolist()
    return [(before[first : end + 1] - before[first]).astype(np.uint32) for first, end in zip(starts[:-1], starts[1:], strict=True)]


def _fill(table: _Table, program: Program, items: list[Array]) -> list[int]:
    """Write the tables; where ops, sources and each level's items start, and where all ends."""
    host, at, places = table.host, _ERROR_BYTES, []
    host[:8].view(np.uint64)[0] = native.NO_ERROR
    for part in (program.ops, program.sources, *items):
        places.append(at)
        host[at : at + part.nbytes] = np.ascontiguousarray(part).view(np.uint8)
        at += part.nbytes
    return [*places, at]


def execute(executor: CudaExecutor, program: Program, slab: Array, arena: Array) -> None:
    """Run a program at once, as `cpu.execute` does, with buffers of its own. For tests and checks: it allocates, copies back and waits.

    Args:
        executor: Of any runtime.
        program: From `program.build` on this slab.
        slab: uint8, the encoded chunks and PADDING_BYTES of padding.
        arena: uint8, at least `program.arena_bytes` and PADDING_BYTES of padding; written in place, without the padding.

    Raises:
        CorruptSegmentError: As `cpu.execute`.
    """
    runtime, chunks = executor.runtime, slab.size - PADDING_BYTES
    room = runtime.empty_pinned(chunks + inflated_bytes(program) + PADDING_BYTES)
    room[:chunks] = slab[:chunks]
    program, used = inflate_into_slab(program, room, chunks)
    device_slab, device_arena = runtime.empty_device(used + PADDING_BYTES), runtime.empty_device(arena.size)
    back, stream = runtime.empty_pinned(max(program.arena_bytes, 1)), runtime.stream("decode")
    runtime.copy_to_device(device_slab.address, room[:used], stream)
    arena_bytes = arena.size - PADDING_BYTES
    decoding = executor.decode(program, slab=device_slab.address, slab_bytes=used, arena=device_arena.address, arena_bytes=arena_bytes, stream=stream)
    done = runtime.event()
    runtime.copy_to_host(back, device_arena.address, program.arena_bytes, stream)
    runtime.record(done, stream)
    runtime.synchronize(done)
    decoding.check()
    arena[: program.arena_bytes] = back[: program.arena_bytes]
