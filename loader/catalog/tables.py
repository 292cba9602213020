"""The SQL tables of the catalog, as SQLAlchemy Core definitions. Owns names, columns and indexes; runs no statement.

Numbers of snapshots are dense per table, from 1 on. A row that has `added_in` and `removed_in` is live at snapshot S when
added_in <= S and (removed_in is null or removed_in > S). Times of the wall clock are microseconds since 1970 (UTC); times of data are in the
unit of the table's time column. A `path` is relative to the lake, or `inline/<name>` for bytes that lie in `inline_data`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text, text
from sqlalchemy.schema import CreateIndex, CreateTable

metadata = MetaData()
# SQLite counts rows by itself only in a column that is exactly INTEGER PRIMARY KEY.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _live() -> tuple[Column[int], Column[int | None]]:
    return Column("added_in", BigInteger, nullable=False), Column("removed_in", BigInteger)


def _section() -> tuple[Column[str], Column[int], Column[int]]:
    """A part of one stored object."""
    return Column("path", Text, nullable=False), Column("section_offset", BigInteger, nullable=False), Column("num_bytes", BigInteger, nullable=False)


def _removed(table: str) -> Index:
    """For what a handle has to take off its plan: few rows, so that an insert costs nothing."""
    dead = text("removed_in is not null")
    return Index(f"{table}_removed", "table_id", "removed_in", sqlite_where=dead, postgresql_where=dead)


catalog_version = Table(
    "catalog_version",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1
    Column("version", Integer, nullable=False),
    Column("lake_id", Text, nullable=False),
    Column("written_by", Text, nullable=False),
    Column("reads_since", Integer, nullable=False, server_default="1"),  # the oldest version whose open handles may go on reading
)

tables = Table(
    "tables",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("head", BigInteger, nullable=False),  # number of the newest snapshot, 0 before the first
    Column("schema_id", Integer, nullable=False),
    Column("watermark", BigInteger),
    Column("primary_key", Text, nullable=False),  # JSON: column ids
    Column("bucket_by", Text, nullable=False),  # JSON: column ids
    Column("buckets", Integer, nullable=False),
    Column("cluster_by", Text, nullable=False),  # JSON: column ids
    Column("time_column", Integer),  # column id
    Column("partition_by", Text),  # hour, day, week, month
    Column("merge", Text, nullable=False),  # JSON: column id -> rule
    Column("attribution", Text),  # JSON
    Column("durability", Text, nullable=False),
    Column("properties", Text, nullable=False),  # JSON, for settings that come later
    Column("created_at", BigInteger, nullable=False),
    Column("dropped_at", BigInteger),
    Column("floor", BigInteger, nullable=False, server_default="0"),  # what died at or before it may be forgotten: handles that stand lower begin anew
    Column("erased_in", BigInteger, nullable=False, server_default="0"),  # newest snapshot that moved sections in place: handles that stand lower begin anew
    Index("tables_name", "name", unique=True, sqlite_where=text("dropped_at is null"), postgresql_where=text("dropped_at is null")),
    sqlite_autoincrement=True,  # a number is never used again
)

schemas = Table(
    "schemas",
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("id", Integer, primary_key=True),
    Column("json", Text, nullable=False),
    Column("added_in", BigInteger, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("id", BigInteger, primary_key=True),
    Column("commit_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("schema_id", Integer, nullable=False),
    Column("watermark", BigInteger),
    Column("num_rows", BigInteger, nullable=False),  # live rows after this snapshot
    Column("created_at", BigInteger, nullable=False),
    Column("expired_at", BigInteger),
    Column("summary", Text, nullable=False),  # JSON: counts of what the commit did
    Index("snapshots_commit", "table_id", "commit_id", unique=True),
)

segments = Table(
    "segments",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("segment_uuid", Text, nullable=False),
    Column("bucket", Integer, nullable=False),  # of the rows, by bucket_by
    Column("time_partition", BigInteger, nullable=False),
    Column("level", Integer, nullable=False),
    *_section(),
    Column("schema_id", Integer, nullable=False),
    Column("num_rows", BigInteger, nullable=False),
    Column("live_rows", BigInteger, nullable=False),  # at birth; deletion vectors that came later are counted in overlays
    Column("sequence_min", BigInteger, nullable=False),
    Column("sequence_max", BigInteger, nullable=False),
    Column("key_min", BigInteger),  # as order-keeping signed numbers
    Column("key_max", BigInteger),
    Column("time_min", BigInteger),
    Column("time_max", BigInteger),
    Column("block_rows", LargeBinary, nullable=False),  # u32 each
    *_live(),
    Column("stats", LargeBinary),  # records of loader.catalog.column_stats; null where nothing is known
    sqlite_autoincrement=True,  # a number is never used again
)
Index("segments_added", segments.c.table_id, segments.c.added_in)
Index("segments_removed", segments.c.table_id, segments.c.removed_in)
Index("segments_bucket_time", segments.c.table_id, segments.c.bucket, segments.c.time_partition)
Index("segments_time", segments.c.table_id, segments.c.time_min)
Index("segments_path", segments.c.path)

segment_packs = Table(
    "segment_packs",  # copies of 1,000 rows of segments each, in the order of commits
    metadata,
    Column("id", Text, primary_key=True),  # never used again
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("first_segment_id", BigInteger, nullable=False),
    Column("last_segment_id", BigInteger, nullable=False),
    Column("last_added", BigInteger, nullable=False),  # added_in of the last
    Column("num_segments", Integer, nullable=False),
    Column("time_min", BigInteger),
    Column("time_max", BigInteger),
    Column("gone", LargeBinary),  # u32 each: ids from the first of segments whose rows were deleted since
    Column("packed", LargeBinary, nullable=False),  # last: what stands before it is read without it
    Index("segment_packs_first", "table_id", "first_segment_id", unique=True),
)

segment_stats = Table(
    "segment_stats",  # of one column over the segments of a pack
    metadata,
    Column("pack_id", ForeignKey("segment_packs.id"), primary_key=True),
    Column("column_id", Integer, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index("segment_stats_column", "table_id", "column_id"),
)

column_files = Table(
    "column_files",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("segment_id", ForeignKey("segments.id"), nullable=False),
    Column("column_ids", Text, nullable=False),  # JSON
    Column("sequence", BigInteger, nullable=False),
    *_section(),
    *_live(),
    Index("column_files_segment", "segment_id"),
    Index("column_files_path", "path"),
    Index("column_files_added", "table_id", "added_in"),
    _removed("column_files"),
    sqlite_autoincrement=True,  # a number is never used again
)

overlays = Table(
    "overlays",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("segment_id", ForeignKey("segments.id"), nullable=False),
    Column("kind", Text, nullable=False),  # patch, deletes, erased
    Column("level", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),  # of the commit that wrote the operands, kept when they are carried over
    *_section(),
    Column("num_rows", BigInteger, nullable=False),
    Column("num_deleted", BigInteger, nullable=False),
    Column("column_ids", Text, nullable=False),  # JSON
    *_live(),
    Index("overlays_segment", "segment_id"),
    Index("overlays_added", "table_id", "added_in"),
    Index("overlays_path", "path"),
    _removed("overlays"),
    sqlite_autoincrement=True,  # a number is never used again
)

inline_data = Table(
    "inline_data",
    metadata,
    Column("path", Text, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("num_bytes", BigInteger),  # once unpacked; null where the data is not packed
)

buckets = Table(
    "buckets",  # of keys
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("bucket", Integer, primary_key=True),
    Column("rows_changed_in", BigInteger, nullable=False),
    Column("pending_changed_in", BigInteger, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", BigInteger),
)

pending = Table(
    "pending",  # labels whose row has not come: one row for each commit and key bucket
    metadata,
    Column("id", _Id, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("bucket", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    *_section(),  # the operands, as a segment
    Column("num_held", BigInteger, nullable=False),
    Column("keys", LargeBinary, nullable=False),  # low words u64, then for 16-byte keys the high words, then their rows in the section u32
    Column("met", LargeBinary),  # u32 positions among `keys` whose row came since
    Column("column_ids", Text, nullable=False),  # JSON
    *_live(),
    Index("pending_bucket", "table_id", "bucket"),
    Index("pending_path", "path"),
    sqlite_autoincrement=True,  # a number is never used again
)

source_offsets = Table(
    "source_offsets",
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("pipeline", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("source_partition", Text, primary_key=True),
    Column("next", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("committed_in", BigInteger, nullable=False),
)

staged = Table(
    "staged",
    metadata,
    Column("prefix", Text, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("owner", Text, nullable=False),
    Column("next_file", BigInteger, nullable=False),  # files are numbered; all below this one are live or garbage
    Column("lease_until", BigInteger, nullable=False),
)

pins = Table(
    "pins",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("snapshot_id", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),  # tag, pin
    Column("name", Text, nullable=False),  # of the tag, or who holds the pin
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Index("pins_tag", "table_id", "name", unique=True, sqlite_where=text("kind = 'tag'"), postgresql_where=text("kind = 'tag'")),
    sqlite_autoincrement=True,  # a number is never used again
)

follow_ends = Table(
    "follow_ends",  # where the increments of followed tables end, as the ranks of each run agreed
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("stream", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True),  # twice the snapshot where it begins, exclusive; one more where only carried rows came before it
    Column("kind", Text, primary_key=True),  # increment, flush, over
    Column("until", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),  # ascending in the stream
    Column("pin_id", BigInteger),
    Column("made_at", BigInteger, nullable=False),
    Index("follow_ends_number", "table_id", "stream", "number"),
)

selections = Table(
    "selections",
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("snapshot_id", BigInteger, primary_key=True),
    Column("hash", Text, primary_key=True),
    Column("pin_id", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

garbage = Table(
    "garbage",
    metadata,
    Column("path", Text, primary_key=True),
    Column("table_id", BigInteger, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

erasures = Table(
    "erasures",
    metadata,
    Column("id", Text, primary_key=True),  # a digest of the table and the keys, and how often they were asked for
    Column("table_id", BigInteger, nullable=False),
    Column("state", Text, nullable=False),  # requested, rewritten, complete
    Column("num_keys", BigInteger, nullable=False),
    Column("key_bytes", Integer, nullable=False),
    Column("keys", LargeBinary),  # words of the keys, so that the work goes on after a crash; null once it is complete
    Column("deleted_in", BigInteger),  # the snapshot from which on the rows are gone; what comes later under the same key is a new row
    Column("requested_at", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("proof", Text),  # JSON
)
Index("erasures_table", erasures.c.table_id)

repairs = Table(
    "repairs",  # what the doctor mended
    metadata,
    Column("id", Text, primary_key=True),
    Column("table_id", BigInteger),
    Column("repaired_at", BigInteger, nullable=False),
    Column("code", Text, nullable=False),
    Column("what", Text, nullable=False),
)

quarantine = Table(
    "quarantine",  # damaged blocks that loaders go on without
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("segment_id", BigInteger, primary_key=True),
    Column("block", Integer, primary_key=True),
    Column("column_id", Integer, primary_key=True),  # -1 is all of the block
    Column("reason", Text, nullable=False),
    Column("found_at", BigInteger, nullable=False),
)


def ddl(dialect_name: str) -> list[str]:
    """The statements that create an empty catalog in `sqlite` or `postgresql`."""
    from sqlalchemy.dialects import postgresql, sqlite

    dialect = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}[dialect_name]()
    statements = []
    for table in metadata.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        statements.extend(str(CreateIndex(index).compile(dialect=dialect)) for index in sorted(table.indexes, key=lambda i: str(i.name)))
    return statements
