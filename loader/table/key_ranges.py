"""Rows of an input that need not fit into memory, put in ranges of their keys that do: what rows of one key mean together is seen in one range.

Owns an unnamed file of sorted runs, one for each part of the input, and the cut into ranges. Rows of one key keep the order in which they came.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.segment.key_index import Keys, spread
from loader.table.parts import WORKING_COPIES

U64 = npt.NDArray[np.uint64]
PIECES = 64  # of a run, read one by one
SAMPLES = 1024  # of a run


@dataclasses.dataclass(frozen=True)
class _Run:
    """A part in the file: where its sorted words begin, the first row of each piece and the end, the bounds of the pieces' bytes, and every `step`th word."""

    words_at: int
    num_rows: int
    first_rows: list[int]
    bytes_at: list[int]
    samples: U64
    step: int


class KeyRanges:
    """Rows on disk by ranges of their keys. A range holds as much as a part of the input; more where one key alone has more rows.

    Args:
        memory_bytes: What a write may hold, about: a range is as large as a part for it.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._range_bytes = max(memory_bytes // WORKING_COPIES, 1)
        self._file = tempfile.TemporaryFile(prefix="headrace-rows-")  # noqa: SIM115 (closed by `close`)
        self._runs: list[_Run] = []
        self._schema: pa.Schema | None = None
        self._num_bytes = 0
        self._bounds: U64 | None = None

    def add(self, keys: Keys, table: pa.Table) -> None:
        """Write the next part: its rows, and the key of each."""
        self.add_words(spread(keys), table)

    def add_words(self, words: U64, table: pa.Table) -> None:
        """Write the next part by words of the caller's own, in whose order ranges are."""
        self._num_bytes += table.nbytes
        order = np.argsort(words, kind="stable")
        words, num_rows, step = words[order], len(words), max(len(words) // SAMPLES, 1)
        words_at = self._file.seek(0, 2)
        words.tofile(self._file)
        self._file.flush()
        bytes_at, first_rows = [self._file.seek(0, 2)], [0]
        piece_rows = max(math.ceil(num_rows / PIECES), 1)
        for start in range(0, num_rows, piece_rows):
            piece = table.take(pa.array(order[start : start + piece_rows])).combine_chunks()
            data = piece.to_batches()[0].serialize()
            self._file.write(data)
            bytes_at.append(bytes_at[-1] + len(data))
            first_rows.append(min(start + piece_rows, num_rows))
        self._file.flush()
        self._schema = table.schema
        self._runs.append(_Run(words_at, num_rows, first_rows, bytes_at, words[::step], step))

    def __len__(self) -> int:
        """Ranges of what was added; nothing is added after they were asked for."""
        if self._bounds is None:
            self._bounds = self._cut()
        return len(self._bounds) + 1

    def _cut(self) -> U64:
        """Words that lie between ranges: so many samples, each for as many rows as it stands for, are in each."""
        wanted = math.ceil(self._num_bytes / self._range_bytes)
        samples = np.concatenate([run.samples for run in self._runs])
        weights = np.concatenate([np.full(len(run.samples), run.step) for run in self._runs])
        order = np.argsort(samples, kind="stable")
        before = np.cumsum(weights[order])
        at = np.searchsorted(before, before[-1] * np.arange(1, wanted) / wanted) if len(before) else np.zeros(0, np.int64)
        return np.unique(samples[order][at])

    def read(self, number: int) -> pa.Table:
        """The rows of a range: those of one key in the order they came."""
        assert self._bounds is not None, "ranges are counted before they are read"
        return self.between(self._bounds[number - 1] if number else None, self._bounds[number] if number < len(self._bounds) else None)

    def between(self, low: np.uint64 | None, high: np.uint64 | None) -> pa.Table:
        """The rows whose word is at least `low` and below `high`; None is open."""
        assert self._schema is not None, "something was added"
        tables = []
        for run in self._runs:
            words = self._words(run)
            first = 0 if low is None else int(np.searchsorted(words, low))
            last = run.num_rows if high is None else int(np.searchsorted(words, high))
            tables += self._rows(run, first, last)
        return pa.Table.from_batches(tables, self._schema).combine_chunks()

    def _words(self, run: _Run) -> U64:
        return np.memmap(self._file, np.uint64, "r", run.words_at, (run.num_rows,)) if run.num_rows else np.zeros(0, np.uint64)

    def _rows(self, run: _Run, first: int, last: int) -> list[pa.RecordBatch]:
        found = []
        for piece in range(int(np.searchsorted(run.first_rows, first, side="right")) - 1, int(np.searchsorted(run.first_rows, last))):
            start, stop = max(first, run.first_rows[piece]), min(last, run.first_rows[piece + 1])
            self._file.seek(run.bytes_at[piece])
            batch = pa.ipc.read_record_batch(pa.py_buffer(self._file.read(run.bytes_at[piece + 1] - run.bytes_at[piece])), self._schema)
            if stop - start < batch.num_rows:
                batch = batch.take(pa.array(np.arange(start, stop) - run.first_rows[piece]))  # a copy: the whole piece need not stay
            found.append(batch)
        return found

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
