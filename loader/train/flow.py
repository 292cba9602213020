"""How far ahead of its trainer a loader works: few batches and blocks at first, more when the trainer waited, within a limit in bytes.

Owns the two depths and what changes them. A trainer that is never kept waiting holds no more memory than it did at the start.
"""

from __future__ import annotations

from collections.abc import Mapping

FIRST_BATCHES = 2
MAX_BATCHES = 256
MAX_BLOCKS = 256
BLOCKS_A_THREAD = 2
WAITED_SHARE = 0.01  # of the time between two batches: less is no reason to hold more
CALM_BATCHES = 256  # so many batches in a row whose queue never ran low give some of it back
QUEUE_BYTES = 1 << 30  # of batches that wait, however much memory there is
FETCHING = ("read", "checksum")


class Flow:
    """Depths that tune themselves; written by the trainer's thread alone, read by any.

    Args:
        threads: For fetching.

    Attributes:
        batches: Batches made ahead at most.
        blocks: Blocks fetched ahead at most; `prefetch_bytes` limits them too.
        queue_bytes: Limit for batches that are made and not taken; two are always allowed.
        is_fixed: Never more than two batches: where the memory of batches is planned beforehand.
    """

    def __init__(self, *, threads: int) -> None:
        self._first_blocks = BLOCKS_A_THREAD * threads
        self.queue_bytes = QUEUE_BYTES
        self.is_fixed = False
        self.batches = FIRST_BATCHES
        self.blocks = self._first_blocks
        self._largest_bytes = 1
        self._calm = 0
        self._lowest = MAX_BATCHES

    @property
    def most_batches(self) -> int:
        """Batches that fit into the limit, by the largest one so far."""
        return max(min(FIRST_BATCHES if self.is_fixed else MAX_BATCHES, self.queue_bytes // self._largest_bytes), FIRST_BATCHES)

    def wanted_blocks(self) -> int:
        """`blocks` now."""
        return self.blocks

    def begin(self, *, is_fixed: bool) -> None:
        """An iteration begins: what was learned stays."""
        self.is_fixed = is_fixed
        self._calm, self._lowest = 0, MAX_BATCHES

    def taken(self, waited: Mapping[str, float], seconds: float, *, queued: int, num_bytes: int) -> None:
        """The trainer took a batch.

        Args:
            waited: Seconds it waited for this batch, by stage.
            seconds: Since it took the one before.
            queued: Batches that were there when it asked.
            num_bytes: Of this batch.
        """
        self._largest_bytes = max(self._largest_bytes, num_bytes)
        self._lowest = min(self._lowest, queued)
        if not queued and sum(waited.values()) > WAITED_SHARE * seconds:
            self._calm, self._lowest = 0, MAX_BATCHES
            self.batches *= 2
            if sum(waited.get(stage, 0.0) for stage in FETCHING) > sum(waited.values()) / 2:
                self.blocks = min(2 * self.blocks, MAX_BLOCKS)
        elif self._calm == CALM_BATCHES:
            self.batches = max(self.batches - self._lowest // 2, FIRST_BATCHES)
            self._calm, self._lowest = 0, MAX_BATCHES
        else:
            self._calm += 1
        self.batches = min(self.batches, self.most_batches)
