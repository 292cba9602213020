"""Transforms of batches by config, in torch: the same code for training on a CPU or a GPU and for serving.

Owns the list of them and how a list of plain values (YAML) becomes one callable. Each kind is in a module of its own subject; what a kind does to a
column stands there.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from loader.batch.transforms.base import Features, Transform
from loader.batch.transforms.hashing import Cross, Hash
from loader.batch.transforms.lists import Pad, Truncate
from loader.batch.transforms.nulls import FillNulls
from loader.batch.transforms.numbers import Bucketise, Cast, Clip, Log1p, Standardise
from loader.batch.transforms.stack import Stack
from loader.errors import SchemaError, did_you_mean

KINDS: dict[str, type[Transform]] = {
    "bucketise": Bucketise,
    "cast": Cast,
    "clip": Clip,
    "cross": Cross,
    "fill_nulls": FillNulls,
    "hash": Hash,
    "log1p": Log1p,
    "pad": Pad,
    "stack": Stack,
    "standardise": Standardise,
    "truncate": Truncate,
}


class Transforms:
    """Transforms in their order, as one: what `DataLoader(transforms=…)` calls on every batch, and what serving calls on its rows. Picklable.

    Args:
        steps: Transforms, or plain values as they stand in YAML: `{"kind": "hash", "columns": ["user"], "buckets": 100000}`.

    Raises:
        ValueError: A kind or a key is unknown, or a value is wrong; the message has the number of the step.
    """

    def __init__(self, steps: Sequence[Transform | Mapping[str, Any]]) -> None:
        self.steps = tuple(step if isinstance(step, Transform) else parse(step, number) for number, step in enumerate(steps))

    def __repr__(self) -> str:
        return f"Transforms([{', '.join(map(repr, self.steps))}])"

    def __call__(self, batch: Any) -> Any:
        """A `Batch` with the columns that the steps make; nothing is done to the others."""
        features = Features(batch, batch.validity)
        self._run(features)
        return batch.with_columns(features.made, features.made_validity)

    def apply(self, columns: Mapping[str, Any], validity: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All columns after the steps, for rows that come from elsewhere than a loader.

        Args:
            columns: Tensors [rows] and `Jagged` by name.
            validity: By column, a bool tensor [rows]; columns that have none have no null.
        """
        features = Features(columns, {} if validity is None else validity)
        self._run(features)
        return {**columns, **features.made}

    def _run(self, features: Features) -> None:
        for number, step in enumerate(self.steps):
            try:
                step.apply(features)
            except KeyError as error:
                known = [*features.columns, *features.made]
                raise SchemaError(f"transforms[{number}] ({step.kind}) reads column {error.args[0]!r}: {did_you_mean(str(error.args[0]), known)}") from None
            except (ValueError, TypeError) as error:
                raise SchemaError(f"transforms[{number}] ({step.kind}) of {', '.join(step.columns)}: {error}") from error

    def inputs(self, wanted: Sequence[str]) -> list[str]:
        """The columns to read so that all of `wanted` are there after the steps, each once."""
        needed = list(wanted)
        for step in reversed(self.steps):
            made = set(step.results) - set(step.columns)
            if any(name in needed for name in step.results):
                needed = [*(name for name in needed if name not in made), *step.columns]
        return list(dict.fromkeys(needed))


def parse(step: Mapping[str, Any], number: int = 0) -> Transform:
    """A transform from plain values.

    Raises:
        ValueError: The kind or a key is unknown or missing, or a value has the wrong type.
    """
    where = f"transforms[{number}]"
    if not isinstance(step, Mapping) or "kind" not in step:
        raise ValueError(f"{where} is {step!r}: write a mapping with a kind, one of {', '.join(KINDS)}")
    kind = step["kind"]
    if kind not in KINDS:
        raise ValueError(f"{where}: unknown kind {kind!r}: {did_you_mean(str(kind), list(KINDS))}")
    fields = {field.name: field for field in dataclasses.fields(KINDS[kind])}
    hints = typing.get_type_hints(KINDS[kind])
    values: dict[str, Any] = {}
    for key, value in step.items():
        if key == "kind":
            continue
        if key not in fields:
            raise ValueError(f"{where} ({kind}): unknown key {key!r}: {did_you_mean(key, list(fields))}")
        values[key] = _value(value, hints[key], f"{where}.{key}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ValueError(f"{where} ({kind}) lacks {', '.join(missing)}")
    try:
        return KINDS[kind](**values)
    except ValueError as error:
        raise ValueError(f"{where} ({kind}): {error}") from None


def _value(value: Any, wanted: Any, where: str) -> Any:
    """A plain value as a field's type wants it: numbers as they are, lists as tuples."""
    options = typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(option)[0]
            return tuple(_value(item, inner, f"{where}[{number}]") for number, item in enumerate(value))
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    names = " or ".join("a list" if typing.get_origin(option) is tuple else getattr(option, "__name__", str(option)) for option in options)
    raise ValueError(f"{where} must be {names}, not {value!r}")
