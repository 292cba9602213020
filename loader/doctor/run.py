"""The doctor: runs every check over a lake, says what it found, and applies the repairs that are safe, each in a transaction of its own that is recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from loader.catalog.commit import now_micros
from loader.catalog.read import load_pending, load_spec_by_id, load_view, table_names
from loader.catalog.records import Pin
from loader.doctor import content_checks, history_checks, key_checks, lake_checks, path_checks, quarantine_checks, record_checks, sections, writer_checks
from loader.doctor.checks import ERROR, NOTICE, REGISTRY, WARNING, Check, Finding, Found, Patient, TableState, in_scope
from loader.doctor.state import State
from loader.errors import HeadraceError, NotFoundError, TableNotFoundError, did_you_mean

if TYPE_CHECKING:
    from loader.lake import Lake

FAMILIES = (lake_checks, history_checks, record_checks, path_checks, writer_checks, quarantine_checks, sections, content_checks, key_checks)
Progress = Callable[[int, int], None]
PIN_SECONDS = 3_600
KEY_TRIES = 3  # a file may be moved by an erasure while keys are read
_ORDER = {ERROR: 0, WARNING: 1, NOTICE: 2}
_UNREADABLE = (HeadraceError, ValueError, KeyError, TypeError, OSError, pa.ArrowException)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor found.

    Attributes:
        tables: That were looked at.
        deep: Whether every section was read.
        num_checks: Checks that were run on the catalog, table by table.
        num_objects: Stored objects whose length was asked for.
        num_sections: Segments, overlays, column files and waiting labels that were read.
        num_resumed: Objects and sections that an earlier run, which was stopped, had looked at.
        findings: What is wrong, the worst first; after repairs, what is left.
        repaired: What was mended, a line each.
        seconds: How long it took.
    """

    tables: tuple[str, ...]
    deep: bool
    num_checks: int
    num_objects: int
    num_sections: int
    num_resumed: int
    findings: tuple[Finding, ...]
    repaired: tuple[str, ...]
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Nothing is wrong; what only waits to be cleaned up does not count."""
        return all(finding.severity == NOTICE for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"is_clean": self.is_clean, "findings": [finding.to_dict() for finding in self.findings]}


def examine(
    lake: Lake, table: str | None = None, *, deep: bool = False, repair: bool = False, progress: Progress | None = None, state: Path | None = None
) -> Report:
    """See `Lake.doctor`.

    Args:
        lake: The lake.
        table: One table; default all of them.
        deep: Read and check every section too.
        repair: Mend what can be mended safely.
        progress: Called with (done, total): checks, objects, sections and keys.
        state: A file that keeps what was looked at, so that a run that was stopped goes on.

    Raises:
        TableNotFoundError: There is none of this name.
    """
    started = time.monotonic()
    known = State.load(state, f"{lake.storage.url} {lake.database.lake_id} {table}")
    examination = _Examination(lake, table, deep, progress, known)
    findings = examination.run()
    repaired: list[str] = []
    if repair:
        repaired = [line for finding in _repairable(findings) if (line := _apply(lake, finding)) is not None]
        findings = examination.catalog() + known.findings
    known.forget()
    return Report(
        tables=tuple(one.name for one in examination.tables),
        deep=deep,
        num_checks=examination.num_checks,
        num_objects=examination.num_objects,
        num_sections=examination.num_sections,
        num_resumed=examination.num_resumed,
        findings=tuple(sorted(findings, key=lambda finding: (_ORDER[finding.severity], finding.table or "", finding.code))),
        repaired=tuple(repaired),
        seconds=time.monotonic() - started,
    )


class _Examination:
    """One run: the catalog in one transaction, then objects and, if it is deep, sections and keys."""

    def __init__(self, lake: Lake, table: str | None, deep: bool, progress: Progress | None, state: State) -> None:
        self.lake, self.table, self.deep, self.state = lake, table, deep, state
        self.tables: list[TableState] = []
        self.num_checks = self.num_objects = self.num_sections = 0
        self.num_resumed = len(state.done)
        self._progress = progress
        self._done = self._total = 0
        self._objects: dict[int, list[tuple[str, int]]] = {}
        self._pins: dict[int, Pin] = {}
        self._pinned_at = time.monotonic()

    def run(self) -> list[Finding]:
        findings = self.catalog()
        try:
            with contextlib.ExitStack() as held:
                if self.deep:
                    self._hold(held)
                for table in self.tables:
                    self._check_objects(table)
                    if self.deep:
                        self._check_sections(table)
                        self._check_keys(table)
        finally:
            self.state.save()
        return findings + self.state.findings

    def catalog(self) -> list[Finding]:
        """The checks that only ask the catalog, all in one transaction."""
        findings: list[Finding] = []
        with self.lake.database.read() as connection:
            patient = Patient(lake=self.lake, connection=connection, deep=self.deep)
            self.tables = _tables(patient, self.table)
            self._objects = {table.id: path_checks.stored_paths(patient, table) for table in self.tables}
            checks = len(in_scope("lake")) + len(in_scope("table")) * len(self.tables)
            self._total = checks + sum(len(paths) for paths in self._objects.values())
            if self.deep:
                self._total += sum(sections.count_records(connection, table) for table in self.tables)
            self.num_checks = self._done = 0
            for known in in_scope("lake"):
                findings += self._one(known, None, patient)
            for table in self.tables:
                for known in in_scope("table"):
                    findings += self._one(known, table, patient)
        return findings

    def _one(self, known: Check, table: TableState | None, patient: Patient) -> list[Finding]:
        name = None if table is None else table.name
        try:
            found = list(known.run(patient) if table is None else known.run(patient, table))
        except _UNREADABLE as error:
            found = [Found(where=f"check {known.code}", what=f"it could not be done: {' '.join(str(error).split())}")]
        self.num_checks += 1
        self._tick()
        return [known.finding(one, name) for one in found]

    def _tick(self, count: int = 1) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))
        if self._pins and time.monotonic() - self._pinned_at > PIN_SECONDS / 2:
            self._pinned_at = time.monotonic()
            for pin in self._pins.values():
                self.lake.renew(pin, PIN_SECONDS)

    def _hold(self, held: contextlib.ExitStack) -> None:
        """Pin the heads, so that what is read does not expire underneath."""
        for table in self.tables:
            if table.spec is not None:
                self._pins[table.id] = pin = self.lake.pin(table.name, None, "headrace doctor", PIN_SECONDS)
                held.callback(self.lake.unpin, pin)

    def _check_objects(self, table: TableState) -> None:
        (known,) = in_scope("object")
        left = [item for item in self._objects[table.id] if item[0] not in self.state.done]
        self._tick(len(self._objects[table.id]) - len(left))
        for (path, _), found in zip(left, path_checks.check_stored(self.lake.storage.files, left), strict=True):
            self.state.finished(path, [] if found is None else self._confirmed(known, found, table))
            self.num_objects += 1
            self._tick()

    def _confirmed(self, known: Check, found: Found, table: TableState) -> list[Finding]:
        with self.lake.database.read() as connection:
            return [known.finding(one, table.name) for one in known.run(Patient(lake=self.lake, connection=connection), found)]

    def _check_sections(self, table: TableState) -> None:
        for record in self._records(table):
            if record.name not in self.state.done:
                found = sections.examine(record, table, self.lake.storage)
                if found:
                    with self.lake.database.read() as connection:
                        found = found if sections.is_there(connection, record) else []
                self.state.finished(record.name, [known.finding(one, table.name) for known, one in found])
                self.num_sections += 1
            self._tick()

    def _records(self, table: TableState) -> Iterator[sections.Record]:
        for kind in sections.kinds():
            after = 0
            while True:
                with self.lake.database.read() as connection:
                    batch = sections.load_records(connection, table, kind, after)
                yield from batch
                if not batch:
                    break
                after = batch[-1].row["id"]

    def _check_keys(self, table: TableState) -> None:
        if table.spec is None or table.id not in self._pins:
            return
        (known,) = in_scope("keys")
        part, parts = 0, 1
        while part < parts:
            for attempt in range(KEY_TRIES):
                with self.lake.database.read() as connection:
                    view = load_view(connection, table.spec, self._pins[table.id].snapshot_id)
                    waiting = [one for one in load_pending(connection, table.id, range(table.buckets)) if one.sequence <= view.snapshot_id]
                parts = key_checks.num_parts(view)
                try:
                    found = list(known.run(view, waiting, part, parts, self.lake.storage, lambda: self._tick(0)))
                    break
                except NotFoundError:
                    if attempt == KEY_TRIES - 1:
                        return  # the object is missing, which has a finding of its own
                except _UNREADABLE:
                    return  # a section is damaged, which has one too
            self.state.findings += [known.finding(one, table.name) for one in found]
            part += 1


def _tables(patient: Patient, name: str | None) -> list[TableState]:
    rows = patient.rows("select id, name, head, floor, schema_id, buckets from tables where dropped_at is null order by name")
    names = [row[1] for row in rows]
    if name is not None and name not in names:
        raise TableNotFoundError(f"no table {name!r}: {did_you_mean(name, table_names(patient.connection))}")
    found = []
    for table_id, own, head, floor, schema_id, buckets in rows:
        spec = None
        with contextlib.suppress(*_UNREADABLE):
            spec = load_spec_by_id(patient.connection, table_id)
        if name in (None, own):
            found.append(TableState(id=table_id, name=own, head=head, floor=floor, schema_id=schema_id, buckets=buckets, spec=spec))
    return found


def _repairable(findings: Iterable[Finding]) -> list[Finding]:
    """What has a repair that is safe; a count that others follow from is mended only where nothing else is wrong with the table."""
    findings = list(findings)
    unsound = {finding.table for finding in findings if finding.severity == ERROR and not finding.is_repairable}
    return [finding for finding in findings if finding.is_repairable and not (REGISTRY[finding.code].needs_sound and unsound & {finding.table, None})]


def _apply(lake: Lake, finding: Finding) -> str | None:
    """Mend one finding and record it; None where it was right by then."""
    repair = REGISTRY[finding.code].repair
    assert repair is not None
    with lake.database.write() as connection:
        patient = Patient(lake=lake, connection=connection)
        try:
            table = None if finding.table is None else _tables(patient, finding.table)[0]
        except TableNotFoundError:
            return None  # dropped meanwhile
        done = repair(patient, table, finding.subject)
        if done is not None:
            connection.execute(
                "insert into repairs (id, table_id, repaired_at, code, what) values (?, ?, ?, ?, ?)",
                (uuid.uuid4().hex, None if table is None else table.id, now_micros(), finding.code, done),
            )
    return None if done is None else f"{finding.code}: {done}"
