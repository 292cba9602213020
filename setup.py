"""Adds the native library to a build where a C++ compiler is present; everything else about the package is in setup.cfg."""

from __future__ import annotations

import importlib.util
import pathlib

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = pathlib.Path(__file__).parent / "loader" / "kernels"
spec = importlib.util.spec_from_file_location("headrace_build", KERNELS / "build.py")
assert spec is not None and spec.loader is not None
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


class BuildNative(build_ext):
    """Compiles with the package's own compiler flags. A failure is a warning: the NumPy reference serves without the library."""

    def build_extension(self, ext: Extension) -> None:
        target = pathlib.Path(self.get_ext_fullpath(ext.name))
        try:
            build.compile_library(target)
        except (build.BuildError, OSError) as error:
            self.warn(f"Headrace is installed without its native library and will decode slower: {error}")

    def get_ext_filename(self, fullname: str) -> str:
        return str(pathlib.Path(*fullname.split(".")).with_suffix(".so"))

    def copy_extensions_to_source(self) -> None:
        """For editable installs; skips what was not built."""
        self.extensions = [ext for ext in self.extensions if pathlib.Path(self.build_lib, self.get_ext_filename(ext.name)).exists()]
        super().copy_extensions_to_source()


setup(
    ext_modules=[Extension("loader.kernels._native", sources=["loader/kernels/host.cpp"], language="c++", optional=True)],
    cmdclass={"build_ext": BuildNative},
)
