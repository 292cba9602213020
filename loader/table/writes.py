"""What every write is: a commit_id, what it consumed, a way to resolve it at the head, and what its snapshot means to it. `commits` makes them snapshots."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

import numpy as np

from loader.catalog.commit import Stale
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets
from loader.errors import HeadraceError
from loader.segment.key_index import Keys

if TYPE_CHECKING:
    from loader.table.context import TableContext
    from loader.table.files import Stage

logger = logging.getLogger(__name__)


class Write:
    """One write, from the caller's data to its snapshot.

    Args:
        context: The table.
        offsets: What it consumed from a source.
        commit_id: Its name; None for one of its own.
        files: Where its files go; default the table's stage.

    Attributes:
        is_keyed: It names rows by their keys alone; a write that does not is committed alone.
        keys: Of all rows that it names, once it is staged.
        num_bytes: Of its data, about.
        is_named: It may have been committed before, which is looked up first.
        future: Its snapshot, or its error.
    """

    is_keyed = True

    def __init__(self, context: TableContext, *, offsets: SourceOffsets | None, commit_id: str | None, files: Stage | None = None) -> None:
        self.context, self.offsets, self.commit_id = context, offsets, commit_id or os.urandom(16).hex()
        self.files = context.stage if files is None else files
        self.is_named = commit_id is not None or offsets is not None
        self.keys = Keys(np.zeros(0, np.uint64), None)
        self.num_bytes = 0
        self.future: Future[Snapshot] = Future()

    def known(self) -> Snapshot | None:
        """The snapshot of an earlier commit of this name, or of these offsets."""
        return self.context.answered(self.commit_id, self.offsets) if self.is_named else None

    def stage(self) -> None:
        """Encode and store what does not depend on where rows are found, once, before the first attempt."""

    @classmethod
    def stage_all(cls, writes: Sequence[Self]) -> None:
        """`stage` for several writes of this kind; those that cannot be staged have their error."""
        for write in writes:
            try:
                write.stage()
            except Exception as error:  # noqa: BLE001 (the caller of the write gets it)
                write.fail(error)

    @classmethod
    def resolve_all(cls, writes: Sequence[Self]) -> None:
        """What several writes of this kind can look up together, before each is attempted."""

    def attempt(self) -> CommitPlan | Stale:
        """Resolve at the head: what to commit, or what went stale meanwhile. Called again when the head moved on in a way that matters."""
        raise NotImplementedError

    def refused(self, error: HeadraceError) -> Snapshot | None:
        """The answer after all, where an attempt failed because another process committed the same write in between."""
        return None

    def remember(self) -> None:
        """After the commit: keep what the next write can use."""

    @classmethod
    def remember_all(cls, writes: Sequence[Self]) -> None:
        """`remember` for several writes of this kind that were committed together."""
        for write in writes:
            write.remember()

    def fail(self, error: Exception) -> None:
        """Give it an error, unless it has its answer."""
        if not self.future.done():
            self.future.set_exception(error)

    def give_back(self, stage: Stage) -> None:
        """Close a stage of its own; what the write came to does not hang on it, for a lease that is not given back runs out."""
        try:
            stage.close()
        except HeadraceError as error:
            logger.warning("write to %s: its lease is left to run out: %s", self.context.spec.name, error)

    def run(self) -> Snapshot:
        """Commit it, alone or with the writes of other threads."""
        return self.context.commits.run(self)
