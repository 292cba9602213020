"""What a check of the doctor is: its registry, what it is given and what it finds. Holds no check itself; each family of them is a file beside this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from loader.catalog.commit import now_micros
from loader.catalog.connection import Connection
from loader.catalog.database import is_server
from loader.catalog.records import TableSpec

if TYPE_CHECKING:
    from loader.lake import Lake

ERROR, WARNING, NOTICE = "error", "warning", "notice"
RECORDS = ("segments", "overlays", "column_files", "pending")  # what a snapshot shows, each a section of a stored object
LAPSED_SECONDS = 86_400  # what ran out is collected by the way; only what nobody collected for so long is worth a word


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a check saw.

    Attributes:
        where: The row or object that is wrong.
        what: What is wrong with it: the value that stands there, and the one that should.
        subject: What the check's repair needs, as plain values.
    """

    where: str
    what: str
    subject: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: Of the check, stable.
        severity: "error": data is lost, wrong or unreadable, or will be; "warning": the lake contradicts itself and reads right all the same;
            "notice": something waits to be cleaned up.
        table: Its name; None where it concerns the whole lake.
        where, what: As the check saw it.
        explanation: Why it matters.
        remedy: What a repair does, or what to do by hand.
        is_repairable: Whether `repair=True` mends it.
        subject: What the repair is told.
    """

    code: str
    severity: str
    table: str | None
    where: str
    what: str
    explanation: str
    remedy: str
    is_repairable: bool
    subject: tuple[Any, ...] = dataclasses.field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the subject."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "subject"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableState:
    """A table as the catalog has it when the doctor looks.

    Attributes:
        id, name, head, floor, schema_id, buckets: Of its row in `tables`.
        spec: Its definition; None where the schema cannot be read, which has a finding of its own.
    """

    id: int
    name: str
    head: int
    floor: int
    schema_id: int
    buckets: int
    spec: TableSpec | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patient:
    """What a check looks at.

    Attributes:
        lake: The lake.
        connection: Inside a read transaction, or the repair's own write transaction.
        deep: Whether to take the time to read everything.
        now: Wall clock in microseconds, one for the whole run.
    """

    lake: Lake
    connection: Connection
    deep: bool = False
    now: int = dataclasses.field(default_factory=now_micros)

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return self.connection.execute(statement, parameters).fetchall()

    @property
    def is_sqlite(self) -> bool:
        return self.lake.catalog_url is None or not is_server(self.lake.catalog_url)


Repair = Callable[[Patient, TableState | None, tuple[Any, ...]], str | None]
"""Mends one subject inside a write transaction and says what it did; None where it was right by then."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to check; see `check`. `run` takes what its scope says: (patient), (patient, table), or an opened section."""

    code: str
    scope: str
    severity: str
    explains: str
    remedy: str
    run: Callable[..., Iterator[Found]]
    repair: Repair | None
    needs_sound: bool

    def finding(self, found: Found, table: str | None) -> Finding:
        return Finding(
            code=self.code,
            severity=self.severity,
            table=table,
            where=found.where,
            what=found.what,
            explanation=self.explains,
            remedy=self.remedy,
            is_repairable=self.repair is not None,
            subject=found.subject,
        )


REGISTRY: dict[str, Check] = {}
Run = Callable[..., Iterator[Found]]


def check(
    code: str, *, scope: str, explains: str, remedy: str, severity: str = ERROR, repair: Repair | None = None, needs_sound: bool = False
) -> Callable[[Run], Run]:
    """Register a function as a check.

    Args:
        code: Its stable name, in findings and JSON.
        scope: "lake" or "table": looks at the catalog in one read transaction. "object": a stored object. "section", or the name of a
            record's table: one stored section, in a deep run. "keys": the keys of a snapshot, in a deep run.
        explains: Why it matters.
        remedy: What `repair` does, or what to do by hand.
        severity: See `Finding`.
        repair: Mends one subject, in a write transaction of its own.
        needs_sound: The repair counts on what other checks look at: it is left while they find what cannot be mended.
    """

    def register(run: Run) -> Run:
        assert code not in REGISTRY, f"two checks are called {code}"
        REGISTRY[code] = Check(code=code, scope=scope, severity=severity, explains=explains, remedy=remedy, run=run, repair=repair, needs_sound=needs_sound)
        return run

    return register


def in_scope(scope: str) -> list[Check]:
    """The checks of a scope, in the order they were written."""
    return [known for known in REGISTRY.values() if known.scope == scope]
