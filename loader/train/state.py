"""The position of a loader as small JSON: what the order depends on, and one integer. World size, batch size and remainder are not in it.

Owns the state's format and the comparison that names a field which differs. It is the same on every rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from loader.errors import StateMismatchError
from loader.scan.order import ORDER_VERSION, Order

STATE_VERSION = 1
KIND = "headrace.DataLoader"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderState:
    """Where a loader is.

    Attributes:
        table: Name of the table.
        snapshot: Snapshot number.
        columns: Columns of the batches, in order.
        where: Normalised predicate, or None.
        closed_before: Time value that attribution windows closed by, or None.
        selection: Hash of what defines the selection: the lake, the table, the snapshot and the predicates.
        num_rows: Rows of the plan.
        order: Seed, epoch and the rest of the order.
        plan: Fingerprint of the laid-out plan.
        position: Rows yielded in this epoch by all ranks together; groups, where the scan groups.
        sample: Rules of the scan's sample as plain values, or None.
        group_by: Columns of the scan's groups; empty for none.
    """

    table: str
    snapshot: int
    columns: tuple[str, ...]
    where: str | None
    closed_before: int | None
    selection: str
    num_rows: int
    order: Order
    plan: str
    position: int
    sample: dict[str, Any] | None = None
    group_by: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        fields["columns"], fields["group_by"] = list(self.columns), list(self.group_by)
        fields["order"] = {"version": ORDER_VERSION, **dataclasses.asdict(self.order)}
        return {"kind": KIND, "version": STATE_VERSION, **fields}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LoaderState:
        """Read a state.

        Raises:
            StateMismatchError: It is not one, or one of another version.
        """
        if not isinstance(value, Mapping) or value.get("kind") != KIND:
            raise StateMismatchError("this is not the state of a DataLoader: pass what state_dict() returned")
        if value.get("version") != STATE_VERSION:
            raise StateMismatchError(f"version: state {value.get('version')!r}, loader {STATE_VERSION!r}; use the Headrace that saved it")
        fields_of = dataclasses.fields(cls)
        names = [field.name for field in fields_of if field.name in value]
        missing = [field.name for field in fields_of if field.default is dataclasses.MISSING and field.name not in value]
        if missing:
            raise StateMismatchError(f"the state lacks {', '.join(missing)}: it is not whole")
        order = dict(value["order"])
        version = order.pop("version", None)
        if version != ORDER_VERSION:
            raise StateMismatchError(f"order.version: state {version!r}, loader {ORDER_VERSION!r}; use the Headrace that saved it")
        fields = {name: value[name] for name in names}
        return cls(**{**fields, "columns": tuple(value["columns"]), "group_by": tuple(value.get("group_by", ())), "order": Order(**order)})

    def check(self, loader: LoaderState) -> None:
        """Refuse to continue in a loader that would give other samples.

        Raises:
            StateMismatchError: Names every field that differs, with both values.
        """
        mine, other = _flat(self.to_dict()), _flat(loader.to_dict())
        wrong = [f"{name}: state {mine[name]!r}, loader {other[name]!r}" for name in mine if name != "position" and mine[name] != other[name]]
        if wrong:
            raise StateMismatchError(
                f"the state does not fit this loader: {'; '.join(wrong)}; make the loader as it was, or start a new epoch without the state"
            )
        if not 0 <= self.position <= self.num_rows:
            raise StateMismatchError(f"position: state {self.position!r}, and the plan has {self.num_rows:,} rows")


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: field for name, field in value.items() if name != "order"}, **{f"order.{name}": field for name, field in value["order"].items()}}
