"""What all transforms share: the columns they read and make, and how one function serves tensors and lists alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from loader.batch.jagged import Jagged


class Features:
    """Columns under transformation: those that came, and those made so far, which hide them.

    Attributes:
        columns: By name, as they came: tensors [rows], `Jagged`.
        made: By name, what steps made.
        made_validity: By name, bool [rows], of what steps made, where it differs from all True.
    """

    def __init__(self, columns: Mapping[str, Any], validity: Mapping[str, Any]) -> None:
        self.columns, self._validity = columns, validity
        self.made: dict[str, Any] = {}
        self.made_validity: dict[str, Any] = {}

    def value(self, name: str) -> Any:
        """A column as it is now.

        Raises:
            KeyError: There is none of this name.
        """
        if name in self.made:
            return self.made[name]
        if name not in self.columns:
            raise KeyError(name)
        return self.columns[name]

    def valid(self, name: str) -> Any:
        """bool [rows], False where the column is null; None where no row is."""
        if name in self.made:
            return self.made_validity.get(name)
        return self._validity[name] if name in self._validity else None  # noqa: SIM401 (a batch has no KeyError)

    def put(self, name: str, value: Any, valid: Any = None) -> None:
        """Make a column, or change one. `valid` None: no row is null."""
        self.made[name] = value
        if valid is None:
            self.made_validity.pop(name, None)
        else:
            self.made_validity[name] = valid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """A step. It reads `columns` and makes `results`.

    Attributes:
        kind: Its name in a config.
        columns: What it reads.
    """

    kind: ClassVar[str] = ""
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns is empty: name at least one")

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the columns it makes."""
        return self.columns

    def apply(self, features: Features) -> None:
        """Do it."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Each(Transform):
    """A step that does the same to each of its columns; of a list column to each of its values, so that lists keep their lengths and views.

    A null row's value is whatever the step makes of what stands there (0): put `fill_nulls` before it where that matters.

    Attributes:
        into: Names of the results, one a column; default the columns' own.
    """

    into: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.into is not None and len(self.into) != len(self.columns):
            raise ValueError(f"into names {len(self.into)} columns for {len(self.columns)}: give one each")

    @property
    def results(self) -> tuple[str, ...]:
        return self.columns if self.into is None else self.into

    def apply(self, features: Features) -> None:
        for column, result in zip(self.columns, self.results, strict=True):
            features.put(result, on_values(features.value(column), self.change), features.valid(column))

    def change(self, values: Any) -> Any:
        """A tensor of any shape -> one of the same shape."""
        raise NotImplementedError


def on_values(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` of a tensor, or of the values of lists."""
    if isinstance(value, Jagged):
        return dataclasses.replace(value, values=change(value.values))
    return change(value)
