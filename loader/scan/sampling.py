"""Sampling by rule: which share of the rows is read, and what each of them stands for.

Owns what rules may say, the keyed draw of a row, and the weight 1 / rate. A row's draw depends on its key and the seed alone (and on the epoch, where asked
for), never on where the row lies, who counts, or how many rows there are: compaction does not change a sample, and a higher rate keeps what a lower one kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.errors import AlreadyExistsError, SchemaError
from loader.scan.order import make_key, mix64
from loader.scan.predicate import Predicate, parse
from loader.segment.key_index import is_key_type, keys_of

if TYPE_CHECKING:
    from loader.schema import Schema

SAMPLE_VERSION = 1
MAX_RULES = 254
WEIGHT_COLUMN = "sample_weight"
DRAW_BITS = 53  # a draw is a float64 in [0, 1) of full precision

Rule: TypeAlias = "tuple[str | None, float]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Rules of a sample. `Sample(rules=[("label = 1", 1.0), (None, 0.1)])` keeps every positive and a tenth of the rest.

    Attributes:
        rules: (where, rate), in order: a row follows the first rule whose `where` holds for it, and is kept with probability `rate`, from 0 to 1. A `where` of
            None holds for every row. A row that no rule fits is kept.
        seed: Of the draw.
        by: Columns whose values decide the draw: rows that agree in them are kept or left together where their rates agree. Default the primary key.
        per_epoch: Whether every epoch draws anew. The number of rows then differs by epoch, and each is counted before its first batch.
        epoch: Which epoch is drawn, where `per_epoch`; a `DataLoader` sets it.
        column: What the column of weights is called in batches: float32, 1 / rate.
    """

    rules: tuple[Rule, ...]
    seed: int = 17
    by: tuple[str, ...] = ()
    per_epoch: bool = False
    epoch: int = 0
    column: str = WEIGHT_COLUMN

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(_rule(rule) for rule in self.rules))
        object.__setattr__(self, "by", tuple(self.by))
        if not 0 < len(self.rules) <= MAX_RULES:
            raise ValueError(f"a sample has {len(self.rules)} rules; it must have 1 to {MAX_RULES}: [('label = 1', 1.0), (None, 0.1)]")

    @classmethod
    def of(cls, value: Sample | Mapping[str, Any] | Sequence[Any]) -> Sample:
        """A sample from what a caller, a file or a state gives: itself, its fields, or its rules alone.

        Raises:
            ValueError: It is none, or a rule or rate is wrong.
        """
        if isinstance(value, Sample):
            return value
        if isinstance(value, Mapping):
            unknown = sorted(set(value) - {field.name for field in dataclasses.fields(cls)})
            if unknown or "rules" not in value:
                raise ValueError(f"sample has no key {unknown[0]!r}" if unknown else "sample lacks rules: [('label = 1', 1.0), (None, 0.1)]")
            return cls(**value)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"sample is {value!r}; give rules: [('label = 1', 1.0), (None, 0.1)], or a loader.Sample")
        return cls(rules=tuple(value))

    def checked(self, schema: Schema, primary_key: Sequence[str], columns: Sequence[str]) -> Sample:
        """The same with normalised predicates and the columns of the draw named.

        Raises:
            ColumnNotFoundError: A column of a rule or of `by` is not in the schema.
            SchemaError: A column of `by` cannot be hashed.
            AlreadyExistsError: The weights would hide a column that is read.
        """
        arrow = schema.to_arrow()
        rules = tuple((None if where is None else parse(where, arrow).text, rate) for where, rate in self.rules)
        names = tuple(schema.column(name).name for name in (self.by or primary_key))
        for name in names:
            if not is_key_type(schema.column(name).type):
                raise SchemaError(f"sample draws by column {name!r}, which is {schema.column(name).type}: use integers, dates, times or texts")
        if self.column in columns:
            raise AlreadyExistsError(f"the weights of a sample would hide column {self.column!r}, which is read: name them with column=…")
        return dataclasses.replace(self, rules=rules, by=names, epoch=self.epoch if self.per_epoch else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `of` reads."""
        return {**dataclasses.asdict(self), "rules": [list(rule) for rule in self.rules], "by": list(self.by)}

    @property
    def rates(self) -> tuple[float, ...]:
        """Rate by code: of each rule, then of rows that no rule fits."""
        return (*(rate for _, rate in self.rules), 1.0)

    def weights(self) -> npt.NDArray[np.float32]:
        """float32 [codes], 1 / rate, by code."""
        return np.array([1 / rate if rate else 0.0 for rate in self.rates], np.float32)


def _rule(value: Any) -> Rule:
    if isinstance(value, Mapping) and set(value) <= {"where", "rate"} and "rate" in value:
        value = (value.get("where"), value["rate"])
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"a rule of a sample is {value!r}; it must be (where, rate), such as ('label = 1', 1.0) or (None, 0.1)")
    where, rate = value
    if not (where is None or isinstance(where, str)) or isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ValueError(f"a rule of a sample is {value!r}; it must be (where, rate): a SQL text or None, and a number")
    if not (math.isfinite(rate) and 0 <= rate <= 1):
        raise ValueError(f"the rate of rule {where!r} is {rate}; it must lie between 0 and 1")
    return where, float(rate)


class Sampler:
    """Draws rows of blocks; used by several threads.

    Args:
        sample: Checked.
        schema: Of the snapshot.
    """

    def __init__(self, sample: Sample, schema: Schema) -> None:
        self._sample = sample
        self._predicates: list[Predicate | None] = [None if where is None else parse(where, schema.to_arrow()) for where, _ in sample.rules]
        self._thresholds = np.array([math.ceil(rate * 2**DRAW_BITS) for rate in sample.rates], np.uint64)
        self._key = make_key(SAMPLE_VERSION, sample.seed, sample.epoch if sample.per_epoch else 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads."""
        named = [name for predicate in self._predicates if predicate is not None for name in predicate.columns]
        return tuple(dict.fromkeys([*named, *self._sample.by]))

    def draw(self, rows: pa.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
        """(bool [rows], which are kept; uint8 [rows], the code of each row: the number of its rule)."""
        codes = np.full(rows.num_rows, len(self._predicates), np.uint8)
        open_rows = np.ones(rows.num_rows, np.bool_)
        for code, predicate in enumerate(self._predicates):
            fits = open_rows if predicate is None else open_rows & predicate.mask(rows)
            codes[fits] = code
            open_rows = open_rows & ~fits
        keys = keys_of([rows.column(name) for name in self._sample.by], hashed=True)
        words = mix64(mix64(keys.low if keys.high is None else keys.low ^ mix64(keys.high)) ^ self._key)
        return (words >> np.uint64(64 - DRAW_BITS)) < self._thresholds[codes], codes
