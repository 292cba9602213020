"""Which rows of which input make up each piece of a merged run, found without holding the inputs: splitters from a sample, then one input at a time.

As in an external sample sort: every so many rows' cluster keys are sorted, the pieces' first keys are taken from them at even distances, and each input's rows
are put between those. Held at once are 8 bytes a row and the cluster columns of one input; that inputs are sorted already is made use of by their reads (the
rows of a piece lie side by side), not relied on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.records import TableSpec
from loader.schema import take
from loader.storage import Storage
from loader.table.resolve import deleted_rows
from loader.table.segments import one_type, read_by_id
from loader.table.stored import StoredRows

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
SAMPLES_PER_PIECE = 64  # pieces are equal within a few parts of this


@dataclasses.dataclass(frozen=True)
class Division:
    """Live rows of each input, piece by piece.

    Attributes:
        rows: For each input, u32 row numbers, those of a piece together.
        cuts: For each input, i64[num_pieces + 1], where in its `rows` each piece begins.
        num_pieces: Pieces; each key of a piece comes before those of the next.
    """

    rows: list[U32]
    cuts: list[I64]
    num_pieces: int

    def piece(self, number: int) -> list[U32]:
        """Row numbers of each input in a piece."""
        return [rows[cuts[number] : cuts[number + 1]] for rows, cuts in zip(self.rows, self.cuts, strict=True)]


def divide(spec: TableSpec, inputs: Sequence[StoredRows], num_pieces: int, storage: Storage) -> Division:
    """Divide the live rows of the inputs into pieces of about the same size."""
    alive = [_alive(item, storage) for item in inputs]
    if num_pieces <= 1:
        return Division(alive, [np.array([0, len(rows)]) for rows in alive], 1)
    step = max(1, sum(map(len, alive)) // (num_pieces * SAMPLES_PER_PIECE))
    samples = [take(_keys(spec, item, number, alive[number]), np.arange(0, len(alive[number]), step)) for number, item in enumerate(inputs)]
    ranked = _sorted(pa.concat_tables(samples))
    firsts = take(ranked, np.linspace(0, ranked.num_rows, num_pieces + 1).astype(np.int64)[1:-1])
    rows, cuts = [], []
    for number, item in enumerate(inputs):
        mine, own_cuts = _put_between(_keys(spec, item, number, alive[number]), firsts)
        rows.append(alive[number][mine])
        cuts.append(own_cuts)
    return Division(rows, cuts, num_pieces)


def _alive(item: StoredRows, storage: Storage) -> U32:
    deleted = deleted_rows(item.ref, storage)
    return (np.arange(item.ref.num_rows) if deleted is None else np.flatnonzero(~deleted)).astype(np.uint32)


def _keys(spec: TableSpec, item: StoredRows, number: int, alive: U32) -> pa.Table:
    """The cluster columns of an input's live rows, and what makes the order a total one: input and row."""
    columns = spec.columns(spec.cluster_by_ids)
    read = read_by_id(item.reader, [column.id for column in columns])
    arrays = [one_type(read[column.id], column.type) if column.id in read else column.missing(item.ref.num_rows) for column in columns]
    keys = [take(array, alive) for array in arrays]
    last = [pa.array(np.full(len(alive), number, np.int32)), pa.array(alive)]
    return pa.Table.from_arrays([*keys, *last], names=[f"c{at}" for at in range(len(keys) + 2)])


def _sorted(table: pa.Table) -> pa.Table:
    return take(table, pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.column_names]).to_numpy())


def _put_between(keys: pa.Table, firsts: pa.Table) -> tuple[I64, I64]:
    """Positions of the keys in order, and where in that order each piece begins; `firsts` are the first keys of all pieces but the first."""
    both = pa.concat_tables([keys, firsts]).append_column("is_key", pa.array(np.arange(keys.num_rows + firsts.num_rows) < keys.num_rows))
    names = both.column_names  # a first key comes before the row that it was taken from
    order = pc.sort_indices(both, sort_keys=[(name, "ascending") for name in names]).to_numpy().astype(np.int64)
    at = np.flatnonzero(order >= keys.num_rows) - np.arange(firsts.num_rows)
    return order[order < keys.num_rows], np.concatenate([[0], at, [keys.num_rows]])
