"""Training samples after the published shapes of recommender data, for the benchmarks. Fixed for ever: see `FIRST_ROWS_HASH`.

Shapes: sessions of about 16 samples and lists that stay constant through a session (RecD, MLSys 2023); the list sizes of
MLPerf DLRM-DCNv2; Zipf ids; 45% coverage (Meta, ISCA 2022); histories of 100 to 1,000 events that slide by 0 to 3 a sample;
decimals, counts, flags and nulls. Rows stand in the order (user, time), as a compacted table has them.

Every number comes from splitmix64 of (seed, column, index) and exact arithmetic, so that it does not depend on NumPy's generators
or on a libm: the hash of the first rows is checked whenever samples are made.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

SEED = 20_261_123
MEAN_SESSION_ROWS = 16
SESSIONS_PER_USER = 3
COVERAGE = 0.45
LIST_SIZES = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)  # MLPerf DLRM-DCNv2
VOCABULARY_SIZES = (40_000_000, 100_000, 1_000, 10_000_000, 20_000, 100)  # of the lists, in turn
HISTORY_CAPS = ((100, 60), (200, 20), (400, 15), (1_000, 5))  # events a user keeps, and weight
SLIDES = ((0, 40), (1, 30), (2, 20), (3, 10))  # events that arrive between two samples, and weight
NUM_RANDOM_FLOATS, NUM_DECIMALS, NUM_COUNTS, NUM_FLAGS = 16, 12, 12, 6
FIRST_ROWS = 64
FIRST_ROWS_HASH = "a9ae6879613c55d722936023d2c8dbec"

U64 = np.uint64


def words(stream: int, index: np.ndarray) -> np.ndarray:
    """uint64 words, a pure function of (SEED, stream, index): splitmix64 (Steele, Lea, Flood 2014), twice."""
    x = index.astype(U64) * U64(0xD1342543DE82EF95) + U64((SEED * 1_000_003 + stream * 0x9E3779B97F4A7C15) % 2**64)
    for _ in range(2):
        x = x + U64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
        x = x ^ (x >> U64(31))
    return x


def uniform(stream: int, index: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) with 53 random bits."""
    return (words(stream, index) >> U64(11)).astype(np.float64) * 2.0**-53


def weighted(stream: int, index: np.ndarray, choices: tuple[tuple[int, int], ...]) -> np.ndarray:
    """int64 draws from (value, weight) pairs."""
    values, weights = (np.array(column, np.int64) for column in zip(*choices, strict=True))
    return values[np.searchsorted(np.cumsum(weights), words(stream, index) % U64(weights.sum()), side="right")]


def zipf(stream: int, index: np.ndarray, size: int) -> np.ndarray:
    """int64 ids in [0, size), id k with a probability close to 1 / (k + 3): an octave by its weight, then evenly inside it."""
    octaves = np.arange(int(size + 2).bit_length() - 1)
    low = np.minimum((1 << (octaves + 2)) - 4 + (octaves == 0), size)
    edges = np.unique(np.concatenate([[0], low, [size]]))
    weights = np.cumsum((edges[1:] - edges[:-1]) / (edges[1:] + edges[:-1] + 6.0))
    octave = np.searchsorted(weights, uniform(stream, index) * weights[-1], side="right").clip(0, len(weights) - 1)
    first, width = edges[octave], edges[octave + 1] - edges[octave]
    return (first + (words(stream + 500_000, index) % width.astype(U64)).astype(np.int64)).astype(np.int64)


def bell(stream: int, index: np.ndarray) -> np.ndarray:
    """float64, close to a standard normal: a centred sum of four uniforms, scaled to unit variance (exact arithmetic)."""
    total = sum(uniform(stream + 100_000 * k, index) for k in range(4))
    return (total - 2.0) * 1.7320508075688772


def layout(num_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(session, user, first row of the session) of each row."""
    num_sessions = num_rows // 8 + 2
    lengths = 1 + (words(1, np.arange(num_sessions)) % U64(2 * MEAN_SESSION_ROWS - 1)).astype(np.int64)
    session = np.repeat(np.arange(num_sessions), lengths)[:num_rows]
    starts = np.cumsum(lengths) - lengths
    return session, session // SESSIONS_PER_USER, starts[session]


def nullable(values: np.ndarray, stream: int, unit: np.ndarray) -> pa.Array:
    """Values present with probability COVERAGE, decided for each `unit` (a row or a session)."""
    return pa.array(values, mask=uniform(stream, unit) >= COVERAGE)


def list_column(number: int, size: int, rows: np.ndarray, session: np.ndarray) -> pa.Array:
    """Ids of one sparse feature: constant through a session for every other feature, fresh in each row for the others; absent = empty."""
    unit = session if number % 2 == 0 else rows
    lengths = np.where(uniform(2_000 + number, unit) < COVERAGE, 1 + (words(2_100 + number, unit) % U64(2 * size - 1)).astype(np.int64), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    ids = zipf(2_200 + number, np.repeat(unit, lengths) * 4_096 + inside, VOCABULARY_SIZES[number % len(VOCABULARY_SIZES)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))


def histories(rows: np.ndarray, user: np.ndarray) -> dict[str, pa.Array]:
    """Three aligned lists a row: the user's last events before it, oldest first. They slide by 0 to 3 events from row to row."""
    first_row = np.searchsorted(user, user)
    arrived = np.cumsum(weighted(3_000, rows, SLIDES))
    arrived -= arrived[first_row]
    cap = weighted(3_001, user, HISTORY_CAPS)
    offsets = np.concatenate([[0], np.cumsum(cap)])
    event = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - arrived, cap)
    key = np.repeat(user, cap) * 65_536 + event
    lists = pa.array(offsets, pa.int32())
    times = 1_700_000_000 + np.repeat(user % 86_400, cap) + event * 977 + (words(3_003, key) % U64(900)).astype(np.int64)
    return {
        "history_item": pa.ListArray.from_arrays(lists, pa.array(zipf(3_002, key, 10_000_000))),
        "history_time": pa.ListArray.from_arrays(lists, pa.array(times)),
        "history_action": pa.ListArray.from_arrays(lists, pa.array(zipf(3_004, key, 12).astype(np.int8))),
    }


def make_samples(num_rows: int) -> pa.Table:
    """`num_rows` samples; the first rows do not depend on how many are asked for."""
    rows = np.arange(num_rows)
    session, user, session_start = layout(num_rows)
    columns: dict[str, pa.Array] = {
        "user_id": pa.array((words(10, user) >> U64(1)).astype(np.int64)),
        "session_id": pa.array((words(11, session) >> U64(1)).astype(np.int64)),
        "item_id": pa.array(zipf(12, rows, 10_000_000)),
        "ts": pa.array(1_760_000_000 + session * 37 + (rows - session_start) * 11, pa.timestamp("s")),
        "label": pa.array((uniform(13, rows) < 0.03).astype(np.int8)),
    }
    for k in range(NUM_RANDOM_FLOATS):
        columns[f"float_{k:02}"] = nullable(bell(1_000 + k, rows).astype(np.float32), 1_050 + k, session if k % 2 else rows)
    for k in range(NUM_DECIMALS):
        cents = zipf(1_100 + k, rows if k % 2 else session, 20_000)
        columns[f"decimal_{k:02}"] = nullable((cents / (100.0 if k % 3 else 1000.0)).astype(np.float32), 1_150 + k, rows)
    for k in range(NUM_COUNTS):
        columns[f"count_{k:02}"] = nullable(zipf(1_200 + k, session if k % 2 else rows, 10 ** (2 + k % 4)).astype(np.int32), 1_250 + k, rows)
    for k in range(NUM_FLAGS):
        columns[f"flag_{k:02}"] = pa.array(uniform(1_300 + k, rows if k % 2 else session) < 0.02 * (k + 1))
    for k, size in enumerate(LIST_SIZES):
        columns[f"list_{k:02}"] = list_column(k, size, rows, session)
    columns.update(histories(rows, user))
    table = pa.table(columns)
    if num_rows >= FIRST_ROWS and (found := first_rows_hash(table)) != FIRST_ROWS_HASH:
        raise RuntimeError(
            f"the generator changed: its first {FIRST_ROWS} rows hash to {found}, not {FIRST_ROWS_HASH}; restore it, figures must stay comparable"
        )
    return table


def first_rows_hash(table: pa.Table) -> str:
    """BLAKE2b of the first rows as one Arrow IPC batch, independent of how the table is chunked."""
    rows = pa.Table.from_pydict({name: pa.array(table[name].slice(0, FIRST_ROWS).to_pylist(), table[name].type) for name in table.column_names})
    text = repr([(name, str(rows[name].type), rows[name].to_pylist()) for name in rows.column_names])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
