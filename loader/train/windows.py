"""The windows that a rank holds, filled in the order in which they are needed. Owns which are held and when they go; not what a window is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from loader.batch.parts import Part
from loader.scan.order import ShardSlice, Window

W = TypeVar("W")


class HeldWindows(Generic[W]):
    """Windows by shard.

    Args:
        coming: All windows, in the order in which they are needed.
        fill: Makes one.
        num_bytes: What it takes.
        note_bytes: Told what all that are held take, whenever one more is.
        free: Called with one that no later batch needs.
        unit_offsets: Where the units of a window, which slices count, begin among its rows; None where a unit is a row.
    """

    def __init__(
        self,
        coming: Iterator[Window],
        fill: Callable[[Window], W],
        num_bytes: Callable[[W], int],
        note_bytes: Callable[[int], None],
        free: Callable[[W], None] = lambda window: None,
        unit_offsets: Callable[[Window], npt.NDArray[np.int64] | None] = lambda window: None,
    ) -> None:
        self._unit_offsets = unit_offsets
        self._coming, self._fill, self._num_bytes, self._note_bytes, self._free = coming, fill, num_bytes, note_bytes, free
        self._held: dict[int, list[tuple[Window, W]]] = {}
        self._held_bytes = 0
        self._offsets: dict[Window, npt.NDArray[np.int64] | None] = {}

    def parts(self, piece: ShardSlice) -> Iterator[Part[W]]:
        """A rank's rows of one shard as slices of windows."""
        row = piece.start
        while row < piece.stop:
            window, data = self._window(piece.shard, row)
            stop = min(window.stop, piece.stop)
            yield from self._rows(window, data, row - window.start, stop - window.start, piece.step)
            row += -(-(stop - row) // piece.step) * piece.step

    def _rows(self, window: Window, data: W, start: int, stop: int, step: int) -> Iterator[Part[W]]:
        """Units start, start + step, … below stop of a window, as parts of its rows."""
        if window not in self._offsets:
            self._offsets[window] = self._unit_offsets(window)
        offsets = self._offsets[window]
        if offsets is None:
            yield Part(window=data, start=start, stop=stop, step=step)
        elif step == 1:
            yield Part(window=data, start=int(offsets[start]), stop=int(offsets[stop]))
        else:
            for unit in range(start, stop, step):  # ranks share the shard: a rank's groups are no slice of it
                yield Part(window=data, start=int(offsets[unit]), stop=int(offsets[unit + 1]))

    def _window(self, shard: int, row: int) -> tuple[Window, W]:
        while True:
            for window, data in self._held.get(shard, ()):
                if window.start <= row < window.stop:
                    return window, data
            window = next(self._coming)
            data = self._fill(window)
            self._held.setdefault(window.shard, []).append((window, data))
            self._held_bytes += self._num_bytes(data)
            self._note_bytes(self._held_bytes)

    def release(self, slices: Sequence[ShardSlice]) -> None:
        """Let go of windows that no batch after these slices needs."""
        after: dict[int, int] = {}
        for piece in slices:  # rows of a shard come in ascending order, whatever the slices of a batch
            after[piece.shard] = max(after.get(piece.shard, 0), piece.start + (piece.num_rows - 1) * piece.step + 1)
        for shard, row in after.items():
            self._release(shard, row)

    def close(self) -> None:
        """Let go of all."""
        for shard, held in list(self._held.items()):
            self._release(shard, max((window.stop for window, _ in held), default=0))

    def _release(self, shard: int, after: int) -> None:
        held = self._held[shard]
        for window, data in held:
            if window.stop <= after:
                self._held_bytes -= self._num_bytes(data)
                self._free(data)
                self._offsets.pop(window, None)
        self._held[shard] = [(window, data) for window, data in held if window.stop > after]
