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
    3: (
        "alter table tables add column erased_in bigint not null default 0",
        "create table erasures (id text not null primary key, table_id bigint not null, state text not null, num_keys bigint not null, "
        "key_bytes integer not null, keys bytea, deleted_in bigint, requested_at bigint not null, due_at bigint not null, proof text)",
        "create index erasures_table on erasures (table_id)",
        "update catalog_version set reads_since = 4",  # an older reader would show the blank rows that an erasure leaves
    ),
}
CATALOG_VERSION = FIRST_VERSION + len(MIGRATIONS)
