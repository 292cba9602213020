"""Running an erasure: written down first, then the rows are deleted at the head, hidden, rewritten, looked for again, proven, and their old bytes deleted.

Every step may be repeated, so that a run that was killed is continued by the next call with the same keys. The keys themselves are kept in the catalog only
for as long as the work lasts.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from loader import failpoints
from loader.catalog import erasure as records
from loader.catalog.commit import GARBAGE_GRACE_SECONDS, now_micros
from loader.catalog.connection import Connection
from loader.catalog.erasure import COMPLETE, REQUESTED, REWRITTEN, Erasure
from loader.catalog.garbage import collect
from loader.catalog.read import from_micros, load_head, load_snapshots, load_view
from loader.catalog.records import CommitPlan
from loader.errors import ColumnNotFoundError, ConflictError
from loader.segment.key_index import Keys
from loader.table.context import TableContext
from loader.table.delete import DeleteKeys, Matches
from loader.table.erasure.check import left_over, unpack_request
from loader.table.erasure.find import Found, find
from loader.table.erasure.proof import ErasureProof, check_signing_key, key_hashes
from loader.table.erasure.rewrite import Rewriter
from loader.table.lookup import KeyValues, key_table
from loader.table.pending import held_for
from loader.table.rows import key_words
from loader.table.segments import one_type, open_columns, read_by_id

logger = logging.getLogger(__name__)
MAX_PASSES = 8
Progress = Callable[[int, int], None]
DEFAULT_DUE = datetime.timedelta(seconds=GARBAGE_GRACE_SECONDS)


def erase(
    context: TableContext,
    keys: KeyValues | None,
    *,
    where: str | None = None,
    due: datetime.timedelta | datetime.datetime = DEFAULT_DUE,
    signing_key: bytes | None = None,
    progress: Progress | None = None,
) -> ErasureProof:
    """See `Table.erase`."""
    if (keys is None) == (where is None):
        raise ValueError("erase takes keys, or where=…: a SQL boolean expression that selects them; one of the two")
    check_signing_key(signing_key)
    words = _distinct(keys_that_match(context, where) if where is not None else key_words(context.spec, key_table(context.spec, keys)))
    due_at = _micros(due)
    with context.catalog.read() as connection:
        head = load_head(connection, context.spec)
    request = _request(context, words, due_at, head)
    if request.state == COMPLETE and request.proof is not None:
        return ErasureProof.from_json(request.proof)
    failpoints.hit("erase.requested")
    proof = _Erasing(context, request, signing_key, progress).run()
    if request.deleted_in is None or find(context.catalog, context.storage, context.spec, words, until=head).is_empty:
        return proof
    logger.info("erasure %s is done; rows came under its keys since it began, which are erased too", request.id)
    return _Erasing(context, _request(context, words, due_at, head, anew=True), signing_key, progress).run()


def _micros(due: datetime.timedelta | datetime.datetime) -> int:
    if isinstance(due, datetime.timedelta):
        if due < datetime.timedelta(0):
            raise ValueError(f"due is {due}: it lies in the past")
        return now_micros() + due // datetime.timedelta(microseconds=1)
    moment = due if due.tzinfo else due.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def _distinct(keys: Keys) -> Keys:
    """Each key once, in an order of their own."""
    ordered = keys.take(keys.order())
    if not len(ordered):
        return ordered
    new = ordered.low[1:] != ordered.low[:-1]
    if ordered.high is not None:
        new |= ordered.high[1:] != ordered.high[:-1]
    return ordered.take(np.flatnonzero(np.append(True, new)))


def _packed(keys: Keys) -> bytes:
    return keys.low.astype("<u8").tobytes() + (b"" if keys.high is None else keys.high.astype("<u8").tobytes())


def _request(context: TableContext, keys: Keys, due_at: int, head: int, *, anew: bool = False) -> Erasure:
    """The open request for these keys, or the complete one where no row came since; otherwise, and `anew` in any case, a new one, written down."""
    spec, catalog = context.spec, context.catalog
    digest = hashlib.sha256(f"{catalog.lake_id}/{spec.id}/{keys.key_bytes}/".encode() + _packed(keys)).hexdigest()
    with catalog.read() as connection:
        earlier = sorted(records.load_erasures(connection, spec.id, f"erase-{digest[:24]}-"), key=lambda one: records.number_of(one.id))
    if earlier and earlier[-1].state != COMPLETE and not anew:
        if due_at < earlier[-1].due_at:
            with catalog.write(spec.id) as connection:
                records.update(connection, earlier[-1].id, due_at=due_at)
            return dataclasses.replace(earlier[-1], due_at=due_at)
        return earlier[-1]
    if earlier and not anew and find(catalog, context.storage, spec, keys, until=head).is_empty:
        return earlier[-1]
    request = Erasure(
        id=records.make_id(digest, len(earlier) + 1),
        state=REQUESTED,
        num_keys=len(keys),
        key_bytes=keys.key_bytes,
        keys=_packed(keys),
        deleted_in=None,
        requested_at=now_micros(),
        due_at=due_at,
        proof=None,
    )
    with catalog.write(spec.id) as connection:
        records.record(connection, spec.id, request)
    return request


class _Erasing:
    """One run of a request."""

    def __init__(self, context: TableContext, request: Erasure, signing_key: bytes | None, progress: Progress | None) -> None:
        self.context, self.request, self.signing_key, self.progress = context, request, signing_key, progress
        self.keys = unpack_request(request) if request.num_keys else Keys(np.zeros(0, np.uint64), None)

    def run(self) -> ErasureProof:
        deleted_in = self._delete()
        failpoints.hit("erase.deleted")
        found = self._rewrite(deleted_in)
        proof = self._prove(deleted_in, found)
        self.context.forget_rows()
        if self.request.due_at <= now_micros():
            proof = self._finish(proof)
        failpoints.hit("erase.proven")
        return proof

    def _delete(self) -> int:
        """Delete the rows at the head, once; returns the snapshot from which on they are gone."""
        if self.request.deleted_in is not None:
            return self.request.deleted_in
        snapshot = _TakeOut(self.context, self.keys, offsets=None, commit_id=self.request.id).run()
        with self.context.catalog.write(self.context.spec.id) as connection:
            records.update(connection, self.request.id, deleted_in=snapshot.id)
        return snapshot.id

    def _find(self, deleted_in: int, *, whole: bool) -> Found:
        context = self.context
        return find(context.catalog, context.storage, context.spec, self.keys, until=deleted_in, whole=whole, progress=self.progress)

    def _rewrite(self, deleted_in: int) -> Found:
        """Rewrite until a search of all key indexes finds nothing; returns that search."""
        context, request = self.context, self.request
        stage = context.new_stage()
        grace = max(0.0, min(float(GARBAGE_GRACE_SECONDS), (request.due_at - now_micros()) / 1e6))
        rewriter = Rewriter(context=context, erasure_id=request.id, keys=self.keys, stage=stage, grace_seconds=grace)
        try:
            found = self._find(deleted_in, whole=False)
            for _ in range(MAX_PASSES):
                if found.is_empty:
                    found = self._find(deleted_in, whole=True)
                    if found.is_empty:
                        return found
                rewriter.run(found, self.progress)
                found = self._find(deleted_in, whole=False)
        finally:
            stage.close()
        raise ConflictError(
            f"table {context.spec.name!r} changed {MAX_PASSES} times under erasure {request.id}, and {found.num_rows} rows are not rewritten yet: "
            "call erase again with the same keys, it goes on from here"
        )

    def _prove(self, deleted_in: int, found: Found) -> ErasureProof:
        """Look at what was blanked, and write the proof down.

        Raises:
            ConflictError: Something holds a value of an erased row, which no step may leave.
        """
        context, request, spec = self.context, self.request, self.context.spec
        problems = left_over(context.catalog, context.storage, spec)
        if problems:
            raise ConflictError(f"erasure {request.id} of table {spec.name!r} is not whole: {'; '.join(problems[:3])}: run `headrace doctor`, then erase again")
        failpoints.hit("erase.verified")
        with context.catalog.write(spec.id) as connection:
            records.hurry_garbage(connection, spec.id, request.due_at)
            proof = ErasureProof(
                erasure_id=request.id,
                lake_id=context.catalog.lake_id,
                table=spec.name,
                table_id=spec.id,
                state=REWRITTEN,
                requested_at=_iso(request.requested_at),
                verified_at=_iso(now_micros()),
                due_at=_iso(request.due_at),
                deleted_in=deleted_in,
                head=load_head(connection, spec),
                key_hashes=tuple(sorted(key_hashes(self.keys, self.signing_key or context.catalog.lake_id.encode()))),
                checked={"segments": found.num_segments, "keys": found.num_keys, "pending_entries": found.num_pending},
                rewritten=tuple(records.moved_paths(connection, spec.id, request.id)),
                waiting=tuple((path, _iso(not_before)) for path, not_before in records.waiting_garbage(connection, spec.id)),
                open_writers=records.open_writers(connection, spec.id),
            ).signed(self.signing_key)
            records.update(connection, request.id, state=REWRITTEN, proof=proof.to_json())
        return proof

    def _finish(self, proof: ErasureProof) -> ErasureProof:
        """The due date is here: delete what waits, and sign for that too. Where another process is reading the catalog's own file, the next call does."""
        context = self.context
        collect(context.catalog, context.storage.files)
        left = [path for path in [*(path for path, _ in proof.waiting), *(old for old, _ in proof.rewritten)] if context.storage.exists(path)]
        if left:
            logger.info("erasure %s: %d objects are still there", proof.erasure_id, len(left))
            return proof
        with context.catalog.write(context.spec.id) as connection:
            own = records.family_of(proof.erasure_id)
            for earlier in records.load_erasures(connection, context.spec.id, own):  # of the same keys, which were not due before rows came again
                if earlier.id != proof.erasure_id and earlier.state == REWRITTEN and earlier.proof is not None:
                    self._complete(connection, ErasureProof.from_json(earlier.proof))
            proof = self._complete(connection, proof)
        context.catalog.scrub()
        return proof

    def _complete(self, connection: Connection, proof: ErasureProof) -> ErasureProof:
        proof = dataclasses.replace(proof, state=COMPLETE, verified_at=_iso(now_micros())).signed(self.signing_key)
        records.update(connection, proof.erasure_id, state=COMPLETE, proof=proof.to_json(), keys=None)
        return proof


class _TakeOut(DeleteKeys):
    """The delete of an erasure: labels that wait for its keys go with the rows, so that a row that comes before they are blanked does not meet them."""

    def attempt(self) -> CommitPlan:
        plan = super().attempt()
        plan.met = held_for(self.context.waiting(self.buckets), self.keys)
        plan.pending_buckets = self.buckets
        plan.pending_changed = self.buckets if plan.met else ()
        return plan


def keys_that_match(context: TableContext, where: str) -> Keys:
    """Keys of all rows that an expression selects, in any snapshot that is kept: what was changed since matched before."""
    spec, storage = context.spec, context.storage
    matches, parts = Matches(where), [key_words(spec, key_table(spec, pa.Table.from_batches([], spec.schema.to_arrow())))]
    seen: set[tuple[int, bytes]] = set()
    with context.catalog.read() as connection:
        snapshots = [snapshot.id for snapshot in load_snapshots(connection, spec)]
    for snapshot_id in snapshots:
        with context.catalog.read() as connection:
            view = load_view(connection, spec, snapshot_id)
        refs = {ref.segment_id: ref for ref in view.segments}
        try:
            selected = matches.find(view, storage)
        except ColumnNotFoundError:
            if snapshot_id == snapshots[-1]:
                raise
            continue  # it was committed before there was such a column
        for segment_id, rows in selected.items():
            name = (segment_id, rows.tobytes())
            if name in seen:
                continue
            seen.add(name)
            columns = spec.columns(spec.primary_key_ids)
            read = read_by_id(open_columns(storage, refs[segment_id]), [column.id for column in columns], rows=rows.astype(np.int64))
            table = pa.table({column.name: one_type(read[column.id], column.type) for column in columns})
            parts.append(key_words(spec, table))
    return Keys.concat(parts)


def _iso(micros: int) -> str:
    return from_micros(micros).isoformat()
