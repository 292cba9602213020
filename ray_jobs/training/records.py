"""Which samples were trained, step by step: one binary file a rank and attempt, written before anyone can believe the step.

A record is a header and the positions of the rank's samples: (segment id, row of the segment), int64 little-endian each.

    magic u32 │ attempt u32 │ seed_index u32 │ epoch u32 │ step u64 │ num_samples u64 │ crc32 u32 │ 0 u32 │ positions int64 [num_samples, 2]

A process killed inside a write leaves a torn last record, which the reader drops. Records are flushed to the kernel with each step (they survive the
process) and to the disk before each checkpoint (they survive the machine): what a checkpoint counts is always on record.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loader.errors import StorageFullError

_HEADER = struct.Struct("<IIIIQQII")
_MAGIC = 0x44495248  # "HRID"

Positions = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What one rank trained in one step.

    Attributes:
        attempt: Start of the ranks that did it, from 0.
        rank: Data-parallel rank.
        seed_index: Which of the run's seeds, from 0.
        epoch: From 0.
        step: Global batches trained with this seed, this one included.
        positions: int64 [samples, 2], (segment id, row).
    """

    attempt: int
    rank: int
    seed_index: int
    epoch: int
    step: int
    positions: Positions

    @property
    def progress(self) -> tuple[int, int]:
        """What orders the steps of a run: (seed_index, step)."""
        return self.seed_index, self.step


class RecordWriter:
    """Appends the records of one rank in one attempt."""

    def __init__(self, folder: Path, *, attempt: int, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._attempt = attempt
        self._file = open(folder / f"attempt-{attempt:04d}-rank-{rank:04d}.ids", "wb", buffering=0)  # noqa: SIM115 (open as long as the attempt)

    def write(self, *, seed_index: int, epoch: int, step: int, positions: Positions) -> None:
        """One record, in one write.

        Raises:
            StorageFullError: It did not fit.
        """
        data = np.ascontiguousarray(positions, "<i8").tobytes()
        record = _HEADER.pack(_MAGIC, self._attempt, seed_index, epoch, step, len(positions), zlib.crc32(data), 0) + data
        if (self._file.write(record) or 0) < len(record):
            raise StorageFullError(f"no space left to write {self._file.name}: free some, and give the same command to go on")

    def sync(self) -> None:
        """Wait until all records are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_records(folder: Path) -> Iterator[Record]:
    """All whole records of a run, file by file.

    Raises:
        ValueError: A record in the middle of a file is damaged.
    """
    for path in sorted(folder.glob("attempt-*-rank-*.ids")):
        rank = int(path.stem.rsplit("-", 1)[1])
        yield from _read_file(path, rank)


def _read_file(path: Path, rank: int) -> Iterator[Record]:
    data = memoryview(path.read_bytes())
    at = 0
    while at + _HEADER.size <= len(data):
        magic, attempt, seed_index, epoch, step, count, checksum, _ = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + 16 * count
        if magic == _MAGIC and end > len(data):
            return  # torn: the process died in this write
        body = data[at + _HEADER.size : end]
        if magic != _MAGIC or zlib.crc32(body) != checksum:
            raise ValueError(f"{path}: the record at byte {at} is damaged: this file proves nothing from there on")
        positions = np.frombuffer(body, "<i8").reshape(-1, 2).astype(np.int64, copy=False)
        yield Record(attempt=attempt, rank=rank, seed_index=seed_index, epoch=epoch, step=step, positions=positions)
        at = end
