"""Storage: whole or not at all, written once, near ranges read together."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import failpoints
from loader.errors import AlreadyExistsError, ForkedProcessError, NotFoundError, StorageError, StorageFullError, TruncatedSegmentError
from loader.storage import Storage, coalesce


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "files" if request.param == "local" else f"memory://{tmp_path.name}-{request.node.name}")


def test_reads_back_ranges_in_the_order_asked(storage: Storage) -> None:
    data = bytes(range(256)) * 400
    storage.put("a/b/c.bin", data)
    ranges = [(90_000, 10), (0, 5), (5, 0), (3, 70_000), (102_399, 1)]
    assert [bytes(part) for part in storage.read_ranges("a/b/c.bin", ranges)] == [data[at : at + size] for at, size in ranges]
    assert storage.size("a/b/c.bin") == len(data)
    assert bytes(storage.section("a/b/c.bin", 256, 100).read_ranges([(1, 3)])[0]) == data[257:260]


def test_what_was_read_may_be_taken_for_an_array_of_any_type(storage: Storage) -> None:
    storage.put("x", bytes(range(256)) * 40)
    for start in range(1, 70, 3):
        (part,) = storage.read_ranges("x", [(start, 999)])
        assert bytes(part[:3]) == bytes([start, start + 1, start + 2]) and np.frombuffer(part, np.uint8).ctypes.data % 16 == 0


def test_a_path_is_written_once(storage: Storage) -> None:
    storage.put("x", b"first")
    with pytest.raises(AlreadyExistsError, match="written once"):
        storage.put("x", b"second")
    assert bytes(storage.read("x")) == b"first"


def test_missing_and_deleted_objects(storage: Storage) -> None:
    storage.put("x", b"data")
    storage.delete(["x", "never/there"])
    with pytest.raises(NotFoundError):
        storage.size("x")
    with pytest.raises(NotFoundError):
        storage.read_ranges("x", [(0, 1)])


def test_a_read_past_the_end_is_an_error(storage: Storage) -> None:
    storage.put("x", b"12345")
    with pytest.raises(TruncatedSegmentError):
        storage.read_ranges("x", [(2, 10)])
    with pytest.raises(StorageError, match="leaves the section"):
        storage.section("x", 1, 3).read_ranges([(2, 2)])


def test_what_the_system_refuses_is_a_storage_error_that_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    storage = Storage.open(tmp_path)
    for path in ("loop/x", "n" * 300):
        with pytest.raises(StorageError, match=f"cannot read .*{path[:5]}"):
            storage.exists(path)
    with pytest.raises(StorageError, match="cannot read .*folder: Is a directory"):
        storage.read_ranges("folder", [(0, 1)])


def test_a_file_url_with_a_host_is_not_taken_for_another_folder() -> None:
    assert Storage.open("file:///tmp/a%20b").url == Storage.open("/tmp/a b").url
    with pytest.raises(ValueError, match="write file:///absolute/path"):
        Storage.open("file://data/lake")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../b", "a//b", "./a", "a\\b", "a/", "a\0b"])
def test_paths_from_data_stay_inside(storage: Storage, path: str) -> None:
    with pytest.raises(StorageError, match="plain relative path"):
        storage.put(path, b"x")
    with pytest.raises(StorageError, match="plain relative path"):
        storage.read_ranges(path, [(0, 1)])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_says_path_and_bytes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    storage = Storage.open(tmp_path)
    real = os.write

    def write(file: int, data: Any) -> int:
        if len(data) < 1000:
            return real(file, data[:100])
        real(file, data[:100])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageFullError, match=r"no space left to write .*deep/x: 5,000 bytes wanted, [\d,]+ free"):
        storage.put("deep/x", b"." * 5000)
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    storage.put("deep/x", b"now it fits")


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        storage = Storage.open(folder)
        storage.put("small", b"." * 1000)
        with pytest.raises(StorageFullError, match="200,000 bytes wanted"):
            storage.put("large", b"." * 200_000)
        assert sorted(path.name for path in folder.iterdir()) == ["small"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["storage.temporary_written", "storage.linked"])
def test_an_interrupted_write_can_be_repeated_or_is_whole(tmp_path: Path, name: str) -> None:
    storage = Storage.open(tmp_path)

    def stop() -> None:
        raise KeyboardInterrupt

    with failpoints.armed(name, stop), pytest.raises(KeyboardInterrupt):
        storage.put("x", b"data")
    if name == "storage.temporary_written":
        assert not storage.exists("x")
        storage.put("x", b"data")
    assert bytes(storage.read("x")) == b"data"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@given(ranges=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60)), max_size=20), gap=st.integers(0, 50), most=st.integers(1, 200))
def test_coalesced_requests_cover_every_range_once(ranges: list[tuple[int, int]], gap: int, most: int) -> None:
    requests = coalesce(ranges, gap_bytes=gap, max_request_bytes=most)
    assert sorted(index for _, _, members in requests for index in members) == list(range(len(ranges)))
    for start, stop, members in requests:
        assert all(start <= ranges[i][0] and sum(ranges[i]) <= stop for i in members)
        assert stop - start <= most or len(members) == 1
    assert all(before[0] <= after[0] for before, after in zip(requests, requests[1:], strict=False))


def test_pickles_by_url_alone(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.put("x", b"data")
    assert bytes(pickle.loads(pickle.dumps(storage)).read("x")) == b"data"
    with pytest.raises(TypeError, match="this process alone"):
        pickle.dumps(Storage.open("memory://here"))


def test_refuses_to_work_in_a_forked_child(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.put("x", b"data")
    child = os.fork()
    if child == 0:
        try:
            storage.read_ranges("x", [(0, 1)])
        except ForkedProcessError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
