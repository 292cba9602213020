"""Pages read natively are the file's, or are named with what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loader.kernels import native
from loader.kernels.native_pages import PAGE_READ, PageOutcome

PAGE = 4096


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "pages"
    path.write_bytes(np.random.default_rng(1).bytes(20 * PAGE + 100))
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


def reads_of(library: native.NativeLibrary, file: int, pages: list[int], out: np.ndarray) -> np.ndarray:
    found = np.zeros(len(pages), PAGE_READ)
    for record, (place, page) in zip(found, enumerate(pages), strict=True):
        size = min(PAGE, 20 * PAGE + 100 - page * PAGE)
        data = os.pread(file, size, page * PAGE)
        record["offset"], record["target"], record["num_bytes"], record["file"] = page * PAGE, out.ctypes.data + place * PAGE, size, file
        record["checksum"] = library.crc32c(data)
    return found


@pytest.mark.parametrize("threads", [1, 8])
def test_pages_arrive_and_what_is_wrong_is_named(file: int, threads: int) -> None:
    library = native.load()
    if library is None:
        pytest.skip("no native library")
    pages = [19, 3, 20, 0, 7]
    out = np.zeros(len(pages) * PAGE, np.uint8)
    reads = reads_of(library, file, pages, out)
    assert library.read_pages(reads, threads) is None
    assert out[PAGE : 2 * PAGE].tobytes() == os.pread(file, PAGE, 3 * PAGE)
    assert out[2 * PAGE : 2 * PAGE + 100].tobytes() == os.pread(file, 100, 20 * PAGE)
    assert library.read_pages(reads[:0], threads) is None
    for name, value, outcome in (("checksum", 1, PageOutcome.CHANGED), ("offset", 21 * PAGE, PageOutcome.CUT_OFF), ("file", -1, PageOutcome.FAILED)):
        wrong = reads.copy()
        wrong[name][2] = value
        assert library.read_pages(wrong, threads) == (2, outcome)
    with pytest.raises(ValueError, match="PAGE_READ"):
        library.read_pages(out, threads)
