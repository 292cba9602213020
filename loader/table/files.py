"""Getting encoded segments into the lake: packing sections into one object, and a writer's leased names.

A commit's sections lie end to end in one object, each 64-byte aligned. An object that packs to at most INLINE_BYTES goes into the catalog,
in the commit's own transaction.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
import uuid
from collections.abc import Sequence

from loader.catalog.admin import add_stage, drop_stage
from loader.catalog.commit import STAGED_LEASE_SECONDS, LeaseLostError, renew_stage, throw_away
from loader.catalog.connection import Connection, Database
from loader.catalog.garbage import staged_path
from loader.catalog.inline import pack
from loader.catalog.records import INLINE_PREFIX, CommitPlan
from loader.errors import AlreadyExistsError
from loader.segment.layout import round_up
from loader.storage import Buffer, Storage

INLINE_BYTES = 64 * 1024  # as they are stored
MAX_PACKED_BYTES = 4 * INLINE_BYTES  # larger objects are not tried


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where packed sections are: one path, and (offset, num_bytes) of each."""

    path: str
    sections: tuple[tuple[int, int], ...]


class Stage:
    """A writer's own name prefix in the lake. Files are numbered; a number is used once.

    What was written for a commit that went another way is remembered and handed to the next commit as garbage.
    """

    def __init__(self, catalog: Database, storage: Storage, table_id: int, *, owner: str | None = None) -> None:
        self._catalog = catalog
        self._owner = owner or f"{socket.gethostname()}:{os.getpid()}"
        self._storage = storage
        self._table_id = table_id
        self._prefix = ""
        self._next = 0
        self._unused: dict[str, int] = {}  # number by path
        self._renewed_at = -float(STAGED_LEASE_SECONDS)

    def put(self, data: Buffer) -> str:
        """Write a file, flushed to disk, and return its path."""
        self._hold_lease()
        while True:
            path = staged_path(self._prefix, self._next)
            try:
                self._storage.put(path, data)
            except AlreadyExistsError:  # whole, by a put of ours that was interrupted before it could say so
                self._take(path)
                continue
            self._take(path)
            return path

    def _take(self, path: str) -> None:
        self._unused[path] = self._next
        self._next += 1

    def _hold_lease(self) -> None:
        if time.monotonic() - self._renewed_at < STAGED_LEASE_SECONDS / 2:
            return
        if self._prefix and self._unused:
            try:
                with self._catalog.write(self._table_id) as connection:
                    renew_stage(connection, self._prefix, 0)
            except LeaseLostError:
                self.forget()
                raise
        else:  # nothing depends on the old name, whose lease may be over
            self._prefix, self._next = f"data/{self._table_id}/{uuid.uuid4().hex}/", 0
            with self._catalog.write(self._table_id) as connection:
                add_stage(connection, self._table_id, self._prefix, self._owner)
        self._renewed_at = time.monotonic()

    def is_used_by(self, plan: CommitPlan) -> bool:
        """Whether a plan names files of this stage that are not committed yet."""
        return bool(self._unused) and not plan.is_inline and not plan.paths().isdisjoint(self._unused)

    def check_kept(self, plan: CommitPlan) -> None:
        """Refuse a plan with files that were forgotten when the lease was found to be lost, before the plan's turn came.

        Raises:
            LeaseLostError: It names a file that this stage does not hold.
        """
        if plan.is_inline:
            return
        lost = sorted(path for path in plan.paths() if path not in self._unused and not path.startswith(INLINE_PREFIX))
        if lost:
            raise LeaseLostError(f"this writer's lease on {lost[0]} ran out before it committed, and its files were collected: repeat the write")

    def settle(self, connection: Connection) -> None:
        """Count all files written so far as accounted for, in the transaction that refers to them.

        Raises:
            LeaseLostError: The lease ran out and was collected, so the files may be gone.
        """
        if self._prefix:
            renew_stage(connection, self._prefix, self._next)

    def account(self, plans: Sequence[CommitPlan], *, alone: bool = True) -> None:
        """Tell plans of one transaction which of this stage's files they leave unused, and how far they are accounted for.

        Args:
            plans: One, or several without files.
            alone: No other write has files here that it is still to commit.
        """
        for plan in plans:
            plan.staged, plan.accounted, plan.garbage = None, None, []  # a commit without files does not depend on the lease
        if not self._unused:
            return
        used = {path for plan in plans for path in plan.paths() if path in self._unused}
        garbage = sorted(self._unused.keys() - used) if alone else []
        plans[0].garbage = garbage
        if used or garbage:
            left = [number for path, number in self._unused.items() if path not in used and path not in garbage]
            plans[0].accounted = (self._prefix, min(left, default=self._next))
        if used:
            plans[0].staged = self._prefix

    def committed(self, plans: Sequence[CommitPlan]) -> None:
        """Plans that `account` saw have gone to the catalog: what was written of them is not left over."""
        for plan in plans if self._unused else ():
            if plan.written:
                for path in (*plan.garbage, *plan.paths()):
                    self._unused.pop(path, None)
                self._renewed_at = time.monotonic() if plan.accounted else self._renewed_at

    def forget(self) -> None:
        """Begin anew: the lease ran out, and what was written under it is gone."""
        self._prefix = ""
        self._unused.clear()
        self._renewed_at = -float(STAGED_LEASE_SECONDS)

    def close(self) -> None:
        """Hand what is left over to garbage and give the lease back."""
        if not self._prefix:
            return
        doubtful = staged_path(self._prefix, self._next)  # there, if a put arrived whose answer did not
        with self._catalog.write(self._table_id) as connection:
            throw_away(connection, self._table_id, sorted({*self._unused, doubtful}), reason="written and not committed")
            drop_stage(connection, self._prefix)
        self.forget()


def place(sections: Sequence[Buffer], stage: Stage, inline: dict[str, bytes] | None) -> Placed:
    """Pack sections into one object: a staged file, or an entry of `inline`, where there is one, if it is small."""
    at = 0
    offsets = []
    for section in sections:
        offsets.append(at)
        at = round_up(at + memoryview(section).nbytes)
    packed = bytearray(at)
    for offset, section in zip(offsets, sections, strict=True):
        packed[offset : offset + memoryview(section).nbytes] = section
    stored = pack(packed) if inline is not None and len(packed) <= MAX_PACKED_BYTES else None
    if inline is not None and stored is not None and len(stored) <= INLINE_BYTES:
        path = INLINE_PREFIX + os.urandom(16).hex()
        inline[path] = stored
    else:
        path = stage.put(packed)
    return Placed(path, tuple((offset, memoryview(section).nbytes) for offset, section in zip(offsets, sections, strict=True)))
