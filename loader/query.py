"""SQL over a lake, by DuckDB: tables as Arrow datasets into which DuckDB pushes the columns and filters that it needs. Owns no execution.

Nothing is materialised: DuckDB pulls batches of the columns asked for, of the segments that its filters leave. A table is named as it is, `"table@tag"` or
`"table@12"` (in double quotes) at a snapshot. Times in seconds and milliseconds come as microseconds, which DuckDB compares with its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as dataset

from loader.catalog.records import Snapshot, SnapshotView
from loader.errors import HeadraceError
from loader.extras import require
from loader.scan.condition import selected
from loader.scan.predicate import parse
from loader.table.batches import BATCH_ROWS, read_batches

if TYPE_CHECKING:
    from loader.lake import Lake
    from loader.table.table import Table

_AT = re.compile(r'"([^"@]+)@([^"]+)"')
_LEAF = re.compile(r"^(?P<name>[A-Za-z_][A-Za-z0-9_]*) (?P<operator>==|>=|<=|>|<) (?P<literal>.+)$", re.DOTALL)
_VALID = re.compile(r"^is_valid\((?P<name>[A-Za-z_][A-Za-z0-9_]*)\)$")
_INTEGER = re.compile(r"^-?\d+$")
_TIME = re.compile(r"^\d{4}-\d{2}-\d{2}( \d{2}:\d{2}:\d{2}(\.\d{1,6})?)?$")
_TEXT = re.compile(r'^"[^"\\]*"$')


class QueryError(HeadraceError, ValueError):
    """DuckDB refused a query, or could not run it."""


class SnapshotDataset(dataset.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """A snapshot of a table as something that DuckDB scans: it asks for columns and a filter, and gets batches.

    Args:
        table: The table.
        snapshot: Which; default the newest, fixed when it is first asked for.
    """

    def __init__(self, table: Table, snapshot: int | str | Snapshot | None = None) -> None:
        self._table, self._snapshot = table, snapshot
        self._view: SnapshotView | None = None

    @property
    def view(self) -> SnapshotView:
        if self._view is None:
            self._view = self._table.view(self._snapshot)
        return self._view

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(field.name, shown_type(field.type), field.nullable) for field in self.view.schema.to_arrow()])

    def scanner(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, **_: Any) -> _Scanner:
        """What DuckDB calls: batches of some columns, of the rows that a filter selects."""
        names = self.schema.names
        return _Scanner(self, names if columns is None else list(columns) or names[:1], filter)

    def reader(self, columns: Sequence[str], filter: pc.Expression | None) -> pa.RecordBatchReader:
        """The batches of one scan."""
        view = self.view
        used = [] if filter is None else [name for name in self.schema.names if re.search(rf"\b{re.escape(name)}\b", str(filter))]
        read = list(dict.fromkeys([*columns, *used]))
        text = None if filter is None else where_of(str(filter), view.schema.to_arrow())
        predicate = None if text is None else parse(text, view.schema.to_arrow())
        segments = selected(view, self._table.lake.database, predicate, None)
        shown = pa.schema([self.schema.field(name) for name in read])

        def finish(table: pa.Table) -> pa.Table:
            table = table.cast(shown)
            return (table if filter is None else table.filter(filter)).select(list(columns))

        return read_batches(view, self._table.lake.storage, segments, columns=read, batch_rows=BATCH_ROWS, finish=finish)


class _Scanner:
    """One scan, as DuckDB expects it."""

    def __init__(self, source: SnapshotDataset, columns: list[str], filter: pc.Expression | None) -> None:
        self._source, self._columns, self._filter = source, columns, filter
        self.projected_schema = pa.schema([source.schema.field(name) for name in columns])

    def to_reader(self) -> pa.RecordBatchReader:
        return self._source.reader(self._columns, self._filter)


def shown_type(kind: pa.DataType) -> pa.DataType:
    """The type in which DuckDB sees a column."""
    if pa.types.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", kind.tz)
    return pa.float32() if pa.types.is_float16(kind) else kind


def where_of(expression: str, schema: pa.Schema) -> str | None:
    """What of an Arrow expression, in its own words, prunes: conjuncts of a whole-number, time or text column and a literal. None where nothing does.

    Floats are left out: Arrow prints them rounded. Whatever is left out costs a read and loses nothing.
    """
    found = []
    for part in _conjuncts(expression):
        leaf, valid = _LEAF.match(part), _VALID.match(part)
        if valid and valid["name"] in schema.names:
            found.append(f'"{valid["name"]}" is not null')
        if leaf and leaf["name"] in schema.names:
            kind, literal = schema.field(leaf["name"]).type, leaf["literal"]
            text = None
            if pa.types.is_integer(kind) and _INTEGER.match(literal):
                text = literal
            elif pa.types.is_timestamp(kind) and kind.tz is None and _TIME.match(literal):
                text = f"'{literal}'"
            elif (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and _TEXT.match(literal):
                text = "'" + literal[1:-1].replace("'", "''") + "'"
            if text is not None:
                found.append(f'"{leaf["name"]}" {leaf["operator"].replace("==", "=")} {text}')
    return " and ".join(found) or None


def _conjuncts(text: str) -> list[str]:
    """The conjuncts of `(a and (b and c))`; the whole, where its brackets or quotes are not plain."""
    text = text.strip()
    depth, quoted, splits, wraps = 0, False, [], text.startswith("(")
    for at, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        if quoted:
            continue
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return [text]
        if depth == 0 and wraps and at < len(text) - 1:
            wraps = False
        if depth == 0 and text.startswith(" and ", at):
            splits.append(at)
    if quoted or depth:
        return [text]
    if wraps and text.endswith(")"):
        return _conjuncts(text[1:-1])
    if not splits:
        return [text]
    bounds = [-5, *splits, len(text)]
    return [part for start, stop in zip(bounds[:-1], bounds[1:], strict=True) for part in _conjuncts(text[start + 5 : stop])]


def connect() -> Any:
    """A DuckDB connection in memory that knows nothing but what is registered: not the caller's variables either.

    Raises:
        MissingDependencyError: duckdb is not installed.
    """
    connection = require("duckdb", extra="duckdb").connect()
    connection.execute("set python_enable_replacements = false")
    return connection


def register(table: Table, connection: Any, name: str, snapshot: int | str | Snapshot | None) -> Any:
    """A table as a relation. See `Table.to_duckdb`."""
    connection = connect() if connection is None else connection
    connection.register(name, SnapshotDataset(table, snapshot))
    return connection.table(name)


def connect_tables(lake: Lake, query: str = "", snapshots: Mapping[str, int | str] | None = None) -> Any:
    """A connection in which the tables of a lake are views, and those at a snapshot that a query names.

    Args:
        lake: The lake.
        query: Its `"table@snapshot"` names are views too.
        snapshots: The snapshots or tags at which tables stand by their own names; default the newest.

    Raises:
        TableNotFoundError: `snapshots` names no table.
    """
    connection, at = connect(), dict(snapshots or {})
    names = lake.tables()
    wanted: dict[str, tuple[str, int | str | None]] = {name: (name, at.get(name)) for name in sorted({*names, *at})}
    wanted |= {f"{name}@{tag}": (name, int(tag) if tag.isdigit() else tag) for name, tag in _AT.findall(query)}
    for shown, (name, snapshot) in wanted.items():
        source = SnapshotDataset(lake.table(name), snapshot)
        if snapshot is not None:
            source.view  # noqa: B018  # one that is not there is told in our words, not in DuckDB's
        connection.register(shown, source)
    return connection


class Answer:
    """What a query gives, as a stream; `close` it, or use it in a `with` block.

    Attributes:
        reader: The batches; an error on the way is an Arrow error.
    """

    def __init__(self, connection: Any, query: str) -> None:
        self._connection = connection
        try:
            relation = connection.sql(query)
            if relation is None:
                raise QueryError(f"{query!r} gives no rows: a lake is queried, not changed, by SQL")
            self.reader: pa.RecordBatchReader = relation.to_arrow_reader(BATCH_ROWS)
        except require("duckdb", extra="duckdb").Error as error:
            self.close()
            raise QueryError(" ".join(str(error).split())) from error

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches; raises QueryError where the query fails on the way."""
        try:
            yield from self.reader
        except (pa.ArrowException, OSError) as error:
            raise QueryError(" ".join(str(error).split())) from error

    def to_arrow(self) -> pa.Table:
        """Everything."""
        return pa.Table.from_batches(self.batches(), self.reader.schema)

    def close(self) -> None:
        self._connection.close()


def run(lake: Lake, query: str, snapshots: Mapping[str, int | str] | None = None) -> Answer:
    """Run a query over a lake.

    Raises:
        QueryError: DuckDB refuses it.
        TableNotFoundError, SnapshotNotFoundError: It names what is not there.
    """
    return Answer(connect_tables(lake, query, snapshots), query)
