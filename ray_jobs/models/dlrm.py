"""A deep learning recommendation model (Naumov et al. 2019) with attention over histories, as small as it can be and still be one.

    dense columns ── fill, log1p, standardise ──► bottom MLP ─────────────► [B, E] ─┐
    ids ──────────── hash or clip ──────────────► embedding tables ───────► [B, E] ─┼─► dot products of all pairs ─► top MLP ─► logit [B]
    history ids ──── the same tables ─► bag, or attention by the candidate ► [B, E] ─┘                 [B, F·(F-1)/2]

B rows of the batch, E the embedding dimension, F vectors (bottom output, ids, histories), L history entries kept a row.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from loader.config import DataConfig, ExperimentConfig, HistoryFeature, ModelConfig
from ray_jobs.models import features
from ray_jobs.models.features import Batch

_GAP_BUCKETS = 64  # powers of two of the gap, in whatever unit the times have


class DLRM(nn.Module):
    """Logits of a batch; `data` says which columns, `model` how wide.

    `forward` takes a batch of the loader (any object with `batch[column]` and `batch.validity`) and returns float32 [B]. Dense columns are
    tensors [B] of any number type, ids are integer tensors [B], histories are jagged (`values` [entries], `offsets` [B + 1]).
    """

    def __init__(self, data: DataConfig, model: ModelConfig) -> None:
        super().__init__()
        self.data, self.model = data, model
        width = model.embedding_dim
        self.tables = nn.ModuleList([_embedding(sparse.num_embeddings, width, model.embedding_std) for sparse in data.sparse])
        self.attentions = nn.ModuleList([CandidateAttention(width) for feature in data.history if feature.pooling == "attention"])
        self.bottom = _mlp(len(data.dense), model.bottom_mlp, width) if data.dense else None
        num_vectors = bool(data.dense) + len(data.sparse) + len(data.history)
        pairs = num_vectors * (num_vectors - 1) // 2
        mixed = pairs + (width if data.dense else 0) if model.interaction == "dot" else num_vectors * width
        self.top = _mlp(mixed, model.top_mlp, 1, dropout=model.dropout)
        first, second = torch.triu_indices(num_vectors, num_vectors, offset=1)
        self.register_buffer("pair_index", first * num_vectors + second, persistent=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        vectors = []
        if self.bottom is not None:
            vectors.append(self.bottom(features.dense_matrix(batch, self.data.dense)))
        embedded = {}
        for sparse, table in zip(self.data.sparse, self.tables, strict=True):
            embedded[sparse.column] = table(features.id_rows(batch, sparse.column, sparse.num_embeddings, hashed=sparse.hash))
        vectors += embedded.values()
        attentions = iter(self.attentions)
        for feature in self.data.history:
            attention = next(attentions) if feature.pooling == "attention" else None
            vectors.append(self._pool(batch, feature, embedded[feature.embedding], attention))
        logits: torch.Tensor = self.top(self._interact(vectors)).squeeze(1)
        return logits

    def _pool(self, batch: Batch, feature: HistoryFeature, candidate: torch.Tensor, attention: nn.Module | None) -> torch.Tensor:
        """One history as [B, E]."""
        which = [sparse.column for sparse in self.data.sparse].index(feature.embedding)
        sparse = self.data.sparse[which]
        past = features.history(batch, feature.column, time_column=feature.time_column, sample_time=self.data.time_column, max_length=feature.max_length)
        rows = features.table_rows(past.ids, sparse.num_embeddings, hashed=sparse.hash)
        if attention is not None:
            pooled: torch.Tensor = attention(candidate, self.tables[which](rows), past.mask, past.gaps)
            return pooled
        weights = past.mask.to(candidate.dtype)
        if feature.pooling == "mean":
            weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.einsum("bl,ble->be", weights, self.tables[which](rows))

    def _interact(self, vectors: list[torch.Tensor]) -> torch.Tensor:
        """[B, pairs] of dot products, after the bottom MLP's output where there is one; or all vectors side by side."""
        if self.model.interaction == "cat":
            return torch.cat(vectors, dim=1)
        stacked = torch.stack(vectors, dim=1)
        products = stacked @ stacked.transpose(1, 2)
        pairs = products.flatten(1).index_select(1, self.pair_index)
        return pairs if self.bottom is None else torch.cat([vectors[0], pairs], dim=1)


class CandidateAttention(nn.Module):
    """Weighs history entries by how they match the candidate and by how long ago they were (after DIN, Zhou et al. 2018).

    score = (W·candidate)·entry / sqrt(E) + bias[log2(1 + gap)]; the softmax has one more place with score 0 and no value, so a history in which
    nothing matches (or an empty one) pools to nearly nothing, instead of to its average.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.gap_bias = nn.Embedding(_GAP_BUCKETS, 1)
        nn.init.zeros_(self.gap_bias.weight)

    def forward(self, candidate: torch.Tensor, entries: torch.Tensor, mask: torch.Tensor, gaps: torch.Tensor | None) -> torch.Tensor:
        """Candidate [B, E], entries [B, L, E], mask and gaps [B, L] → [B, E]."""
        scores = torch.einsum("be,ble->bl", self.query(candidate), entries) / math.sqrt(entries.shape[-1])
        if gaps is not None:
            bucket = gaps.add(1).log2().to(torch.int64).clamp(max=_GAP_BUCKETS - 1)
            scores = scores + self.gap_bias(bucket).squeeze(2)
        scores = scores.masked_fill(~mask, float("-inf"))
        nothing = scores.new_zeros(len(scores), 1)
        weights = torch.cat([nothing, scores], dim=1).softmax(dim=1)[:, 1:]
        return torch.einsum("bl,ble->be", weights, entries)


def build(config: ExperimentConfig, seed: int) -> DLRM:
    """The experiment's model with initial weights of this seed; the process's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DLRM(config.data, config.model)


def _embedding(rows: int, width: int, deviation: float) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=deviation)
    return table


def _mlp(inputs: int, hidden: tuple[int, ...], outputs: int, *, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
