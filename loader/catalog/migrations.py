"""How an older catalog becomes the present one: for each version, the statements that lead to the next, understood by SQLite and PostgreSQL alike.

A migration adds, and drops at most what no version ever wrote or read: nothing that was written is lost or read differently. A Headrace that knows the
older version refuses the newer catalog by name.
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
    3: (  # packs of sealed segments; the table and the column that are dropped were never written
        "drop table segment_stats",
        "alter table segments drop column stats_group",
        "alter table segments add column stats bytea",
        "create table segment_packs (id text primary key, table_id bigint not null references tables (id), first_segment_id bigint not null, "
        "last_segment_id bigint not null, last_added bigint not null, num_segments integer not null, time_min bigint, time_max bigint, gone bytea, "
        "packed bytea not null)",
        "create unique index segment_packs_first on segment_packs (table_id, first_segment_id)",
        "create table segment_stats (pack_id text not null references segment_packs (id), column_id integer not null, "
        "table_id bigint not null references tables (id), data bytea not null, primary key (pack_id, column_id))",
        "create index segment_stats_column on segment_stats (table_id, column_id)",
        "create index column_files_added on column_files (table_id, added_in)",
        "create index column_files_removed on column_files (table_id, removed_in) where removed_in is not null",
        "create index overlays_removed on overlays (table_id, removed_in) where removed_in is not null",
    ),
    4: ("alter table inline_data add column num_bytes bigint", "update catalog_version set reads_since = 5"),  # of packed data, which is new
    5: (
        "alter table tables add column erased_in bigint not null default 0",
        "create table erasures (id text not null primary key, table_id bigint not null, state text not null, num_keys bigint not null, "
        "key_bytes integer not null, keys bytea, deleted_in bigint, requested_at bigint not null, due_at bigint not null, proof text)",
        "create index erasures_table on erasures (table_id)",
        "update catalog_version set reads_since = 6",  # an older reader would show the blank rows that an erasure leaves
    ),
    6: (  # segments of bucket -1 hold rows of all buckets: an older reader that looks for a bucket would pass them over
        "update catalog_version set reads_since = 7",
    ),
    7: (
        "create table follow_ends (table_id bigint not null references tables (id), stream text not null, since bigint not null, kind text not null, "
        "until bigint not null, number bigint not null, pin_id bigint, made_at bigint not null, primary key (table_id, stream, since, kind))",
        "create index follow_ends_number on follow_ends (table_id, stream, number)",
    ),
    8: (
        "create table quarantine (table_id bigint not null references tables (id), segment_id bigint not null, block integer not null, "
        "column_id integer not null, reason text not null, found_at bigint not null, primary key (table_id, segment_id, block, column_id))",
    ),
}
CATALOG_VERSION = FIRST_VERSION + len(MIGRATIONS)
