"""Child processes for tests of writers: forked before anything of ours is open, so that they start at once; each opens the lake itself."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def start(work: Callable[[], None]) -> int:
    """Run `work` in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must never return into the test
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    """The exit code of a child; −9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_self() -> None:
    """What a failpoint does in a child: no clean-up of any kind."""
    os.kill(os.getpid(), signal.SIGKILL)
