"""Checks of paths: each is in exactly one of a writer's staged prefix, live tables and garbage. Inline bytes are there, and objects are long enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loader.catalog.commit import is_referred_to, throw_away
from loader.catalog.garbage import MAX_STAGED_GAP, staged_path
from loader.catalog.records import INLINE_PREFIX
from loader.doctor.checks import RECORDS, WARNING, Found, Patient, TableState, check
from loader.errors import HeadraceError, NotFoundError
from loader.storage import Storage

REQUESTS = 16  # at a time
MAX_ROWS = 1_000
PATHS = " union ".join(f"select path from {records} where table_id = ?" for records in RECORDS)
ENDS = (
    "select path, max(section_end) from ("
    + " union all ".join(f"select path, max(section_offset + num_bytes) as section_end from {records} where table_id = ? group by path" for records in RECORDS)
    + ") as s group by path order by path"
)
_INLINE_BYTES = "coalesce(i.num_bytes, length(i.data))"  # as readers see them, unpacked


def _keep(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    (path,) = subject
    if not is_referred_to(patient.connection, path):
        return None
    patient.connection.execute("delete from garbage where path = ?", (path,))
    return f"{path} is no garbage any more"


@check(
    "live-garbage",
    scope="table",
    severity=WARNING,
    explains="a path stands in the live tables and in garbage: it is in use, and only a last check keeps the next collection from deleting it",
    remedy="takes it out of garbage",
    repair=_keep,
)
def live_garbage(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(f"select g.path, g.reason from garbage g where g.path in ({PATHS}) order by g.path limit {MAX_ROWS}", (table.id,) * len(RECORDS))
    for path, reason in rows:
        yield Found(where=path, what=f"it is referred to, and garbage: {reason}", subject=(path,))


def _account(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    prefix, number = subject
    done = patient.connection.execute("update staged set next_file = ? where prefix = ? and next_file < ?", (number + 1, prefix, number + 1)).rowcount
    return f"the files of {prefix} are accounted for up to number {number}" if done else None


@check(
    "live-staged",
    scope="table",
    explains="a path is in use and counts as not yet committed: it is deleted when the lease of its writer runs out",
    remedy="accounts for it, so that it outlives the lease",
    repair=_account,
)
def live_staged(patient: Patient, table: TableState) -> Iterator[Found]:
    """The names that a collection would try, in its order."""
    for prefix, following in patient.rows("select prefix, next_file from staged where table_id = ? order by prefix", (table.id,)):
        number, missing, live = following, 0, -1
        while missing < MAX_STAGED_GAP:
            used = is_referred_to(patient.connection, staged_path(prefix, number))
            missing, live = (0, number) if used else (missing + 1, live)
            number += 1
        if live >= 0:
            yield Found(
                where=staged_path(prefix, live), what=f"it is referred to, and its writer has accounted for {following} files only", subject=(prefix, live)
            )


@check(
    "inline-bytes",
    scope="table",
    explains="small commits lie in the catalog itself: these rows cannot be read",
    remedy="restore the lake from a backup (headrace restore)",
)
def inline_bytes(patient: Patient, table: TableState) -> Iterator[Found]:
    for records in RECORDS:
        rows = patient.rows(
            f"select r.id, r.path, r.section_offset + r.num_bytes, {_INLINE_BYTES} from {records} r left join inline_data i on i.path = r.path "
            f"where r.table_id = ? and r.path like '{INLINE_PREFIX}%' and (i.data is null or {_INLINE_BYTES} < r.section_offset + r.num_bytes) "
            f"order by r.id limit {MAX_ROWS}",
            (table.id,),
        )
        for number, path, end, length in rows:
            there = "is not in the catalog" if length is None else f"has {length:,} bytes"
            yield Found(where=f"{records} {number}", what=f"it ends at byte {end:,} of {path}, which {there}")


def _throw_away(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    if is_referred_to(patient.connection, subject[0]):
        return None
    throw_away(patient.connection, table.id, [subject[0]], reason="found by the doctor: nothing refers to it")
    return f"{subject[0]} is garbage"


@check(
    "inline-orphan",
    scope="table",
    severity=WARNING,
    explains="bytes in the catalog that nothing refers to and nothing will delete",
    remedy="puts them into garbage; headrace gc deletes them",
    repair=_throw_away,
)
def inline_orphan(patient: Patient, table: TableState) -> Iterator[Found]:
    used = " and ".join(f"not exists (select 1 from {records} r where r.path = i.path)" for records in (*RECORDS, "garbage"))
    for path, length in patient.rows(
        f"select i.path, {_INLINE_BYTES} from inline_data i where i.table_id = ? and {used} order by i.path limit {MAX_ROWS}", (table.id,)
    ):
        yield Found(where=path, what=f"{length:,} bytes that nothing refers to", subject=(path,))


def stored_paths(patient: Patient, table: TableState) -> list[tuple[str, int]]:
    """(path, the byte that its last section ends at) of all objects of a table, by path."""
    return [(path, int(end)) for path, end in patient.rows(ENDS, (table.id,) * len(RECORDS)) if not path.startswith(INLINE_PREFIX)]


def check_stored(storage: Storage, paths: Iterable[tuple[str, int]]) -> Iterator[Found | None]:
    """Ask the store for the length of every object, some at a time; None for each that is as it should be."""

    def ask(item: tuple[str, int]) -> Found | None:
        path, end = item
        try:
            size = storage.size(path)
        except NotFoundError:
            return Found(where=path, what=f"it is not there, and the catalog counts on {end:,} bytes of it", subject=(path,))
        except HeadraceError as error:
            return Found(where=path, what=str(error), subject=(path,))
        return None if size >= end else Found(where=path, what=f"it has {size:,} bytes, and its last section ends at {end:,}", subject=(path,))

    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="headrace-doctor") as pool:
        yield from pool.map(ask, paths)


@check(
    "stored-object",
    scope="object",
    explains="the catalog refers to bytes that the store does not have: these rows cannot be read",
    remedy="restore it from a backup (headrace restore, and copy the object back to its path); headrace verify TABLE names what is hit",
)
def stored_object(patient: Patient, found: Found) -> Iterator[Found]:
    """Whether what `check_stored` found still counts: an object that expired meanwhile may go."""
    if is_referred_to(patient.connection, found.subject[0]):
        yield found
