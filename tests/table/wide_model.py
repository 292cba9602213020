"""The plain model of a table whose columns come and go, whose rows are erased or grow too old, and whose snapshots expire."""

from __future__ import annotations

import datetime
from typing import Any

from tests.table.model import RULES, UNORDERED, Model

Key = tuple[Any, ...]


class WideModel(Model):
    """A model with more columns, by a number of their own: a column that is renamed is the same, one that comes again is not."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: dict[str, tuple[str, Any]] = {}  # number -> name, default
        self.num_added = 0

    def add_column(self, name: str, default: Any) -> None:
        self.num_added += 1
        self.extra[f"#{self.num_added}"] = (name, default)
        self._commit()

    def drop_column(self, name: str) -> None:
        del self.extra[self.number(name)]
        self._commit()

    def rename_column(self, old: str, new: str) -> None:
        number = self.number(old)
        self.extra[number] = (new, self.extra[number][1])
        self._commit()

    def number(self, name: str) -> str:
        return next(number for number, (known, _) in self.extra.items() if known == name)

    @property
    def extra_names(self) -> list[str]:
        return [name for name, _ in self.extra.values()]

    def backfill(self, rows: dict[Key, dict[str, Any]]) -> None:
        """Operands of columns of either kind for rows that are there."""
        for key, values in rows.items():
            if key in self.rows:
                named = {name if name in RULES else self.number(name): value for name, value in values.items() if value is not None}
                self.operands.setdefault(key, []).append((UNORDERED, self.sequence + 1, named))
        self._commit()

    def erase(self, chosen: list[Key]) -> None:
        """Rows and held labels go, from every snapshot; what it takes in commits is the table's own affair."""
        for key in chosen:
            self.rows.pop(key, None)
            self.operands.pop(key, None)
            for rows in self.snapshots.values():
                rows.pop(key, None)

    def drop_old(self, before: datetime.datetime) -> None:
        self._remove([key for key, row in self.rows.items() if row["ts"] < before])

    def follow(self, head: int) -> None:
        """Maintenance has made commits that change no row."""
        while self.sequence < head:
            self._commit()

    def expire(self, kept: set[int]) -> None:
        self.snapshots = {number: rows for number, rows in self.snapshots.items() if number in kept}

    def shown(self) -> dict[Key, dict[str, Any]]:
        found = super().shown()
        for key, row in found.items():
            operands = self.operands.get(key, [])
            for number, (name, default) in self.extra.items():
                given = [(order, values[number]) for order, _, values in operands if number in values]
                row[name] = sorted(given, key=lambda pair: pair[0])[-1][1] if given else default
        return found
