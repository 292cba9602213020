"""The kernels compile for the GPUs they are meant for, without spills and within their registers."""

from __future__ import annotations

import pathlib

import pytest

from loader.kernels import nvrtc

REGISTERS = {
    "decode_stage": 64, "permute_window": 64, "scatter_patches": 32, "batch_rows": 40, "list_sums": 40, "scan_lists": 32, "list_offsets": 40, "list_values": 40,
}  # fmt: skip


MORE_REGISTERS = {("decode_stage", "sm_100"): 80}  # three blocks of 256 threads fit a multiprocessor, as everywhere else


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_without_spills_or_local_memory(architecture: str) -> None:
    if nvrtc.available() is None:
        pytest.skip("no CUDA compiler: neither nvcc, nor cupy, nor an nvidia-cuda-nvrtc wheel")
    reports = nvrtc.compile_kernels(architecture)
    assert {report.name for report in reports} == set(REGISTERS)
    for report in reports:
        assert report.spill_bytes == report.stack_bytes == 0, report
        assert report.registers <= MORE_REGISTERS.get((report.name, architecture), REGISTERS[report.name]), report
        assert report.shared_bytes <= 8192, report


def test_a_kernel_that_does_not_compile_shows_the_compilers_words() -> None:
    if nvrtc.available() is None:
        pytest.skip("no CUDA compiler")
    with pytest.raises(nvrtc.CompileError, match="could not compile [a-z]+.cu for sm_1"):
        nvrtc.compile_kernels("sm_1")


def test_a_wheel_whose_library_does_not_load_is_left_to_cupys_own_words(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
    library.parent.mkdir(parents=True)
    library.write_text("not a library")
    (library.parent / "libnvrtc-builtins.so.12.9").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(library) in nvrtc._nvrtc_libraries()
    assert not any("builtins" in path for path in nvrtc._nvrtc_libraries())
    nvrtc.load_wheels()
