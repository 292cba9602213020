"""The systems that `scripts/bench_table` compares, each behind the same few calls. Imports a peer only when it is used.

Every call is what the system's own documentation names for it. What a commit promises differs, and the table says so: Headrace and DuckLake's catalog are
synced to disk before they answer; Lance, Delta and Iceberg leave their files to the operating system.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

BUCKETS = 8


class System:
    """One table of a system.

    Args:
        folder: Its own.
        schema: Of the table; "id" is its key.
    """

    title = ""
    synced = "no"

    def __init__(self, folder: pathlib.Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema

    def append(self, rows: pa.Table) -> None:
        raise NotImplementedError

    def patch(self, rows: pa.Table) -> None:
        """Change some columns of rows that are there, by key."""
        raise NotImplementedError

    def upsert(self, rows: pa.Table) -> None:
        raise NotImplementedError

    def delete(self, keys: pa.Array) -> None:
        raise NotImplementedError

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The table as it is now, as a reader that opens it anew sees it."""
        raise NotImplementedError

    def compact(self) -> None:
        """Everything into the form that reads fastest."""
        raise NotImplementedError

    def maintain(self) -> None:
        """What runs beside a stream of commits: cheap, and often nothing to do."""
        self.compact()

    def index(self) -> None:
        """Make what look-ups by key profit from, where the system has such a thing."""

    def look_up(self, keys: pa.Array, columns: Sequence[str]) -> pa.Table:
        raise NotImplementedError


class Headrace(System):
    title, synced = "Headrace", "yes"
    catalog: str | None = None
    durability = "strict"

    def __init__(self, folder: pathlib.Path, schema: pa.Schema) -> None:
        import loader

        super().__init__(folder, schema)
        self.lake = loader.connect(folder / "lake", self.catalog)
        self.table = self.lake.create_table("t", schema, primary_key=["id"], buckets=BUCKETS, durability=self.durability)

    def append(self, rows: pa.Table) -> None:
        self.table.append(rows)

    def patch(self, rows: pa.Table) -> None:
        self.table.patch(rows)

    def upsert(self, rows: pa.Table) -> None:
        self.table.upsert(rows)

    def delete(self, keys: pa.Array) -> None:
        self.table.delete(pa.table({"id": keys}))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        return self.table.to_arrow(columns=columns)

    def compact(self) -> None:
        self.table.compact(full=True)

    def maintain(self) -> None:
        self.table.compact()

    def look_up(self, keys: pa.Array, columns: Sequence[str]) -> pa.Table:
        return self.table.lookup(keys, columns)


class HeadraceMaintained(Headrace):
    title = "Headrace maintained"


class HeadraceFiles(Headrace):
    """Every commit in a file of its own, as large ones are: nothing lies in the catalog."""

    title = "Headrace files"

    def __init__(self, folder: pathlib.Path, schema: pa.Schema) -> None:
        from loader.table import files

        super().__init__(folder, schema)
        files.INLINE_BYTES = 0


class HeadraceGroup(Headrace):
    """Commits of a writer that does not wait for each: many share a transaction and a sync."""

    title = "Headrace group"

    def append_all(self, batches: Sequence[pa.Table]) -> list[float]:
        """Append all of them; seconds from asking to each acknowledgement."""
        import time

        taken: list[float] = []

        def done(started: float, _: Any) -> None:
            taken.append(time.perf_counter() - started)

        asked = []
        for batch in batches:
            future = self.table.append_async(batch)
            future.add_done_callback(functools.partial(done, time.perf_counter()))
            asked.append(future)
        for future in asked:
            future.result()
        return taken


class Lance(System):
    title = "Lance"

    @property
    def _uri(self) -> str:
        return str(self.folder / "t.lance")

    def _open(self) -> Any:
        import lance

        return lance.dataset(self._uri)

    def append(self, rows: pa.Table) -> None:
        import lance

        lance.write_dataset(rows, self._uri, mode="append" if pathlib.Path(self._uri).exists() else "create")

    def patch(self, rows: pa.Table) -> None:
        self._open().merge_insert("id").when_matched_update_all().execute(rows)

    def upsert(self, rows: pa.Table) -> None:
        self._open().merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, keys: pa.Array) -> None:
        self._open().delete(f"id in ({', '.join(map(str, keys.to_pylist()))})")

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        table: pa.Table = self._open().to_table(columns=None if columns is None else list(columns))
        return table

    def compact(self) -> None:
        self._open().optimize.compact_files()

    def index(self) -> None:
        self._open().create_scalar_index("id", "BTREE")
        self._held = self._open()

    def look_up(self, keys: pa.Array, columns: Sequence[str]) -> pa.Table:
        listed = ", ".join(map(str, keys.to_pylist()))
        table: pa.Table = self._held.to_table(columns=list(columns), filter=f"id in ({listed})" if len(keys) > 1 else f"id = {listed}")
        return table


class Delta(System):
    title = "Delta"

    @property
    def _uri(self) -> str:
        return str(self.folder / "delta")

    def _open(self) -> Any:
        from deltalake import DeltaTable

        return DeltaTable(self._uri)

    def append(self, rows: pa.Table) -> None:
        from deltalake import write_deltalake

        write_deltalake(self._uri, rows, mode="append")

    def _merge(self, rows: pa.Table) -> Any:
        return self._open().merge(rows, "s.id = t.id", source_alias="s", target_alias="t")

    def patch(self, rows: pa.Table) -> None:
        self._merge(rows).when_matched_update({"label": "s.label", "value": "s.value"}).execute()

    def upsert(self, rows: pa.Table) -> None:
        self._merge(rows).when_matched_update_all().when_not_matched_insert_all().execute()

    def delete(self, keys: pa.Array) -> None:
        self._merge(pa.table({"id": keys})).when_matched_delete().execute()

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        table: pa.Table = self._open().to_pyarrow_table(columns=None if columns is None else list(columns))
        return table

    def compact(self) -> None:
        self._open().optimize.compact()

    def index(self) -> None:
        self._held = self._open().to_pyarrow_dataset()

    def look_up(self, keys: pa.Array, columns: Sequence[str]) -> pa.Table:
        table: pa.Table = self._held.to_table(columns=list(columns), filter=pc.field("id").isin(keys))
        return table


class Iceberg(System):
    title, synced = "Iceberg", "the catalog"

    def __init__(self, folder: pathlib.Path, schema: pa.Schema) -> None:
        from pyiceberg.catalog.sql import SqlCatalog

        super().__init__(folder, schema)
        folder.joinpath("warehouse").mkdir()
        catalog = SqlCatalog("c", uri=f"sqlite:///{folder}/catalog.sqlite", warehouse=f"file://{folder}/warehouse")
        catalog.create_namespace("n")
        self._table = catalog.create_table("n.t", schema=schema)

    def append(self, rows: pa.Table) -> None:
        self._table.append(rows)

    def patch(self, rows: pa.Table) -> None:
        """Its upsert takes whole rows."""
        import numpy as np

        there = self._table.scan().to_arrow()
        order = np.argsort(there["id"].to_numpy())
        at = order[np.searchsorted(there["id"].to_numpy(), rows["id"].to_numpy(), sorter=order)]
        whole = there.take(pa.array(at))
        for name in rows.column_names:
            whole = whole.set_column(whole.column_names.index(name), name, rows[name])
        self._table.upsert(whole, join_cols=["id"], when_not_matched_insert_all=False)

    def upsert(self, rows: pa.Table) -> None:
        self._table.upsert(rows, join_cols=["id"])

    def delete(self, keys: pa.Array) -> None:
        from pyiceberg.expressions import In

        self._table.delete(In("id", keys.to_pylist()))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        self._table.refresh()
        table: pa.Table = self._table.scan(selected_fields=("*",) if columns is None else tuple(columns)).to_arrow()
        return table

    def look_up(self, keys: pa.Array, columns: Sequence[str]) -> pa.Table:
        from pyiceberg.expressions import In

        table: pa.Table = self._table.scan(row_filter=In("id", keys.to_pylist()), selected_fields=tuple(columns)).to_arrow()
        return table


class DuckLake(System):
    title, synced = "DuckLake", "the catalog"
    options = ""

    def __init__(self, folder: pathlib.Path, schema: pa.Schema) -> None:
        import duckdb
        import duckdb_extensions

        super().__init__(folder, schema)
        duckdb_extensions.import_extension("ducklake")
        self.connection = duckdb.connect()
        self.connection.execute("load ducklake")
        self.connection.execute(f"attach 'ducklake:{folder}/catalog.ducklake' as lake (data_path '{folder}/files'{self.options})")
        self.connection.execute("use lake")
        rows = schema.empty_table()
        self.connection.register("rows", rows)
        self.connection.execute("create table t as select * from rows")
        self.connection.unregister("rows")

    def _run(self, statement: str, rows: pa.Table) -> None:
        self.connection.register("rows", rows)
        self.connection.execute(statement)
        self.connection.unregister("rows")

    def append(self, rows: pa.Table) -> None:
        self._run("insert into t select * from rows", rows)

    def patch(self, rows: pa.Table) -> None:
        self._run("merge into t using rows on t.id = rows.id when matched then update set label = rows.label, value = rows.value", rows)

    def upsert(self, rows: pa.Table) -> None:
        self._run("merge into t using rows on t.id = rows.id when matched then update when not matched then insert", rows)

    def delete(self, keys: pa.Array) -> None:
        self._run("delete from t where id in (select id from rows)", pa.table({"id": keys}))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        listed = "*" if columns is None else ", ".join(f'"{name}"' for name in columns)
        return self.connection.execute(f"select {listed} from t").to_arrow_table()

    def compact(self) -> None:
        for call in (
            "ducklake_flush_inlined_data('lake')",
            "ducklake_rewrite_data_files('lake', 't', delete_threshold => 0)",
            "ducklake_merge_adjacent_files('lake')",
        ):
            self.connection.execute(f"call {call}")

    def look_up(self, keys: pa.Array, columns: Sequence[str]) -> pa.Table:
        listed = ", ".join(f'"{name}"' for name in columns)
        return self.connection.execute(f"select {listed} from t where id in ({', '.join(map(str, keys.to_pylist()))})").to_arrow_table()


class DuckLakeInline(DuckLake):
    title, options = "DuckLake inline", ", data_inlining_row_limit 1000"


_KINDS = (Headrace, HeadraceMaintained, HeadraceFiles, HeadraceGroup, DuckLake, DuckLakeInline, Lance, Delta, Iceberg)
SYSTEMS: dict[str, type[System]] = {kind.title: kind for kind in _KINDS}
# Newer releases of duckdb had no extension to match.
PEERS = ("pylance", "deltalake", "pyiceberg[sql-sqlite]", "duckdb==1.5.5", "duckdb-extension-ducklake==1.5.5", "duckdb-extensions")
PACKAGES = ("pyarrow", "pylance", "deltalake", "pyiceberg", "duckdb", "duckdb-extension-ducklake")
