"""Runs a loader on the host runtime, and compares its batches with the CPU's bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import loader
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.runtime import override


def host_runtime(schedule: str = "forward", timing: str = "random", seed: int = 0) -> HostRuntime:
    return HostRuntime(schedule=schedule, timing=timing, seed=seed)


def tensors(batch: loader.Batch) -> dict[str, np.ndarray]:
    """Every byte that a batch shows: columns, offsets, inverses, validity, mask, positions."""
    shown: dict[str, Any] = {"mask": batch.mask, "positions": torch.from_numpy(batch.positions())}
    for name, column in batch.items():
        shown[f"validity of {name}"] = batch.validity[name]
        if isinstance(column, loader.Jagged):
            parts = {"values": column.values, "offsets": column.offsets, "inverse": column.inverse}
            shown |= {f"{part} of {name}": tensor for part, tensor in parts.items() if tensor is not None}
        else:
            shown[name] = column
    return {name: bits(tensor) for name, tensor in shown.items()}


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor's bytes behind its shape and type."""
    return np.frombuffer(repr((tuple(tensor.shape), tensor.dtype)).encode() + tensor.numpy().tobytes(), np.uint8)


def assert_same(batch: loader.Batch, want: loader.Batch, where: object = "") -> None:
    got, wanted = tensors(batch), tensors(want)
    assert got.keys() == wanted.keys(), where
    wrong = [name for name in wanted if not np.array_equal(got[name], wanted[name])]
    assert not wrong, f"{where}: {wrong} differ: {batch[wrong[0].split()[-1]] if wrong[0] not in ('mask', 'positions') else ''}"
    assert (batch.num_rows, batch.num_samples) == (want.num_rows, want.num_samples), where


def compare(make: Any, runtime: HostRuntime) -> int:
    """Iterate the same loader on the CPU and on the host runtime; every batch and every state must be the same. The number of batches."""
    number = 0
    with override(runtime), make(device="cpu") as cpu, make(device="cuda") as gpu:
        for number, (want, batch) in enumerate(zip(cpu, gpu, strict=True), 1):
            assert_same(batch, want, number)
            assert gpu.state_dict() == cpu.state_dict()
            del batch
    runtime.finish()
    return number


def batches_of(table: loader.Table, columns: list[str], **options: Any) -> Iterator[loader.Batch]:
    with loader.DataLoader(table.scan(columns=columns), **options) as batches:
        yield from batches
