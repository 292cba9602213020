"""Group commit: the writes of many threads of a process go into one transaction with one sync, each with its own snapshot, commit_id and error.

Whoever gets the table's lock leads: it takes what is queued, resolves each write at one head, and commits those whose keys have nothing to do with each
other together; the others come in the next round. A write is acknowledged only after the transaction is durable. Small appends are also
prepared and encoded in one go, which is most of what they cost.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np

from loader.catalog.commit import LeaseLostError, Outcome, Stale, commit_group
from loader.catalog.records import CommitPlan, Snapshot
from loader.errors import ConflictError, HeadraceError
from loader.segment.key_index import Keys
from loader.table.writes import Write

if TYPE_CHECKING:
    from loader.table.context import TableContext

logger = logging.getLogger(__name__)
MAX_GROUP = 128  # writes of one transaction
MAX_GROUP_BYTES = 4 * 1024 * 1024  # of their data
MAX_QUEUED = 4 * MAX_GROUP  # writes that nobody waits for yet; the next one has to


class Commits:
    """The writes of one table in this process, in the order they came."""

    def __init__(self, context: TableContext) -> None:
        self._context = context
        self._queue: deque[Write] = deque()
        self._background: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def run(self, write: Write) -> Snapshot:
        """Commit a write, its turn come: led by this thread, or by another that took it along."""
        self._queue.append(write)
        try:
            while not write.future.done():
                with self._context.lock:
                    if not write.future.done():
                        self._lead()
        except BaseException:
            self._leave(write)
            raise
        return write.future.result()

    def submit(self, write: Write) -> Future[Snapshot]:
        """Commit a write in the background; waits where too many are queued."""
        queue = self._queue
        while len(queue) >= MAX_QUEUED:
            try:
                oldest = queue[0]
            except IndexError:
                break
            wait([oldest.future])  # one that its caller gave up too, once its turn comes
        with self._starting:
            if self._background is None:
                self._background = ThreadPoolExecutor(1, thread_name_prefix=f"headrace-commits-{self._context.spec.name}")
            queue.append(write)
            self._background.submit(self._drain)
        return write.future

    def close(self) -> None:
        """Commit what is queued in the background, and stop."""
        with self._starting:
            background, self._background = self._background, None
        if background is not None:
            background.shutdown(wait=True)

    def _drain(self) -> None:
        while self._queue:
            with self._context.lock:
                if self._queue:
                    self._lead()

    def _leave(self, write: Write) -> None:
        """An interrupted thread takes its write back, if nobody has begun it."""
        try:
            self._queue.remove(write)
        except ValueError:
            return
        write.future.cancel()

    def _lead(self) -> None:
        """Commit what is first in the queue. Called under the table's lock; every write that is taken is settled, or queued again."""
        taken: list[Write] = []
        try:
            self._take(taken)
            self._commit(taken)
        except BaseException as error:
            left = [write for write in taken if not write.future.done()]
            if isinstance(error, Exception):
                for write in left:
                    write.fail(error)
                return
            for write in left:  # this thread is interrupted, the others' writes are not: they may be committed already
                write.is_named = True
            self._queue.extendleft(reversed(left))
            if self._background is not None:
                self._background.submit(self._drain)  # of those that nobody waits for yet
            raise

    def _take(self, taken: list[Write]) -> None:
        num_bytes = 0
        while self._queue and len(taken) < MAX_GROUP:
            write = self._queue[0]
            num_bytes += write.num_bytes
            if taken and (not write.is_keyed or not taken[0].is_keyed or num_bytes > MAX_GROUP_BYTES):
                return
            self._queue.popleft()
            taken.append(write)

    def _commit(self, writes: Sequence[Write]) -> None:
        context, left = self._context, _each(writes, _is_new)
        for kind, of_kind in _by_kind(left):
            kind.stage_all(of_kind)
        left = [write for write in left if not write.future.done()]

        def resolve_and_commit() -> bool:
            """Whether some write came to its end: a group may need as many rounds as it has writes, and only rounds without one are tries."""
            nonlocal left
            before = len(left)
            left = self._round(left)
            return len(left) < before

        while left:
            context.repeat(resolve_and_commit)
        context.sealer.run_if_due()

    def _round(self, writes: list[Write]) -> list[Write]:
        """Resolve all at one head and commit what can be committed together; returns those that have to be tried again."""
        context, stage = self._context, self._context.stage
        plans: dict[Write, CommitPlan] = {}

        def attempt(write: Write) -> bool:
            try:
                plan = write.attempt()
                if isinstance(plan, CommitPlan):
                    stage.check_kept(plan)
            except HeadraceError as error:
                found = write.refused(error)
                if found is None:
                    raise
                write.future.set_result(found)
                return False
            if isinstance(plan, CommitPlan):
                plans[write] = plan
            return True

        with context.one_head():
            for kind, of_kind in _by_kind(writes):
                kind.resolve_all(of_kind)
            left = _each(writes, attempt)
        group = together([write for write in left if write in plans], plans, stage.is_used_by)
        if not group:
            return left
        stage.account([plans[write] for write in group], alone=len(group) == len(left))
        try:
            outcomes = commit_group(context.catalog, [plans[write] for write in group])
        except LeaseLostError:
            stage.forget()
            raise
        if any(isinstance(outcome, LeaseLostError) for outcome in outcomes):
            stage.forget()
        stage.committed([plans[write] for write in group])
        for kind, of_kind in _by_kind(
            [write for write, outcome in zip(group, outcomes, strict=True) if isinstance(outcome, Snapshot) and plans[write].written]
        ):
            kind.remember_all(of_kind)
        for write, outcome in zip(group, outcomes, strict=True):
            if not (isinstance(outcome, ConflictError) and _follows_another(write, left)):
                self._settle(write, plans[write], outcome)
        return [write for write in left if not write.future.done()]

    def _settle(self, write: Write, plan: CommitPlan, outcome: Outcome) -> None:
        if isinstance(outcome, Snapshot):
            if plan.written:
                self._context.sealer.note(outcome.id, len(plan.segments))
            write.future.set_result(outcome)
        elif isinstance(outcome, Stale):
            logger.debug("commit to %s: %s changed, trying again", self._context.spec.name, outcome.reason)
        else:
            write.fail(outcome)


def _is_new(write: Write) -> bool:
    """Whether the write is to be committed; it is not where it was before, or where its caller has given it up."""
    if not write.future.running() and not write.future.set_running_or_notify_cancel():
        return False
    try:
        known = write.known()
    except ConflictError:
        return True  # its offsets may go on from those of a write before it: the commit says
    if known is not None:
        write.future.set_result(known)
    return known is None


def _follows_another(write: Write, left: Sequence[Write]) -> bool:
    """Whether a write before it, that is still to be committed, has offsets of the same source: its own may go on from there."""
    if write.offsets is None:
        return False
    earlier = itertools.takewhile(lambda one: one is not write, left)
    source = (write.offsets.pipeline, write.offsets.source)
    return any(one.offsets is not None and (one.offsets.pipeline, one.offsets.source) == source and not one.future.done() for one in earlier)


def _by_kind(writes: Sequence[Write]) -> list[tuple[type[Write], list[Write]]]:
    kinds = dict.fromkeys(type(write) for write in writes)
    return [(kind, [write for write in writes if type(write) is kind]) for kind in kinds]


def _each(writes: Sequence[Write], step: Callable[[Write], bool]) -> list[Write]:
    """The writes that a step says go on; one that fails has its error and does not stop the others."""
    left = []
    for write in writes:
        try:
            if step(write):
                left.append(write)
        except Exception as error:  # noqa: BLE001 (the caller of the write gets it)
            write.fail(error)
    return left


def together(writes: list[Write], plans: dict[Write, CommitPlan], is_staged: Callable[[CommitPlan], bool]) -> list[Write]:
    """The writes that may share a transaction with the first: no key that one of them names is one whose rows another changes.

    A plan with files goes alone: what becomes of a file is known only with its commit. So does one that names no keys.
    """
    if len(writes) < 2 or is_staged(plans[writes[0]]) or not writes[0].is_keyed:
        return writes[:1]
    writes = [write for write in writes if write.is_keyed and not is_staged(plans[write])]
    keys = [write.keys for write in writes]
    of = np.repeat(np.arange(len(keys)), [len(some) for some in keys])
    every = Keys.concat(keys)
    order = every.order()
    same = every.low[order[1:]] == every.low[order[:-1]]
    if every.high is not None:
        same &= every.high[order[1:]] == every.high[order[:-1]]
    changes = np.array([bool(plans[write].rows_changed) for write in writes])
    apart: set[int] = set()
    groups = np.cumsum(np.append(True, ~same)) if len(order) else np.zeros(0, np.int64)
    for group in np.unique(groups[1:][same]).tolist():
        named = np.unique(of[order[groups == group]])
        if len(named) > 1 and changes[named].any():
            apart.update(named[1:].tolist())
    return [write for place, write in enumerate(writes) if place not in apart]
