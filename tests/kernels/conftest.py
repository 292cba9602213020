"""Compiled libraries for the kernel tests, kept between runs under pytest's cache by the hash of their sources."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from loader.kernels import build, native


@pytest.fixture(scope="session")
def build_folder(request: pytest.FixtureRequest) -> pathlib.Path:
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    return pathlib.Path(request.config.cache.mkdir("headrace-kernels"), build.source_hash())


@pytest.fixture(scope="session")
def library_path(build_folder: pathlib.Path) -> pathlib.Path:
    """The library inside the package if it is from these sources, else one compiled for the tests."""
    packaged = build.FOLDER / build.LIBRARY
    if packaged.exists() and build.source_hash().encode() in packaged.read_bytes():
        return packaged
    return build.ensure(build_folder)


@pytest.fixture(scope="session")
def library(library_path: pathlib.Path) -> native.NativeLibrary:
    return native.NativeLibrary(library_path)


@pytest.fixture(params=["best", "portable"])
def each_library(request: pytest.FixtureRequest, library: native.NativeLibrary) -> Iterator[native.NativeLibrary]:
    """The library with the best instruction set of this machine, and with the portable one."""
    library.force_portable(request.param == "portable")
    yield library
    library.force_portable(False)
