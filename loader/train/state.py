"""The position of a loader as small JSON: what the order depends on, and one integer. World size, batch size and remainder are not in it.

Owns the state's format and the comparison that names a field which differs. It is the same on every rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from loader.errors import StateMismatchError
from loader.scan.mix import AnyScan
from loader.scan.order import ORDER_VERSION, Order

STATE_VERSION = 1
KIND = "headrace.DataLoader"
SOURCE_FIELDS = ("table", "snapshot", "where", "closed_before", "selection", "num_rows")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderState:
    """Where a loader is.

    Attributes:
        content: What is read, as the plan's `state` says it. Of a scan: table, snapshot, columns in order, where and closed_before (or None), selection (the
            hash of what defines it: the lake, the table, the snapshot and the predicates) and num_rows; sample, group_by and num_units where it has them. Of
            a mix: columns, num_rows, and in `sources` the
            rest of each with its weight.
        order: Seed, epoch and the rest of the order.
        plan: Fingerprint of the laid-out plan.
        position: Rows yielded in this epoch by all ranks together; groups, where the scan groups.
    """

    content: Mapping[str, Any]
    order: Order
    plan: str
    position: int

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return int(self.content["num_rows"])

    @property
    def num_units(self) -> int:
        """What positions count of an epoch: rows, or groups."""
        return int(self.content.get("num_units", self.num_rows))

    @property
    def snapshots(self) -> tuple[tuple[str, int], ...]:
        """(table, snapshot) of each source."""
        return snapshots_of(self.content)

    def to_dict(self) -> dict[str, Any]:
        order = {"version": ORDER_VERSION, **dataclasses.asdict(self.order)}
        return {"kind": KIND, "version": STATE_VERSION, **self.content, "order": order, "plan": self.plan, "position": self.position}

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
        sources = value["sources"] if isinstance(value.get("sources"), list) else [value]
        lacks = [name for source in sources for name in SOURCE_FIELDS if name not in source]
        missing = [*dict.fromkeys(lacks), *(name for name in ("columns", "num_rows", "order", "plan", "position") if name not in value)]
        if missing:
            raise StateMismatchError(f"the state lacks {', '.join(missing)}: it is not whole")
        order = dict(value["order"])
        version = order.pop("version", None)
        if version != ORDER_VERSION:
            raise StateMismatchError(f"order.version: state {version!r}, loader {ORDER_VERSION!r}; use the Headrace that saved it")
        content = {name: field for name, field in value.items() if name not in ("kind", "version", "order", "plan", "position")}
        return cls(content=content, order=Order(**order), plan=value["plan"], position=value["position"])

    def snapshots_for(self, scan: AnyScan, present: Mapping[str, Any]) -> AnyScan | None:
        """The loader's scan at the snapshots of this state, where it names none of its own and stands at others; None where it is to stay.

        Args:
            scan: The loader's.
            present: The `state` of its plan.
        """
        here = dataclasses.replace(self, content=present).snapshots
        if [table for table, _ in here] != [table for table, _ in self.snapshots]:
            return None
        asked = [mine if source.snapshot is not None else saved for source, (_, mine), (_, saved) in zip(scan.sources, here, self.snapshots, strict=True)]
        return None if asked == [mine for _, mine in here] else scan.at(*asked)

    def check(self, loader: LoaderState) -> None:
        """Refuse to continue in a loader that would give other samples.

        Raises:
            StateMismatchError: Names every field that differs, with both values.
        """
        mine, other = _flat(self.to_dict()), _flat(loader.to_dict())
        names = [name for name in dict.fromkeys([*mine, *other]) if name != "position"]
        wrong = [f"{name}: state {mine.get(name)!r}, loader {other.get(name)!r}" for name in names if mine.get(name) != other.get(name)]
        if wrong:
            raise StateMismatchError(
                f"the state does not fit this loader: {'; '.join(wrong)}; make the loader as it was, or start a new epoch without the state"
            )
        if not 0 <= self.position <= self.num_units:
            raise StateMismatchError(f"position: state {self.position!r}, and the plan has {self.num_units:,} rows or groups")


def snapshots_of(content: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """(table, snapshot) of each source of what a plan's `state` says."""
    return tuple((source["table"], int(source["snapshot"])) for source in content.get("sources", [content]))


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """Nested names with dots."""
    flat: dict[str, Any] = {}
    for name, field in value.items():
        if isinstance(field, Mapping):
            flat |= {f"{name}.{inner}": found for inner, found in _flat(field).items()}
        elif name == "sources":
            flat |= {f"{name}.{number}.{inner}": found for number, source in enumerate(field) for inner, found in _flat(source).items()}
        else:
            flat[name] = field
    return flat
