"""A DataLoader as a node of torchdata (`torchdata.nodes`): what composes with its batchers, prefetchers and samplers, and what its `Loader` checkpoints.

Owns the translation between torchdata's `reset` and the loader's epochs. The state is the loader's own: small JSON that any world size loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loader.extras import require
from loader.train.loader import DataLoader

nodes = require("torchdata.nodes", extra="torchdata")


class BatchNode(nodes.BaseNode):  # type: ignore[misc, name-defined]
    """The batches of a `DataLoader` as a source node: `torchdata.nodes.Loader(BatchNode(batches))` is iterated, saved and restored as any other.

    The first `reset()` begins the epoch that the loader stands at, every later one the next epoch, in another order. `reset(state)` begins where that state was
    taken, also after iteration began; a state of the end of an epoch has no batch left.

    Args:
        batches: The loader; the node alone iterates it from now on.

    Raises:
        MissingDependencyError: torchdata is not installed.
    """

    def __init__(self, batches: DataLoader) -> None:
        super().__init__()
        self.batches = batches
        self._iterator: Iterator[Any] | None = None
        self._epoch: int | None = None
        self._left = 0
        self._at_end: dict[str, Any] | None = None

    def reset(self, initial_state: Mapping[str, Any] | None = None) -> None:
        """Begin at a state, or at the start of an epoch.

        Raises:
            StateMismatchError: The state belongs to other samples or another order; the field is named.
        """
        super().reset(initial_state)
        if initial_state is not None:
            self.batches.restart(initial_state)
        elif self._epoch is not None and self._is_touched():
            self.batches.set_epoch(self._epoch + 1)
        self._epoch, self._iterator, self._left = self.batches.epoch, None, len(self.batches)
        self._at_end = None if self._left else self.batches.state_dict()

    def _is_touched(self) -> bool:
        """Whether anything but the start of an epoch is under way."""
        return self._iterator is not None or self._at_end is not None or self.batches.position > 0

    def next(self) -> Any:
        """The next batch."""
        if self._iterator is None:
            if not self._left:
                raise StopIteration
            self._iterator = iter(self.batches)
        batch = next(self._iterator)
        self._left -= 1
        if not self._left:
            self._at_end = self.batches.state_dict()
        return batch

    def get_state(self) -> dict[str, Any]:
        """The loader's state after the batch that `next` gave last; after the last of an epoch it is that epoch's end, until `reset`."""
        return self.batches.state_dict() if self._at_end is None else self._at_end

    def __len__(self) -> int:
        """Batches that are left of the epoch."""
        return self._left
