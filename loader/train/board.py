"""A board on this machine where running loaders post their statistics, for `headrace top`. Owns the folder and its files; nothing is sent anywhere.

Each loader has one small JSON file, written anew about every second and removed when the loader ends. Those of processes that died are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "HEADRACE_BOARD"


def board_folder() -> Path:
    """`HEADRACE_BOARD`, or a folder of this user's own among the temporary files."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given) if given else Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"headrace-{os.getuid()}"


class Post:
    """One loader's place on the board. A board that cannot be written is done without: statistics never stop a training job.

    Args:
        name: Unique in this process.
    """

    def __init__(self, name: str) -> None:
        self._path = board_folder() / f"{os.getpid()}-{name}.json"
        self._usable = True

    def write(self, values: Mapping[str, Any]) -> None:
        """Show these values from now on."""
        if not self._usable:
            return
        temporary = self._path.with_suffix(".part")
        try:
            _own_folder(self._path.parent)
            temporary.write_text(json.dumps({"pid": os.getpid(), **values}), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            self._usable = False

    def remove(self) -> None:
        """Show nothing any more."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def _own_folder(folder: Path) -> None:
    """Make the folder, for this user alone.

    Raises:
        PermissionError: It is there and belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this user's folder")


def read_board() -> list[dict[str, Any]]:
    """What the running loaders of this user post, by process and name."""
    found = []
    for path in sorted(board_folder().glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            alive = _is_alive(int(values["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being removed, or not ours
        if alive:
            found.append(values)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
