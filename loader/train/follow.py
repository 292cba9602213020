"""A run's way through a followed table: which increment is next, when it is worth taking, what is pinned, and how far behind the head it is.

Owns no batch and no order: it gives a loader one plan after another (`scan/follow.py`). Every rank asks for the next plan by itself, and the catalog makes them
agree.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from loader.catalog import follow as ends
from loader.catalog.follow import End, Head
from loader.catalog.read import load_snapshot
from loader.errors import CatalogBusyError, HeadraceError, SnapshotNotFoundError, StateMismatchError
from loader.extras import require
from loader.scan.follow import Follow, FollowPlan, Increment, carried_ranges
from loader.scan.order import Order
from loader.scan.plan import Plan
from loader.scan.scan import Scan
from loader.train.options import LoaderOptions, default_order, process_group
from loader.train.renewal import Renewal

logger = logging.getLogger(__name__)

LAG_SECONDS = 1.0
STOP_SECONDS = 0.1
BEGINNING = -1  # where the first snapshot of a stream is agreed
STATE_FIELDS = ("name", "number", "before", "since", "carried", "shards")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lag:
    """How far a loader is behind the head of its table.

    Attributes:
        rows: Committed, and not handed over yet: of the increment under way exactly, past it those of segments that hold any new row.
        seconds: Since the oldest of them was committed; 0 where there is none.
    """

    rows: int
    seconds: float


class Follower:
    """The increments of one loader.

    Args:
        scan: With its `follow`, at the snapshot to begin with, or None for the newest.
        options: Of the loader.
        clock: In seconds.
    """

    def __init__(self, scan: Scan, options: LoaderOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        assert scan.follow is not None
        self._scan, self._options, self._settings, self._clock = scan, options, scan.follow, clock
        self._lake = scan.table.lake
        self.stream = stream_name(scan.follow, options)
        self._plans: dict[int, Plan] = {}  # of the new rows of each increment that may still be asked for
        self._saved: list[int] = []
        self._stopped = False
        self.renewal = Renewal(self.renew)
        self._after_mark = 0
        self._shards: tuple[int, int] | None = None
        self._lag, self._lag_at = Lag(rows=0, seconds=0.0), -LAG_SECONDS
        self._told_at: int | None = None  # the increment's end at which the others were told to stop

    # plans

    def first(self) -> FollowPlan:
        """The plan of the snapshot's own rows."""
        now = self._scan.plan()
        self._plans[0] = now
        return self._as_plan(Increment(number=0, before=None, since=None, until=now.snapshot), now, None)

    def resume(self, content: Mapping[str, Any]) -> FollowPlan:
        """The plan of the increment in which a state was saved, for a follower that has begun nothing yet.

        Raises:
            StateMismatchError: The state is of no followed scan, or of another stream.
        """
        saved = content.get("follow")
        if not isinstance(saved, Mapping) or any(name not in saved for name in STATE_FIELDS):
            raise StateMismatchError("follow: the state is of a scan that follows nothing, and this loader's does: load it into a loader of a plain scan")
        self._shards = (0, int(saved["shards"]))
        if self._settings.name is None:
            self.stream = str(saved["name"])  # every rank loads the same state
        step = Increment(
            number=saved["number"],
            before=saved["before"],
            since=saved["since"],
            until=content["snapshot"],
            carried=saved["carried"],
            num_rows=content["num_rows"],
        )
        before = self._plan_of(step.before, step.since) if step.carried and step.since is not None else None
        if before is not None:
            self._plans[step.number - 1] = before
        now = self._plans[step.number] = self._plan_of(step.since, step.until)
        return self._as_plan(step, now, before)

    def advance(self, plan: FollowPlan) -> FollowPlan | None:
        """Wait for the increment after a plan; None where the stream is over, or was stopped here."""
        waiting = _Waiting(cursor=plan.increment.cursor, began=self._clock())
        while True:
            self.renewal()
            try:
                found = self._look(plan, waiting)
            except CatalogBusyError as error:
                logger.warning("the next increment waits for the catalog: %s", error)
                found = None
            if found is not None or waiting.is_over:
                return found
            if not waiting.moved:
                self._wait(self._settings.poll_seconds)
            waiting.moved = False

    def _wait(self, seconds: float) -> None:
        """Sleep, in pieces: a lock that a signal handler could set would be one that it can meet held."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._stopped:
            time.sleep(min(left, STOP_SECONDS))

    def _look(self, plan: FollowPlan, waiting: _Waiting) -> FollowPlan | None:
        """One look at the catalog: the next plan, if there is one; what was learnt goes into `waiting`."""
        table_id = self._scan.table.spec.id
        with self._lake.database.read() as connection:
            agreed = ends.load_end(connection, table_id, self.stream, waiting.cursor)
            over = agreed is None and ends.is_over(connection, table_id, self.stream, waiting.cursor, self._after_mark)
            head = ends.load_head(connection, table_id, plan.increment.until)
        if agreed is not None:
            return self._take(plan, agreed, waiting)
        if over:
            waiting.is_over = True
            return self._rest(plan)
        mine = None if self._must_end() else self._decide(plan, head, waiting)
        if mine is None and not self._must_end() and not self._is_idle(waiting):
            return None
        with self._lake.database.write(table_id, as_reader=True) as connection:
            if mine is not None:
                ends.propose(connection, self._scan.table.spec, self.stream, waiting.cursor, mine, self._after_mark)
            else:
                ends.propose_over(connection, table_id, self.stream, waiting.cursor)
        waiting.moved = True
        return None

    def _take(self, plan: FollowPlan, agreed: End, waiting: _Waiting) -> FollowPlan | None:
        """The increment up to an agreed end; None where it is too small to be one, and becomes part of the next."""
        waiting.moved = True
        try:
            found = self._plan_until(plan, agreed.until, is_flush=agreed.is_flush and self._options.remainder != "drop")
        except SnapshotNotFoundError:  # of an older run of this name: it is gone for every rank
            waiting.cursor = 2 * agreed.until
            return None
        waiting.cursor = 2 * agreed.until
        if found.num_rows and found.is_ready:
            self._plans[found.increment.number] = found.now
            self._let_go(found.increment.number)
            return found
        found.now.release()
        return None

    def _decide(self, plan: FollowPlan, head: Head, waiting: _Waiting) -> End | None:
        """The end to propose, if what has come is worth an increment, or has waited long enough."""
        closed_more = self._scan.offers_by_time and head.watermark != plan.now.view.watermark
        settings, pads = self._settings, self._options.remainder != "drop"
        if 2 * head.snapshot_id <= waiting.cursor or not (head.num_rows or closed_more):
            overdue = pads and plan.left > 0 and self._clock() - waiting.began >= settings.max_wait_seconds
            return End(until=plan.increment.until, is_flush=True) if overdue and waiting.cursor == plan.increment.cursor else None
        if waiting.news_at is None:
            waiting.news_at = self._clock()
        late = self._clock() - waiting.news_at >= settings.max_wait_seconds
        batch = self._options.global_batch_size
        enough = settings.min_rows or batch
        if head.snapshot_id != waiting.counted_at and (late or closed_more or head.num_rows * waiting.share >= enough):
            found = self._plan_of(plan.increment.until, head.snapshot_id)
            found.release()
            if found.num_rows > waiting.counted:
                waiting.idle_from = self._clock()
            waiting.counted_at, waiting.counted = head.snapshot_id, found.num_rows
            waiting.share = max(found.num_rows / head.num_rows, 0.001) if head.num_rows else 1.0
        rows = plan.left + waiting.counted
        whole = rows >= batch and rows % batch <= waiting.counted
        is_flush = late and pads and rows > 0
        if 2 * waiting.counted_at <= waiting.cursor:
            return None
        if not is_flush and not (whole and (waiting.counted >= enough or late)):
            return None
        return End(until=waiting.counted_at, is_flush=is_flush)

    def _must_end(self) -> bool:
        return self._stopped or (self._settings.end is not None and datetime.datetime.now(datetime.UTC) >= self._settings.end)

    def _is_idle(self, waiting: _Waiting) -> bool:
        since = waiting.began if waiting.idle_from is None else waiting.idle_from
        return self._settings.idle_seconds is not None and self._clock() - since >= self._settings.idle_seconds

    def _rest(self, plan: FollowPlan) -> FollowPlan | None:
        """What is still carried where the stream is over, as one more batch; None where it waits for whoever resumes."""
        if self._options.remainder == "drop" or not plan.left:
            return None
        found = self._plan_until(plan, plan.increment.until, is_flush=True)
        self._plans[found.increment.number] = found.now
        return found

    def _plan_until(self, plan: FollowPlan, until: int, *, is_flush: bool) -> FollowPlan:
        step, carried = plan.increment, plan.left
        now = self._plan_of(step.until, until)
        rows = carried + now.num_rows if is_flush else None
        following = Increment(number=step.number + 1, before=step.since, since=step.until, until=until, carried=carried, num_rows=rows)
        try:
            return self._as_plan(following, now, plan.now if carried else None)
        except BaseException:
            now.release()
            raise

    def _plan_of(self, since: int | None, until: int) -> Plan:
        return dataclasses.replace(self._scan, snapshot=until, since=since).plan()

    def _as_plan(self, step: Increment, now: Plan, before: Plan | None) -> FollowPlan:
        ranges = () if before is None else carried_ranges(before, dataclasses.replace(self._base_order(before), epoch=step.number - 1), step.carried)
        plan = FollowPlan(step, now, before, ranges, batch_rows=self._options.global_batch_size)
        if self._shards is None:
            self._shards = default_order(plan, self._options).shards, self._options.canonical_shards or self._options.world_size
        plan.stream, plan.later_shards = self.stream, self._shards[1]
        return plan

    def _base_order(self, plan: Plan) -> Order:
        """All of an order but its shards, which do not change how blocks are laid out."""
        return dataclasses.replace(default_order(plan, self._options), shards=1)

    def order_of(self, plan: FollowPlan) -> Order:
        """The order of an increment: later ones are small, and divide into a shard a rank."""
        assert self._shards is not None
        shards = self._shards[0] if plan.increment.number == 0 else self._shards[1]
        return dataclasses.replace(default_order(plan, self._options), shards=shards)

    # what is held

    def saved(self, plan: FollowPlan) -> None:
        """A state was taken in an increment: the last two of these can be resumed, however far the loader goes on."""
        self._saved = [*self._saved, plan.increment.number][-2:]

    def _let_go(self, number: int) -> None:
        wanted = {at - back for at in (number, *self._saved) for back in (0, 1)}
        for gone in [at for at in self._plans if at not in wanted]:
            self._plans.pop(gone).release()

    def renew(self) -> None:
        """Hold what is held for another day."""
        for plan in list(self._plans.values()):
            plan.renew()

    def close(self) -> None:
        """Let all snapshots go."""
        plans, self._plans = self._plans, {}
        for plan in plans.values():
            plan.release()

    # the end

    def begin(self, plan: FollowPlan, position: int) -> FollowPlan:
        """An iteration begins: what ended the one before is forgotten. Ranks that begin at the newest snapshot agree on which it is; returns the plan of that.

        Raises:
            SnapshotNotFoundError: A run of this name began before, and its snapshot is gone: take another name, or load its state.
        """
        self._stopped = False
        self._told_at = None
        with self._lake.database.read() as connection:
            self._after_mark = ends.last_mark(connection, self._scan.table.spec.id, self.stream)
        if plan.increment.number or position or self._options.world_size == 1 or self._scan.snapshot is not None:
            return plan
        with self._lake.database.write(self._scan.table.spec.id, as_reader=True) as connection:
            mine = End(until=plan.increment.until, is_flush=False)
            agreed = ends.propose(connection, self._scan.table.spec, self.stream, BEGINNING, mine, self._after_mark)
        if agreed is None or agreed == mine:
            return plan
        self.close()
        now = self._plans[0] = self._plan_of(None, agreed.until)
        return self._as_plan(Increment(number=0, before=None, since=None, until=now.snapshot), now, None)

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler."""
        self._stopped = True

    def is_stopped(self, plan: FollowPlan) -> bool:
        """After a batch: whether to stop here. A rank among others says in the catalog that the stream is over after this increment, for all of them."""
        if not self._stopped:
            return False
        if self._options.world_size == 1:
            return True
        if self._told_at != plan.increment.until:
            self._told_at = plan.increment.until
            with self._lake.database.write(self._scan.table.spec.id, as_reader=True) as connection:
                ends.propose_over(connection, self._scan.table.spec.id, self.stream, plan.increment.cursor)
        return False

    # how far behind

    def lag(self, plan: FollowPlan, position: int) -> Lag:
        """How far behind the head a loader is; the catalog is asked once a second at most."""
        if self._clock() - self._lag_at >= LAG_SECONDS:
            self._lag_at = self._clock()
            try:
                self._lag = self._find_lag(plan, plan.num_rows - position)
            except HeadraceError as error:
                logger.debug("no lag: %s", error)
        return self._lag

    def _find_lag(self, plan: FollowPlan, unread: int) -> Lag:
        spec, step = self._scan.table.spec, plan.increment
        with self._lake.database.read() as connection:
            head = ends.load_head(connection, spec.id, step.until)
            oldest = (step.since or step.until - 1) + 1 if unread else step.until + 1 if head.num_rows else None
            if oldest is None or oldest > head.snapshot_id or oldest < 1:
                return Lag(rows=unread + plan.left, seconds=0.0)
            made = load_snapshot(connection, spec, oldest).created_at
        return Lag(rows=unread + plan.left + head.num_rows, seconds=max((datetime.datetime.now(datetime.UTC) - made).total_seconds(), 0.0))


@dataclasses.dataclass(kw_only=True)
class _Waiting:
    """What a wait for the next increment has learnt.

    Attributes:
        cursor: The last agreed end that was looked at.
        began: When the wait began.
        news_at: When the first rows were seen that may be selected.
        idle_from: When rows were last found to be selected.
        counted_at: The head that was planned last, to count its rows.
        counted: How many these were.
        share: Of the rows that came by then, those that were selected.
        is_over: Whether the stream is.
        moved: Whether to look again at once.
    """

    cursor: int
    began: float
    news_at: float | None = None
    idle_from: float | None = None
    counted_at: int = 0
    counted: int = 0
    share: float = 1.0
    is_over: bool = False
    moved: bool = False


def stream_name(follow: Follow, options: LoaderOptions) -> str:
    """The name of a run's stream: the settings', or one that all ranks of torch.distributed get from rank 0.

    Raises:
        ValueError: Ranks that are numbered by hand have no name to meet under.
    """
    if follow.name is not None:
        return follow.name
    made, distributed = uuid.uuid4(), process_group()
    if options.world_size == 1:
        return str(made)
    if distributed is None or int(distributed.get_world_size()) != options.world_size:
        raise ValueError(
            f"follow needs a name where world_size is {options.world_size} and torch.distributed is not initialised, so that all ranks agree on the same "
            "increments: scan(follow=loader.Follow(name=…)), another name for every run"
        )
    torch = require("torch", extra="torch")
    words = torch.tensor(list(made.bytes), dtype=torch.int64, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.broadcast(words, src=0)
    return str(uuid.UUID(bytes=bytes(words.tolist())))


def check_follow(stream: Any) -> None:
    """Refuse a stream that was made for one plan.

    Raises:
        ValueError: It was.
    """
    if stream is not None and not callable(stream):
        raise ValueError(
            f"stream is a {type(stream).__name__} of one plan, and follow reads one plan after another: give what makes a stream, such as "
            "stream=loader.distributed.RayBlockStream"
        )
