"""How an older catalog becomes the present one: for each version, the statements that lead to the next, understood by SQLite and PostgreSQL alike.

A migration only adds: a Headrace that knows the older version refuses the newer catalog by name, and nothing that was written is read differently.
A process that had the catalog open when it was migrated is refused its next write. It may go on reading, and holding its pins, unless the newer version also
writes what the older would read wrong: that step ends with `update catalog_version set reads_since = <its version>`.
"""

from __future__ import annotations

FIRST_VERSION = 1
MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: ("alter table tables add column floor bigint not null default 0",),
    2: (
        "create table repairs (id text not null primary key, table_id bigint, repaired_at bigint not null, code text not null, what text not null)",
        "alter table catalog_version add column reads_since integer not null default 1",
    ),
    3: ("alter table inline_data add column num_bytes bigint", "update catalog_version set reads_since = 4"),  # of packed data, which is new
}
CATALOG_VERSION = FIRST_VERSION + len(MIGRATIONS)
