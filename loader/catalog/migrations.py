"""How an older catalog becomes the present one: for each version, the statements that lead to the next, understood by SQLite and PostgreSQL alike.

A migration only adds: a Headrace that knows the older version refuses the newer catalog by name, and nothing that was written is read differently.
"""

from __future__ import annotations

FIRST_VERSION = 1
MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: ("alter table tables add column floor bigint not null default 0",),
    2: (),  # inline_data holds packed bytes beside plain ones, which an older Headrace would take for damaged
}
CATALOG_VERSION = FIRST_VERSION + len(MIGRATIONS)
