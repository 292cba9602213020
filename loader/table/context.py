"""What all writes of one table handle share: its definition, catalog, storage, key directory, staged files, and the queue that commits them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from loader.catalog.commit import LeaseLostError, Stale, answered, commit
from loader.catalog.connection import Connection, Database
from loader.catalog.inline import LakeStorage
from loader.catalog.read import load_deletes, load_head_and_floor, load_pending, load_pending_changed, load_segment_changes
from loader.catalog.records import CommitPlan, PendingRef, Snapshot, SourceOffsets, TableSpec
from loader.catalog.views import Views
from loader.errors import ConflictError
from loader.segment.key_index import Keys, bucket_of
from loader.table.commits import Commits
from loader.table.files import Stage
from loader.table.keys import KeyDirectory
from loader.table.lookup import LOOKUP_CACHE_BYTES, LookUps
from loader.table.sealer import Sealer

logger = logging.getLogger(__name__)
OPTIMISTIC_TRIES = 4  # after these the writer resolves while it holds the queue, so that nobody can come between
_MAX_TRIES = 16
_PAUSE_SECONDS = 0.002
MEMORY_BYTES = 1 << 30
MAX_WAITING_BYTES = 16 << 20  # of the keys of waiting labels, that are kept from one write to the next


@dataclasses.dataclass(kw_only=True)
class TableContext:
    """Shared state of a handle's writes; `lock` makes them one at a time in a process. An append or a change by key holds about `memory_bytes`."""

    spec: TableSpec
    catalog: Database
    storage: LakeStorage
    lookup_cache_bytes: int = LOOKUP_CACHE_BYTES
    memory_bytes: int = MEMORY_BYTES
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.directory = KeyDirectory(self.storage)
        self.stage = self.new_stage()
        self.views = Views(self.catalog)
        self.sealer = Sealer(self.catalog, self.spec.id)
        self.look_ups = LookUps(spec=self.spec, catalog=self.catalog, storage=self.storage, cache_bytes=self.lookup_cache_bytes)
        self.commits = Commits(self)
        self._head: int | None = None
        self._waiting: list[PendingRef] = []
        self._waiting_as_of: tuple[int, int] | None = None

    def new_stage(self, owner: str | None = None) -> Stage:
        return Stage(self.catalog, self.storage, self.spec.id, owner=owner)

    @contextlib.contextmanager
    def one_head(self) -> Iterator[None]:
        """Inside, `refresh` and `waiting` read the catalog once, for all writes that are resolved together."""
        self._head = self._follow()
        try:
            yield
        finally:
            self._head = None
            if sum(len(label.keys) for label in self._waiting) > MAX_WAITING_BYTES:
                self._waiting, self._waiting_as_of = [], None

    def refresh(self) -> int:
        """Bring the key directory to the head; returns that snapshot's number. No transaction is open while indexes are read."""
        return self._follow() if self._head is None else self._head

    def waiting(self, buckets: Sequence[int]) -> list[PendingRef]:
        """Labels of these key buckets that wait for their row, in the order they came; as of `refresh`, or later."""
        if self._head is None:
            with self.catalog.read() as connection:
                self._load_waiting(connection, load_head_and_floor(connection, self.spec)[1])
        if not self._waiting:
            return []
        wanted = set(buckets)
        return [label for label in self._waiting if label.bucket in wanted]

    def _load_waiting(self, connection: Connection, floor: int) -> None:
        """Read the waiting labels again, if any came or went since, or were moved by an erasure."""
        as_of = (load_pending_changed(connection, self.spec.id), floor)
        if as_of != self._waiting_as_of:
            self._waiting, self._waiting_as_of = load_pending(connection, self.spec.id, range(self.spec.buckets)), as_of

    def _follow(self) -> int:
        directory = self.directory
        with self.catalog.read() as connection:
            head, floor = load_head_and_floor(connection, self.spec)
            self._load_waiting(connection, floor)
            if head == directory.synced:
                return head
            if directory.synced < floor:
                directory = self.directory = KeyDirectory(self.storage)  # what died since may be forgotten
            added, removed = load_segment_changes(connection, self.spec.id, directory.synced, head)
            deletes = load_deletes(connection, self.spec.id, directory.synced, head)
        try:
            directory.apply(head, added, removed, deletes)
        except BaseException:
            self.directory = KeyDirectory(self.storage)  # half applied: begin again at the next refresh
            raise
        return head

    def answered(self, commit_id: str, offsets: SourceOffsets | None) -> Snapshot | None:
        """The snapshot of an earlier commit of this name or these offsets, if there is one."""
        with self.catalog.read() as connection:
            return answered(connection, self.spec, commit_id, offsets)

    def forget_rows(self) -> None:
        """Let go of what this process holds of the table's rows; it is read again when it is needed. The directory begins anew at its next refresh."""
        self.look_ups.forget()
        self._waiting, self._waiting_as_of = [], None
        self.storage.forget()

    def key_buckets(self, keys: Keys) -> tuple[int, ...]:
        """The distinct buckets of keys, sorted."""
        return tuple(np.flatnonzero(np.bincount(bucket_of(keys, self.spec.buckets), minlength=1)).tolist())

    def repeat(self, attempt: Callable[[], bool]) -> None:
        """Do something until it says that it is done: freely at first, then while no other process can commit to the table, so that it comes to an end.

        Raises:
            ConflictError: It is still not done, which only lost connections can bring about.
        """
        for attempt_number in range(_MAX_TRIES):
            if attempt_number < OPTIMISTIC_TRIES:
                if attempt():
                    return
                time.sleep(random.uniform(0, _PAUSE_SECONDS) * attempt_number)  # timing only: results do not depend on it
            else:
                with self.lock, self.catalog.queue(self.spec.id):  # in the order of every write: a thread that has the lock may wait for the queue
                    if attempt():
                        return
        raise ConflictError(f"table {self.spec.name!r} changed under this commit {_MAX_TRIES} times: the catalog loses its connections, look there first")

    def commit(self, attempt: Callable[[], CommitPlan | Stale], stage: Stage) -> Snapshot | None:
        """Resolve and commit one plan until it holds, whatever else is queued; for maintenance, which has a stage of its own.

        Args:
            attempt: Resolves at the head and returns what to commit, or what went stale meanwhile; called again when the head moved on in a way that matters.
            stage: Where the plan's files were written.

        Returns:
            The snapshot, or None where the plan has to be abandoned.
        """
        done: Snapshot | Stale = Stale("head")

        def once() -> bool:
            nonlocal done
            done = self._try(attempt, stage)
            return isinstance(done, Snapshot) or done.abandoned

        self.repeat(once)
        if not isinstance(done, Snapshot):
            return None
        self.sealer.run_if_due()
        return done

    def _try(self, attempt: Callable[[], CommitPlan | Stale], stage: Stage) -> Snapshot | Stale:
        plan = attempt()
        if isinstance(plan, Stale):
            return plan
        stage.account([plan])
        try:
            done = commit(self.catalog, plan)
        except LeaseLostError:
            stage.forget()
            raise
        stage.committed([plan])
        if isinstance(done, Stale):
            logger.debug("commit to %s: %s changed, trying again", self.spec.name, done.reason)
        elif plan.written:
            self.sealer.note(done.id, len(plan.segments))
        return done
