"""Named places where a test may kill the process or raise an error. Owns the registry; a no-op unless armed.

Arm a child process through its environment, `HEADRACE_FAILPOINT=name=kill` (or `name=kill:3` for the third time the name is passed), or this
process with `armed`. Nothing outside tests arms one.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

NAMES = (
    "append.prepared",
    "append.staged",
    "append.resolved",
    "patch.resolved",
    "patch.staged",
    "backfill.resolved",
    "backfill.staged",
    "evolve.prepared",
    "overwrite.resolved",
    "overwrite.staged",
    "upsert.resolved",
    "upsert.staged",
    "delete.resolved",
    "delete.staged",
    "streamed.spilled",
    "streamed.resolved",
    "commit.begun",
    "commit.written",
    "commit.committed",
    "compaction.picked",
    "compaction.rewritten",
    "compaction.staged",
    "compaction.before_commit",
    "compaction.committed",
    "fold.staged",
    "fold.committed",
    "expire.marked",
    "expire.forgotten",
    "ingest.committed",
    "lookup.staged",
    "erase.requested",
    "erase.deleted",
    "erase.hidden",
    "erase.written",
    "erase.rewritten",
    "erase.verified",
    "erase.proven",
    "ttl.resolved",
    "ttl.staged",
    "garbage.deleted",
    "export.part",
    "backup.dumped",
    "backup.copied",
    "backup.uploaded",
    "backup.written",
    "backup.collected",
    "restore.copied",
    "restore.loaded",
    "restore.filled",
    "restore.marked",
    "storage.temporary_written",
    "storage.linked",
)
_armed: dict[str, Callable[[], None]] = {}


def hit(name: str) -> None:
    """Run what is armed under `name`; nothing by default."""
    if _armed and name in _armed:
        _armed[name]()


@contextlib.contextmanager
def armed(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Run `action` whenever this process passes `name`, inside the `with` block."""
    _check(name)
    _armed[name] = action
    try:
        yield
    finally:
        _armed.pop(name, None)


def _check(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"no failpoint {name!r}: there are {', '.join(NAMES)}")


def _kill_after(times: int) -> Callable[[], None]:
    left = times

    def action() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return action


def _arm_from_environment(text: str) -> None:
    name, _, action = text.partition("=")
    verb, _, times = action.partition(":")
    _check(name)
    if verb != "kill":
        raise ValueError(f"HEADRACE_FAILPOINT={text!r}: the action is kill or kill:<times>")
    _armed[name] = _kill_after(int(times or 1))


if os.environ.get("HEADRACE_FAILPOINT"):
    _arm_from_environment(os.environ["HEADRACE_FAILPOINT"])
