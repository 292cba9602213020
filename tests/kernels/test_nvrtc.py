"""The kernels compile for the GPUs they are meant for, without spills and within their registers."""

from __future__ import annotations

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
