"""Taking a backup: the catalog in one read transaction, then the objects it refers to that the backup has not got, then the generation, which makes it happen.

Kill it anywhere: the next run goes on with what was copied. The heads are pinned meanwhile; where an object expired all the same, the catalog is read again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from loader import failpoints
from loader.backup.copying import copy_object, in_bounds
from loader.backup.dump import Spooled, dump, last_numbers, objects_of, rows_of, spool
from loader.backup.layout import OBJECTS, Generation, Part, attempt_folder, claim, collected_path, newest_number, read_generation
from loader.catalog.database import is_server
from loader.catalog.migrations import CATALOG_VERSION
from loader.catalog.version import origin
from loader.errors import AlreadyExistsError, ConflictError, NotFoundError
from loader.segment.checksum import crc32c
from loader.storage import Storage

if TYPE_CHECKING:
    from loader.lake import Lake

Progress = Callable[[int, int], None]
PIN_SECONDS = 3_600
TRIES = 5  # after an object that expired while it was to be copied, or a number that another backup took
PART_ROWS = 50_000
MAX_GAP = 4  # numbers without a part after which an attempt's have ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackupReport:
    """What a backup did.

    Attributes:
        generation: Its number.
        num_objects, num_bytes: Objects that the generation refers to.
        copied_objects, copied_bytes: Those of them that were copied now.
        retired: Generations that were given up.
        seconds: How long it took.
    """

    generation: int
    num_objects: int
    num_bytes: int
    copied_objects: int
    copied_bytes: int
    retired: tuple[int, ...]
    seconds: float


def backup(lake: Lake, destination: str | os.PathLike[str], *, keep: int | None = None, progress: Progress | None = None) -> BackupReport:
    """See `Lake.backup`."""
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}: the newest generation is always kept")
    started = time.monotonic()
    target = Storage.open(destination)
    if target.url == lake.storage.files.url:
        raise ValueError(f"{target.url} is the lake itself: a backup needs a place of its own")
    claim(target, origin(lake.database.lake_id))
    with _pinned(lake) as tick:
        for _ in range(TRIES):
            before = newest_number(target)
            previous = read_generation(target, before) if before else None
            with tempfile.TemporaryDirectory(prefix="headrace-backup-") as folder:
                state = _read_catalog(lake, Path(folder))
                failpoints.hit("backup.dumped")
                try:
                    objects, copied = _copy_objects(lake, target, state, previous, tick, progress)
                except NotFoundError as error:
                    if not _has_moved(lake, state):
                        raise error
                    continue
                generation = _describe(state, lake, previous, before + 1, objects, keep)
                generation = _upload(target, generation, state, objects, Path(folder))
            failpoints.hit("backup.uploaded")
            try:
                generation.write(target)
            except AlreadyExistsError:
                continue  # another backup took the number
            failpoints.hit("backup.written")
            _collect(target, generation)
            return BackupReport(
                generation=generation.number,
                num_objects=generation.num_objects,
                num_bytes=generation.num_bytes,
                copied_objects=copied.num_rows,
                copied_bytes=int(pc.sum(copied["num_bytes"]).as_py() or 0),
                retired=tuple(sorted(set(previous.kept if previous else ()) - set(generation.kept))),
                seconds=time.monotonic() - started,
            )
    raise ConflictError(f"the lake, or the backup {target.url}, changed {TRIES} times while it was backed up: stop what runs beside this, and repeat")


@contextlib.contextmanager
def _pinned(lake: Lake) -> Iterator[Callable[[], None]]:
    """Hold the heads of all tables; yields what renews the pins in time."""
    pins = [lake.pin(name, None, "headrace backup", PIN_SECONDS) for name in lake.tables()]
    renewed_at = time.monotonic()

    def tick() -> None:
        nonlocal renewed_at
        if time.monotonic() - renewed_at > PIN_SECONDS / 4:
            renewed_at = time.monotonic()
            for pin in pins:
                lake.renew(pin, PIN_SECONDS)

    try:
        yield tick
    finally:
        for pin in pins:
            lake.unpin(pin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """The catalog at one moment, its rows in local files."""

    spooled: list[Spooled]
    objects: pa.Table
    sequences: dict[str, int]
    heads: dict[str, dict[str, int]]
    created_at: str


def _read_catalog(lake: Lake, folder: Path) -> _State:
    """One read transaction, over a connection of its own: other threads of this process go on."""
    from loader.lake import connect  # the lake hands over to this package

    with connect(lake.location, lake.catalog_url, create=False) as own, own.database.read() as connection:
        created_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rows = connection.execute(
            "select t.name, t.head, coalesce(s.num_rows, 0) from tables t left join snapshots s on s.table_id = t.id and s.id = t.head "
            "where t.dropped_at is null order by t.name"
        )
        return _State(
            heads={name: {"head": int(head), "rows": int(live)} for name, head, live in rows.fetchall()},
            spooled=list(dump(connection, folder)),
            objects=objects_of(connection),
            sequences=last_numbers(connection, is_sqlite=own.catalog_url is None or not is_server(own.catalog_url)),
            created_at=created_at,
        )


def _has_moved(lake: Lake, state: _State) -> bool:
    """Whether the catalog refers to other objects by now: one that it still counts on is missing for good."""
    with lake.database.read() as connection:
        gone = pc.invert(pc.is_in(state.objects["path"], objects_of(connection)["path"]))
    return bool(pc.any(gone).as_py())


def _copy_objects(
    lake: Lake, target: Storage, state: _State, previous: Generation | None, tick: Callable[[], None], progress: Progress | None
) -> tuple[pa.Table, pa.Table]:
    """Copy what the previous generation has not; returns (path, num_bytes, checksum) of all objects, and of those copied."""
    known = object_list(target, previous)
    at = pc.index_in(state.objects["path"], known["path"])
    there = known.take(at.drop_null())
    new = state.objects.filter(at.is_null())
    source, total, done = lake.storage.files, state.objects.num_rows, there.num_rows
    tasks = (
        (size, functools.partial(copy_object, source, path, target, OBJECTS + path, checksum=None, least_bytes=size, failpoint="backup.copied"))
        for path, size in zip(new["path"].to_pylist(), new["num_bytes"].to_pylist(), strict=True)
    )
    found = []
    for result in in_bounds(tasks):
        found.append(result)
        done += 1
        tick()
        if progress is not None:
            progress(done, total)
    sizes, checksums = ([item[place] for item in found] for place in (0, 1))
    copied = pa.table({"path": new["path"], "num_bytes": pa.array(sizes, pa.int64()), "checksum": pa.array(checksums, pa.int64())})
    return pa.concat_tables([there, copied]).sort_by("path"), copied


def object_list(storage: Storage, generation: Generation | None) -> pa.Table:
    """(path, num_bytes, checksum) of the objects of a generation."""
    empty = pa.table({"path": pa.array([], pa.string()), "num_bytes": pa.array([], pa.int64()), "checksum": pa.array([], pa.int64())})
    return empty if generation is None else pa.concat_tables([empty, *(rows_of(part.read(storage)) for part in generation.objects)])


def _describe(state: _State, lake: Lake, previous: Generation | None, number: int, objects: pa.Table, keep: int | None) -> Generation:
    before = () if previous is None else previous.kept
    kept = (*before, number)[-keep:] if keep is not None else (*before, number)
    return Generation(
        number=number,
        lake_id=lake.database.lake_id,
        catalog_version=CATALOG_VERSION,
        created_at=state.created_at,
        tables=state.heads,
        sequences=state.sequences,
        parts=(),
        objects=(),
        num_objects=objects.num_rows,
        num_bytes=int(pc.sum(objects["num_bytes"]).as_py() or 0),
        kept=kept,
        leaving=tuple(sorted({*(() if previous is None else previous.leaving), *before} - set(kept))),
    )


def _upload(target: Storage, generation: Generation, state: _State, objects: pa.Table, folder: Path) -> Generation:
    """Put the parts under names of their own, so that a run that was stopped is in nobody's way."""
    attempt = 1
    while True:
        prefix = attempt_folder(generation.number, attempt)
        try:
            target.put(f"{prefix}claim", b"")
            break
        except AlreadyExistsError:
            attempt += 1
    lists = [spool(folder / f"objects-{start}.arrow", "", objects.slice(start, PART_ROWS)) for start in range(0, objects.num_rows, PART_ROWS)]
    parts = []
    for number, spooled in enumerate([*state.spooled, *lists]):
        data, path = spooled.file.read_bytes(), _part_path(prefix, number)
        target.put(path, data)
        parts.append(Part(table=spooled.table, path=path, rows=spooled.rows, num_bytes=len(data), checksum=crc32c(data)))
    return dataclasses.replace(generation, parts=tuple(parts[: len(state.spooled)]), objects=tuple(parts[len(state.spooled) :]))


def _part_path(prefix: str, number: int) -> str:
    return f"{prefix}{number:08d}.arrow"


def _collect(target: Storage, generation: Generation) -> None:
    """Delete what only retired generations need: objects, parts, and what attempts that died left. Goes on where an earlier run was stopped."""
    leaving = [number for number in generation.leaving if not target.exists(collected_path(number))]
    kept = [object_list(target, read_generation(target, number)) for number in generation.kept] if leaving else []
    for number in leaving:
        try:
            paths = object_list(target, read_generation(target, number))["path"]
        except NotFoundError:  # the objects go before their list
            paths = pa.array([], pa.string())
        for other in kept:
            paths = paths.filter(pc.invert(pc.is_in(paths, other["path"])))
        target.delete(OBJECTS + path for path in paths.to_pylist())
        attempt = 1
        while target.exists(f"{attempt_folder(number, attempt)}claim"):
            attempt += 1
        for gone in range(attempt - 1, 0, -1):
            _delete_attempt(target, attempt_folder(number, gone), keep_claim=gone == 1)
        failpoints.hit("backup.collected")
        target.put(collected_path(number), b"")


def _delete_attempt(target: Storage, prefix: str, *, keep_claim: bool) -> None:
    number, missing = 0, 0
    while missing < MAX_GAP:
        path = _part_path(prefix, number)
        missing = 0 if target.exists(path) else missing + 1
        target.delete([path])
        number += 1
    if not keep_claim:
        target.delete([f"{prefix}claim"])
