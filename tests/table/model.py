"""A table in plain Python, as slow and as plain as can be: what the real one is compared with."""

from __future__ import annotations

import copy
from typing import Any

import pyarrow as pa

RULES = {"latest": "last", "oldest": "first", "peak": "max", "low": "min", "total": "sum", "hits": "count", "seen": "any", "tags": "last"}
SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("item", pa.string()),
        ("ts", pa.timestamp("s")),
        ("latest", pa.int64()),
        ("oldest", pa.int64()),
        ("peak", pa.float32()),
        ("low", pa.int16()),
        ("total", pa.int64()),
        ("hits", pa.int32()),
        ("seen", pa.bool_()),
        ("tags", pa.list_(pa.int32())),
    ]
)
KEY = ("user", "item")
UNORDERED = -(1 << 63)


class Model:
    """Rows by key, operands by key (of rows and of labels whose row has not come), and what every snapshot showed."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.operands: dict[tuple[Any, ...], list[tuple[int, int, dict[str, Any]]]] = {}
        self.sequence = 0
        self.snapshots: dict[int, dict[tuple[Any, ...], dict[str, Any]]] = {0: {}}

    def append(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self.rows[row["user"], row["item"]] = dict(row)
        self._commit()

    def patch(self, labels: list[dict[str, Any]], *, order: str | None, drop: bool) -> None:
        for label in labels:
            key = (label["user"], label["item"])
            if key in self.rows or not drop:
                values = {name: value for name, value in label.items() if name in RULES and value is not None}
                at = UNORDERED if order is None else label[order]
                self.operands.setdefault(key, []).append((at, self.sequence + 1, values))
        self._commit()

    def upsert(self, rows: list[dict[str, Any]], *, order: str | None) -> None:
        for row in rows:
            key = (row["user"], row["item"])
            whole = self.rows.setdefault(key, dict.fromkeys(SCHEMA.names) | {"user": key[0], "item": key[1]})
            whole["ts"] = row["ts"]
            values = {name: value for name, value in row.items() if name in RULES and value is not None}
            self.operands.setdefault(key, []).append((UNORDERED if order is None else row[order], self.sequence + 1, values))
        self._commit()

    def delete(self, chosen: list[tuple[Any, ...]]) -> None:
        self._remove(chosen)
        self._commit()

    def overwrite(self, gone: list[tuple[Any, ...]], rows: list[dict[str, Any]]) -> None:
        self._remove(gone)
        self.append(rows)

    def _remove(self, chosen: list[tuple[Any, ...]]) -> None:
        for key in set(chosen) & set(self.rows):
            del self.rows[key]
            self.operands.pop(key, None)

    def compact(self, commits: int) -> None:
        for _ in range(commits):
            self._commit()

    def shown(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {key: {name: self._value(key, name) for name in row} for key, row in self.rows.items()}

    def _commit(self) -> None:
        self.sequence += 1
        self.snapshots[self.sequence] = copy.deepcopy(self.shown())

    def _value(self, key: tuple[Any, ...], name: str) -> Any:
        own = self.rows[key][name]
        if name not in RULES:
            return own
        touched = [(order, values[name]) for order, _, values in self.operands.get(key, []) if name in values]
        if not touched:
            return own
        values = [value for _, value in touched]
        mine = [] if own is None else [own]
        match RULES[name]:
            case "last":
                return sorted(touched, key=lambda pair: pair[0])[-1][1]  # a stable sort: equal orders go by arrival
            case "first":
                return own if own is not None else sorted(touched, key=lambda pair: pair[0])[0][1]
            case "max":
                return max(mine + values)
            case "min":
                return min(mine + values)
            case "sum":
                return sum(mine + values)
            case "count":
                return sum(mine) + len(values)
            case _:
                return any(mine + values)


def by_key(table: pa.Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    """A read table by key; a key that stands twice fails."""
    rows = table.to_pylist()
    found = {(row["user"], row["item"]): row for row in rows}
    assert len(found) == len(rows), "a key stands twice"
    return found
