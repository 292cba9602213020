"""What a deep run has done so far, kept in a file so that a run that was stopped goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from loader.doctor.checks import REGISTRY, Finding

SAVE_SECONDS = 1.0


@dataclasses.dataclass(kw_only=True)
class State:
    """Objects and sections that were looked at, and what was found in them.

    Attributes:
        place: The lake and the table that it is about.
        done: Names of what was looked at.
        findings: In these.
        path: The file; None keeps nothing.
    """

    place: str
    done: set[str] = dataclasses.field(default_factory=set)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    path: Path | None = None
    _saved_at: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def load(cls, path: Path | None, place: str) -> State:
        """Of an earlier run that was stopped, or a new one."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if path is not None:
                known = json.loads(path.read_text())
                if known["place"] == place:
                    findings = [_finding(**one) for one in known["findings"]]
                    return cls(place=place, done=set(known["done"]), findings=findings, path=path)
        return cls(place=place, path=path)  # none, or one that was not written whole: begin again

    def finished(self, name: str, findings: list[Finding]) -> None:
        """Note what was looked at, with what was found in it."""
        self.done.add(name)
        self.findings += findings
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self._saved_at = time.monotonic()
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        shown = [one.to_dict() | {"subject": list(one.subject)} for one in self.findings]
        temporary.write_text(json.dumps({"place": self.place, "done": sorted(self.done), "findings": shown}))
        temporary.replace(self.path)

    def forget(self) -> None:
        """Everything was looked at: the next run begins again."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _finding(*, subject: list[Any], **fields: Any) -> Finding:
    if fields["code"] not in REGISTRY:
        raise KeyError(fields["code"])
    return Finding(subject=tuple(subject), **fields)
