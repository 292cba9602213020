"""Patch, upsert and delete as `Table` offers them: small inputs are one write, that of many threads share a commit; large ones are read part by part."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import pyarrow as pa

from loader.catalog.records import Snapshot, SourceOffsets
from loader.table.context import TableContext
from loader.table.delete import DeleteKeys, DeleteWhere
from loader.table.files import Stage
from loader.table.lookup import KeyValues, key_table
from loader.table.parts import parts_of
from loader.table.patch import Patch, check_on_missing, conform_nullable, order_values, patched_columns
from loader.table.rows import Data, key_words
from loader.table.streamed_changes import Change, Progress, StreamedChange
from loader.table.upsert import Upsert, given_columns

_ORDER = "__order_of_operands"  # of operands on their way


def patch(
    context: TableContext,
    data: Data,
    *,
    columns: list[str] | None,
    order: str | None,
    on_missing: str,
    watermark: int | None,
    offsets: SourceOffsets | None,
    commit_id: str | None,
    progress: Progress | None,
) -> Snapshot:
    """See `Table.patch`."""
    check_on_missing(on_missing)
    spec = context.spec

    def conform(part: pa.Table) -> pa.Table:
        names = patched_columns(spec, part, columns, order)
        return _with_orders(conform_nullable(part.select([*spec.primary_key, *names]), spec, names), part, order)

    def make(table: pa.Table, files: Stage | None, names: list[str] | None = None, by: str | None = _ORDER if order else None) -> Patch:
        return Patch(context, table, columns=names, order=by, on_missing=on_missing, watermark=watermark, offsets=offsets, commit_id=commit_id, files=files)

    return _run(
        context,
        data,
        conform=conform,
        make=make,
        small=lambda table: make(table, None, columns, order),
        offsets=offsets,
        commit_id=commit_id,
        progress=progress,
    )


def upsert(
    context: TableContext,
    data: Data,
    *,
    order: str | None,
    watermark: int | None,
    offsets: SourceOffsets | None,
    commit_id: str | None,
    progress: Progress | None,
) -> Snapshot:
    """See `Table.upsert`."""
    spec = context.spec

    def conform(part: pa.Table) -> pa.Table:
        names = given_columns(spec, part, order)
        return _with_orders(conform_nullable(part.select([*spec.primary_key, *names]), spec, names), part, order)

    def make(table: pa.Table, files: Stage | None, by: str | None = _ORDER if order else None) -> Upsert:
        return Upsert(context, table, order=by, watermark=watermark, offsets=offsets, commit_id=commit_id, files=files)

    return _run(
        context, data, conform=conform, make=make, small=lambda table: make(table, None, order), offsets=offsets, commit_id=commit_id, progress=progress
    )


def delete(
    context: TableContext, keys_or_where: Data | KeyValues, *, offsets: SourceOffsets | None, commit_id: str | None, progress: Progress | None
) -> Snapshot:
    """See `Table.delete`."""
    if isinstance(keys_or_where, str) and not os.fspath(keys_or_where).endswith(".parquet"):
        return DeleteWhere(context, keys_or_where, offsets=offsets, commit_id=commit_id).run()

    def conform(part: KeyValues) -> pa.Table:
        return key_table(context.spec, part, "a delete from")

    def make(table: pa.Table, files: Stage | None) -> DeleteKeys:
        return DeleteKeys(context, key_words(context.spec, table), offsets=offsets, commit_id=commit_id, files=files)

    is_data = isinstance(keys_or_where, pa.Table | pa.RecordBatch | pa.RecordBatchReader | str | os.PathLike)
    return _run(
        context,
        keys_or_where if is_data else conform(keys_or_where),
        conform=conform,
        make=make,
        small=lambda table: make(conform(table), None),
        offsets=offsets,
        commit_id=commit_id,
        progress=progress,
    )


def _run(
    context: TableContext,
    data: Data,
    *,
    conform: Callable[[pa.Table], pa.Table],
    make: Callable[[pa.Table, Stage], Change],
    small: Callable[[pa.Table], Patch | Upsert | DeleteKeys],
    offsets: SourceOffsets | None,
    commit_id: str | None,
    progress: Progress | None,
) -> Snapshot:
    """Commit an input: as one write where it is small, in ranges of its keys where it is not."""
    parts = parts_of(data, context.memory_bytes)
    first, second = next(parts), next(parts, None)
    if second is None:
        return small(first).run()
    every = itertools.chain([first, second], parts)
    return StreamedChange(context, every, conform=conform, make=make, offsets=offsets, commit_id=commit_id, progress=progress).run()


def _with_orders(table: pa.Table, part: pa.Table, order: str | None) -> pa.Table:
    return table if order is None else table.append_column(_ORDER, pa.array(order_values(part, order)))
