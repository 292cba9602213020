"""What a table's handle says of its definition, column by name. Owns these names; the definition itself is the catalog's."""

from __future__ import annotations

from loader.catalog.records import Attribution, TableSpec
from loader.schema import Schema
from loader.table.context import TableContext


class Defined:
    """Names of a table's definition, by its present schema."""

    _context: TableContext

    @property
    def spec(self) -> TableSpec:
        """The definition: keys, buckets, order, merge rules."""
        return self._context.spec

    @property
    def schema(self) -> Schema:
        return self.spec.schema

    @property
    def primary_key(self) -> list[str]:
        return self.spec.primary_key

    @property
    def bucket_by(self) -> list[str]:
        return self.spec.bucket_by

    @property
    def buckets(self) -> int:
        return self.spec.buckets

    @property
    def cluster_by(self) -> list[str]:
        return self.spec.cluster_by

    @property
    def time_column(self) -> str | None:
        return None if self.spec.time_column is None else self.spec.time_column.name

    @property
    def partition_by(self) -> str | None:
        return self.spec.partition_by

    @property
    def merge(self) -> dict[str, str]:
        return self.spec.merge

    @property
    def attribution(self) -> Attribution | None:
        return self.spec.attribution

    @property
    def durability(self) -> str:
        return self.spec.durability
