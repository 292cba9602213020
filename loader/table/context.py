"""What all writes of one table handle share: its definition, catalog, storage, key directory and staged files."""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable

import numpy as np

from loader.catalog.commit import LeaseLostError, Stale, answered, commit
from loader.catalog.connection import Database
from loader.catalog.inline import LakeStorage
from loader.catalog.read import load_deletes, load_floor, load_head, load_segment_changes
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets, TableSpec
from loader.catalog.views import Views
from loader.errors import ConflictError
from loader.segment.key_index import Keys, bucket_of
from loader.table.files import Stage
from loader.table.keys import KeyDirectory
from loader.table.lookup import LOOKUP_CACHE_BYTES, LookUps
from loader.table.sealer import Sealer

logger = logging.getLogger(__name__)
OPTIMISTIC_TRIES = 4  # after these the writer resolves while it holds the queue, so that nobody can come between
_MAX_TRIES = 8


@dataclasses.dataclass(kw_only=True)
class TableContext:
    """Shared state of a handle's writes; `lock` makes them one at a time in a process."""

    spec: TableSpec
    catalog: Database
    storage: LakeStorage
    lookup_cache_bytes: int = LOOKUP_CACHE_BYTES
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.directory = KeyDirectory(self.storage)
        self.stage = self.new_stage()
        self.views = Views(self.catalog)
        self.sealer = Sealer(self.catalog, self.spec.id)
        self.look_ups = LookUps(spec=self.spec, catalog=self.catalog, storage=self.storage, cache_bytes=self.lookup_cache_bytes)

    def new_stage(self, owner: str | None = None) -> Stage:
        return Stage(self.catalog, self.storage, self.spec.id, owner=owner)

    def refresh(self) -> int:
        """Bring the key directory to the head; returns that snapshot's number. No transaction is open while indexes are read."""
        with self.catalog.read() as connection:
            head = load_head(connection, self.spec)
            if head == self.directory.synced:
                return head
            if self.directory.synced < load_floor(connection, self.spec):
                self.directory = KeyDirectory(self.storage)  # what died since may be forgotten
            added, removed = load_segment_changes(connection, self.spec.id, self.directory.synced, head)
            deletes = load_deletes(connection, self.spec.id, self.directory.synced, head)
        try:
            self.directory.apply(head, added, removed, deletes)
        except BaseException:
            self.directory = KeyDirectory(self.storage)  # half applied: begin again at the next refresh
            raise
        return head

    def answered(self, commit_id: str, offsets: SourceOffsets | None) -> Snapshot | None:
        """The snapshot of an earlier commit of this name or these offsets, if there is one."""
        with self.catalog.read() as connection:
            return answered(connection, self.spec, commit_id, offsets)

    def key_buckets(self, keys: Keys) -> tuple[int, ...]:
        """The distinct buckets of keys, sorted."""
        return tuple(np.unique(bucket_of(keys, self.spec.buckets)).tolist())

    def commit(self, attempt: Callable[[], CommitPlan | Stale], stage: Stage) -> Snapshot | None:
        """Resolve and commit until it holds.

        Args:
            attempt: Resolves at the head and returns what to commit, or what went stale meanwhile; called again when the head moved on in a way that matters.
            stage: Where the plan's files were written.

        Returns:
            The snapshot, or None where the plan has to be abandoned.
        """
        for attempt_number in range(_MAX_TRIES):
            if attempt_number >= OPTIMISTIC_TRIES:
                with self.catalog.queue(self.spec.id):
                    done = self._try(attempt, stage)
            else:
                done = self._try(attempt, stage)
            if isinstance(done, Snapshot):
                self.sealer.run_if_due()
                return done
            if done.abandoned:
                return None
            logger.debug("commit to %s: %s changed, trying again", self.spec.name, done.reason)
            time.sleep(random.uniform(0, 0.002) * attempt_number)  # timing only: results do not depend on it
        raise ConflictError(f"table {self.spec.name!r} changed under this commit {_MAX_TRIES} times: try again with fewer concurrent writers")

    def _try(self, attempt: Callable[[], CommitPlan | Stale], stage: Stage) -> Snapshot | Stale:
        plan = attempt()
        if isinstance(plan, Stale):
            return plan
        stage.account(plan)
        try:
            done = commit(self.catalog, plan)
        except LeaseLostError:
            stage.forget()
            raise
        if plan.written:
            stage.committed(plan)
            self.sealer.note(done.id if isinstance(done, Snapshot) else 0, len(plan.segments))
        return done
