"""What a loader does about blocks that cannot be had, and which rows of its batches are masked. Owns the policy; what a bad block is, `scan.bad_blocks` says.

A bad block keeps its place: its rows are masked and counted, and positions never shift. Rows that were erased since the snapshot are masked the same way.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from loader.batch.assemble import BatchArrays
from loader.batch.device_arrays import DeviceArrays
from loader.errors import BadRecordError
from loader.scan.bad_blocks import error_of
from loader.scan.encoded import BadBlock, EncodedBlock

logger = logging.getLogger(__name__)

POLICIES = ("fail", "skip", "quarantine")
MAX_CONSECUTIVE = 8
A = TypeVar("A", BatchArrays, DeviceArrays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetBlock:
    """A bad block that was met: its index in the plan, and why it is bad."""

    block: int
    bad: BadBlock


class BadBlocks:
    """The policy of one loader, and what is masked of the blocks that it met.

    Args:
        policy: "fail" raises; "skip" masks the block; "quarantine" does, and tells `quarantine`, so that later runs need not try.
        max_consecutive: Bad blocks one after another at which also these give up: then it is the store that is wrong, not a block.
        place: Says where a block of the plan is.
        quarantine: Told of every block that is new.
    """

    def __init__(
        self,
        policy: str = "fail",
        max_consecutive: int | None = MAX_CONSECUTIVE,
        place: Callable[[int], object] = str,
        quarantine: Callable[[MetBlock], None] | None = None,
    ) -> None:
        self.policy = policy
        self._max_consecutive, self._place, self._quarantine = max_consecutive, place, quarantine
        self._consecutive = 0
        self._blocks: set[int] = set()
        self._bits: dict[int, npt.NDArray[np.uint8]] = {}
        self._new: list[MetBlock] = []

    @property
    def is_tolerant(self) -> bool:
        return self.policy != "fail"

    def arrive(self, block: EncodedBlock) -> None:
        """A block has come.

        Raises:
            HeadraceError: It is bad, and the policy is to fail: what was met when it was read.
            BadRecordError: It is one too many.
        """
        if block.bad is not None:
            self.meet(MetBlock(block=block.request.block, bad=block.bad))
            return
        self._consecutive = 0
        if block.masked is not None:
            self._bits[block.request.block] = block.masked

    def meet(self, met: MetBlock) -> None:
        """A block is bad. Raises as `arrive`."""
        if not met.bad.known:
            self._judge(met)
        if met.block not in self._blocks:
            self._blocks.add(met.block)
            self._new.append(met)
            logger.warning("%s is %s, and its rows are masked: %s", self._place(met.block), "in quarantine" if met.bad.known else "bad", met.bad.reason)
            if self.policy == "quarantine" and self._quarantine is not None and not met.bad.known:
                self._quarantine(met)

    def _judge(self, met: MetBlock) -> None:
        if not self.is_tolerant:
            raise error_of(met.bad)
        self._consecutive += 1
        if self._max_consecutive is not None and self._consecutive > self._max_consecutive:
            raise BadRecordError(
                f"{self._consecutive} blocks one after another are bad, the last {self._place(met.block)}: {met.bad.reason}; bad_records={self.policy!r} "
                f"gives up after max_consecutive_bad={self._max_consecutive}: look at the store first, headrace verify checks every chunk"
            ) from error_of(met.bad)

    def take_new(self) -> list[MetBlock]:
        """The bad blocks that were met since this was asked last."""
        found, self._new = self._new, []
        return found

    def mask(self, arrays: A) -> A:
        """The arrays of a batch with what is masked of them."""
        masked = self._masked(arrays.blocks, arrays.rows)
        if masked is None:
            return arrays
        return arrays.with_masked(masked if arrays.masked is None else masked | arrays.masked)

    def _masked(self, blocks: npt.NDArray[np.uint32], rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_] | None:
        """bool [rows], or None where nothing is masked."""
        if not self._blocks and not self._bits:
            return None
        masked: npt.NDArray[np.bool_] = np.isin(blocks, np.fromiter(self._blocks, np.int64, len(self._blocks)))
        for block in np.intersect1d(blocks, np.fromiter(self._bits, np.int64, len(self._bits))).tolist():
            here = np.flatnonzero(blocks == block)
            masked[here] |= (self._bits[block][rows[here] >> 3] >> (rows[here] & 7).astype(np.uint8) & 1).view(np.bool_)
        return masked if masked.any() else None
