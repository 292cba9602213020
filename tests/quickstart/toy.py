"""A tiny shop in the raw files' own schema: households with habits, so that there is something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = 1_483_228_800  # 2017-01-01 00:00:00 UTC
DAYS = 160


def write_raw(folder: Path, *, households: int = 12, products: int = 20, seed: int = 3) -> None:
    """Transactions, products and demographics as Parquet."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, int, int]] = []  # household, basket, product, seconds
    basket = 1000
    for household in range(1, households + 1):
        habit = rng.choice(products, 4, replace=False)
        day = float(rng.uniform(0, 5))
        while day < DAYS:
            basket += 1
            seconds = START + int(day * 24) * 3600  # whole hours, so that households meet in one second
            bought = {int(product) for product in habit if rng.random() < 0.6} | {int(product) for product in rng.choice(products, 2)}
            rows += [(household, basket, 100 + product, seconds) for product in bought]
            day += float(rng.uniform(0.0, 9.0)) if rng.random() < 0.9 else 0.0  # now and then two baskets in one second
    shuffled = [rows[index] for index in rng.permutation(len(rows))]
    household_id, basket_id, product_id, seconds = (np.array(values, np.int64) for values in zip(*shuffled, strict=True))
    count = len(shuffled)
    folder.mkdir(parents=True, exist_ok=True)
    money = {name: np.round(rng.gamma(2.0, 2.0, count), 2) for name in ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")}
    transactions = {"household_id": household_id, "store_id": rng.integers(300, 305, count), "basket_id": basket_id, "product_id": product_id}
    transactions |= {"quantity": rng.integers(0, 5, count), **money}
    table = pa.table(transactions).append_column("transaction_timestamp", pa.array(seconds).cast(pa.timestamp("s")).cast(pa.timestamp("ns")))
    pq.write_table(table, folder / "transactions.parquet")
    every = np.arange(products) + 100
    catalogue = {"product_id": every, "manufacturer_id": every % 3, "brand": ["Private" if one % 2 else "National" for one in every]}
    catalogue |= {"department": ["FOOD"] * products, "product_category": [None if one % 7 == 0 else f"C{one % 4}" for one in every]}
    catalogue |= {"product_type": [None if one % 7 == 0 else f"T{one % 6}" for one in every]}
    pq.write_table(pa.table(catalogue), folder / "products.parquet")
    known = np.arange(1, households + 1, 2)
    traits = {name: ["A" if one % 4 == 1 else "B" for one in known] for name in ("age", "income", "household_size", "household_comp", "kids_count")}
    traits |= {"home_ownership": [None if one == 1 else "Owner" for one in known], "marital_status": [None] * len(known)}
    marital = pa.array(traits.pop("marital_status"), pa.string())
    pq.write_table(pa.table({"household_id": known, **traits}).append_column("marital_status", marital), folder / "demographics.parquet")
