"""From a batch's columns to what the DLRM multiplies: a dense matrix, table rows for ids, and histories padded to a rectangle.

Shapes: B rows of the batch, D dense features, L history entries kept a row. Everything is torch and runs on the batch's device, so training
and serving share it. Owns no parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from loader.batch.transforms.hashing import mix
from loader.config import DenseFeature


class Batch(Protocol):
    """What a model needs of `loader.batch.Batch`: columns by name, and a mask for those that hold nulls."""

    @property
    def validity(self) -> Mapping[str, Any]: ...

    def __getitem__(self, column: str) -> Any: ...


class History(NamedTuple):
    """The last entries of each row's list, right-aligned.

    Attributes:
        ids: int64 [B, L]; 0 where `mask` is false.
        mask: bool [B, L], true for an entry that is there.
        gaps: float32 [B, L], how long before the sample the entry happened, in the time column's unit; None without times.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    gaps: torch.Tensor | None


def dense_matrix(batch: Batch, features: Sequence[DenseFeature]) -> torch.Tensor:
    """float32 [B, D]: fill nulls and NaN, transform, shift, scale, in the order of `features`."""
    columns = []
    for feature in features:
        values = batch[feature.column].to(torch.float32)
        valid = batch.validity.get(feature.column)
        missing = values.isnan() if valid is None else values.isnan() | ~valid.to(torch.bool)
        values = torch.where(missing, feature.fill, values)
        if feature.transform == "log1p":
            values = values.clamp(min=0).log1p()
        columns.append((values - feature.shift) * feature.scale)
    return torch.stack(columns, dim=1)


def table_rows(ids: torch.Tensor, num_embeddings: int, *, hashed: bool) -> torch.Tensor:
    """int64, the embedding row of each id, of the shape of `ids`. The last row is kept for nulls and for ids outside the table."""
    known = num_embeddings - 1
    ids = ids.to(torch.int64)
    if hashed:
        return (mix(ids) & (1 << 62) - 1).remainder(known)
    return torch.where((ids >= 0) & (ids < known), ids, known)


def id_rows(batch: Batch, column: str, num_embeddings: int, *, hashed: bool) -> torch.Tensor:
    """int64 [B], the embedding row of each row's id; a null takes the last."""
    rows = table_rows(batch[column], num_embeddings, hashed=hashed)
    valid = batch.validity.get(column)
    return rows if valid is None else torch.where(valid.to(torch.bool), rows, num_embeddings - 1)


def history(batch: Batch, column: str, *, time_column: str | None, sample_time: str | None, max_length: int | None) -> History:
    """Pad a list column to the longest row of the batch, keeping each row's last entries.

    Args:
        batch: Its column is jagged: `values` [entries], `offsets` [B + 1].
        column: List of ids.
        time_column: List of times, aligned with `column`; gaps are measured to `sample_time`.
        sample_time: Column of the sample's own time.
        max_length: Entries kept a row; default all.
    """
    jagged = batch[column]
    offsets = jagged.offsets.to(torch.int64)
    begin, end = offsets[:-1], offsets[1:]
    longest = int((end - begin).max()) if len(begin) else 0
    length = longest if max_length is None else min(longest, max_length)
    index = end[:, None] + torch.arange(-length, 0, device=offsets.device)
    mask = index >= begin[:, None]
    index = index.clamp(min=0)
    ids = torch.where(mask, _take(jagged.values, index), 0)
    if time_column is None or sample_time is None:
        return History(ids, mask, None)
    times = _take(batch[time_column].values, index)
    gaps = (batch[sample_time].to(torch.int64)[:, None] - times).clamp(min=0)  # in integers: float32 would lose the seconds
    return History(ids, mask, torch.where(mask, gaps, 0).to(torch.float32))


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Entries as int64; of an empty column only masked ones can be asked for."""
    if not len(values):
        return torch.zeros(index.shape, dtype=torch.int64, device=index.device)
    return values.index_select(0, index.reshape(-1)).to(torch.int64).reshape(index.shape)
