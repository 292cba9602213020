"""What a soak writes and what must come of it: operations drawn from the names of commits, and a table in plain Python that replays them in commit order.

A commit's name says everything about it, so nothing has to be kept but the order in which names were committed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

HOT_KEYS = 48  # that all writers fight for; other keys are new
ERASABLE = range(40, 48)  # of these, keys that are erased again and again; their rows leave pinned snapshots too
USERS = 7
NO_ORDER = -(1 << 63)
START = datetime.datetime(2024, 1, 1)
TTL_LIMIT = START + datetime.timedelta(seconds=7)  # rows of a few keys are dropped by age, and come again
SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("user", pa.int64()),
        ("ts", pa.timestamp("s")),
        ("total", pa.int64()),
        ("peak", pa.int64()),
        ("latest", pa.int64()),
        ("note", pa.int64()),
        ("name", pa.string()),
        ("history", pa.list_(pa.int32())),
        ("came_first", pa.int64()),
        ("came_last", pa.int64()),
    ]
)
MERGE = {"total": "sum", "peak": "max", "came_first": "first"}
SHOWN = ("key", "user", "ts", "total", "peak", "latest", "note", "name", "history", "came_first", "came_last", "extra")
KINDS = {"append": 4, "upsert": 5, "patch": 5, "note": 2, "arrive": 2, "label": 2, "delete": 1, "delete_where": 0.4, "overwrite": 0.4, "backfill": 0.8}
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One write: its kind, rows as dicts, and the expression of a delete or an overwrite as (user, column, threshold)."""

    kind: str
    rows: list[Row] = dataclasses.field(default_factory=list)
    where: tuple[int, str, int] | None = None

    @property
    def expression(self) -> str:
        assert self.where is not None
        user, column, threshold = self.where
        return f"user = {user} and {column} < {threshold}"

    def data(self, names: Sequence[str], extra: Sequence[tuple[str, pa.DataType]] = ()) -> pa.Table:
        """These columns of the rows."""
        fields = [pa.field(name, SCHEMA.field(name).type) for name in names] + [pa.field(name, kind) for name, kind in extra]
        return pa.Table.from_pylist([{field.name: row[field.name] for field in fields} for row in self.rows], pa.schema(fields))


def operation(commit_id: str) -> Operation:
    """The write that a name stands for."""
    rng = random.Random(commit_id)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind in ("delete_where", "overwrite"):
        user = rng.randrange(USERS)
        where = (user, rng.choice(["peak", "latest"]), rng.randrange(300))
        own = [key for key in rng.sample(range(HOT_KEYS), 12) if key % USERS == user][:2]
        return Operation(kind=kind, where=where, rows=[whole_row(rng, key) for key in own] if kind == "overwrite" else [])
    if kind == "append":
        fresh = rng.random() < 0.4
        count = 150 if fresh and rng.random() < 0.05 else 6
        keys = [HOT_KEYS + rng.getrandbits(44) for _ in range(count)] if fresh else rng.sample(range(HOT_KEYS), 3)
        return Operation(kind=kind, rows=[whole_row(rng, key) for key in dict.fromkeys(keys)])
    keys = rng.sample(range(HOT_KEYS), 4 if kind == "delete" else 8)
    return Operation(kind=kind, rows=[changed(rng, key) for key in keys])


def whole_row(rng: random.Random, key: int) -> Row:
    own = {"key": key, "user": key % USERS, "ts": moment(key, 0), "total": rng.randrange(100), "peak": rng.randrange(1000), "latest": rng.randrange(1000)}
    return own | {"note": None, "name": f"row {key}", "history": [key % 97] * (key % 5), "came_first": None, "came_last": None}


def changed(rng: random.Random, key: int) -> Row:
    """Operands for a key; one in twenty upserts of it moves it to another day."""
    day = rng.randrange(1, 4) if rng.random() < 0.05 else 0
    own = {"key": key, "user": key % USERS, "ts": moment(key, day), "total": rng.randrange(1, 100), "peak": rng.randrange(1000), "latest": rng.randrange(1000)}
    return own | {
        "at": rng.randrange(1 << 20),
        "note": rng.randrange(1 << 30),
        "extra": rng.randrange(1 << 30),
        "came_first": rng.randrange(1 << 30),
        "came_last": rng.randrange(1 << 30),
    }


def moment(key: int, day: int) -> datetime.datetime:
    return START + datetime.timedelta(days=key % 2 + day, seconds=key % 80_000)


def write(table: Any, commit_id: str) -> Any:
    """Do the write that a name stands for; returns its snapshot."""
    op, at = operation(commit_id), ("at", pa.int64())
    match op.kind:
        case "append":
            return table.append(op.data(SCHEMA.names), commit_id=commit_id)
        case "upsert":
            return table.upsert(op.data(["key", "user", "ts", "total", "peak", "latest"], [at]), order="at", commit_id=commit_id)
        case "patch":
            return table.patch(op.data(["key", "total", "peak", "latest"], [at]), order="at", commit_id=commit_id)
        case "note":
            return table.patch(op.data(["key", "note"]), on_missing="drop", commit_id=commit_id)
        case "arrive":
            return table.upsert(op.data(["key", "user", "ts", "came_first", "came_last"]), commit_id=commit_id)
        case "label":
            return table.patch(op.data(["key", "came_first", "came_last"]), commit_id=commit_id)
        case "delete":
            return table.delete(op.data(["key"]), commit_id=commit_id)
        case "delete_where":
            return table.delete(op.expression, commit_id=commit_id)
        case "overwrite":
            return table.overwrite(op.data(SCHEMA.names), op.expression, commit_id=commit_id)
        case _:
            return table.backfill(op.data(["key"], [("extra", pa.int64())]), commit_id=commit_id)


def erased_keys(seed: int, name: str, turn: int) -> list[int]:
    """What the eraser of this name erases in one of its turns."""
    return sorted(random.Random(f"{seed}-{name}-{turn}").sample(ERASABLE, 2))


class Model:
    """The rows that a table must show, and the labels that wait for theirs."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.held: dict[int, list[tuple[str, Row]]] = {}

    def erase(self, keys: Iterable[int]) -> None:
        """Rows and waiting labels of keys go."""
        for key in keys:
            self.rows.pop(key, None)
            self.held.pop(key, None)

    def drop_old(self) -> None:
        """Rows that are too old go."""
        for key in [key for key, row in self.rows.items() if row["ts"] < TTL_LIMIT]:
            del self.rows[key]

    def apply(self, op: Operation) -> str | None:
        """Replay one commit; returns what is wrong with it having been committed here."""
        if op.kind in ("delete_where", "overwrite"):
            assert op.where is not None
            user, column, threshold = op.where
            for key in [key for key, row in self.rows.items() if row["user"] == user and row[column] is not None and row[column] < threshold]:
                del self.rows[key]
        if op.kind in ("append", "overwrite"):
            there = [row["key"] for row in op.rows if row["key"] in self.rows]
            for row in op.rows:
                self._insert(dict(row, extra=None, order=NO_ORDER))
            return f"{op.kind} of keys that existed: {there[:5]}" if there else None
        for row in op.rows:
            self._change(op.kind, row)
        return None

    def _change(self, kind: str, row: Row) -> None:
        key = row["key"]
        match kind:
            case "upsert" | "arrive":
                if key not in self.rows:
                    self._insert(dict.fromkeys(SHOWN) | {"key": key, "user": row["user"], "ts": row["ts"], "order": NO_ORDER})
                self.rows[key]["ts"] = row["ts"]
                merge(kind, self.rows[key], row)
            case "patch" | "label" if key in self.rows:
                merge(kind, self.rows[key], row)
            case "patch" | "label":
                self.held.setdefault(key, []).append((kind, row))
            case "note" | "backfill":
                name = "note" if kind == "note" else "extra"
                if key in self.rows:
                    self.rows[key][name] = row[name]
            case "delete":
                self.rows.pop(key, None)

    def _insert(self, row: Row) -> None:
        self.rows[row["key"]] = row
        for kind, label in self.held.pop(row["key"], []):
            merge(kind, row, label)

    @property
    def num_held(self) -> int:
        return sum(map(len, self.held.values()))


def merge(kind: str, row: Row, given: Row) -> None:
    """Operands of a row: sum, max, and last by the order `at`; or what came first and last."""
    if kind in ("arrive", "label"):
        row["came_first"] = given["came_first"] if row["came_first"] is None else row["came_first"]
        row["came_last"] = given["came_last"]
        return
    row["total"] = given["total"] + (row["total"] or 0)
    row["peak"] = max(given["peak"], given["peak"] if row["peak"] is None else row["peak"])
    if given["at"] >= row["order"]:
        row["order"], row["latest"] = given["at"], given["latest"]


def digest(rows: Iterable[Row]) -> str:
    """A hash of rows, whatever order they come in."""
    lines = sorted((row["key"], repr([row.get(name) for name in SHOWN])) for row in rows)
    return hashlib.sha256("\n".join(line for _, line in lines).encode()).hexdigest()
