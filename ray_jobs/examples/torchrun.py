"""Training with plain torch.distributed: no Ray anywhere, blocks fetched by threads of each rank, restarts by torchrun.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc-per-node 2 --max-restarts 3 -m ray_jobs.examples.torchrun \\
        --lake lake/mine --table clicks --features a b --label y --folder run

A rank that dies takes the others with it, torchrun starts them all again, and they go on from the checkpoint; the same command with another number of
ranks goes on from it too. The variable gives every start a store of its own: in the shared one ranks that start again may find the addresses of dead ones,
and wait for them (pytorch/pytorch#135712).
"""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path

import torch
import torch.distributed as dist

import loader
from ray_jobs.examples import run
from ray_jobs.training.journal import RunFolder


def main() -> None:
    """One rank, as torchrun starts it."""
    options = run.Options.parse(__doc__ or "")
    torch.set_num_threads(1)
    folder = RunFolder(Path(options.folder))
    checkpoint = folder.path / "checkpoint.pt"
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=options.timeout_seconds))
    with contextlib.ExitStack() as held:
        held.callback(dist.destroy_process_group)
        if dist.get_rank() == 0:
            with run.open_scan(options) as scan:
                run.prepare(options, scan)
        dist.barrier()
        snapshot = json.loads(folder.plan.read_text(encoding="utf-8"))["snapshot"]
        scan = held.enter_context(run.open_scan(options, snapshot))
        batches = held.enter_context(loader.DataLoader(scan, **options.loader_options))  # rank and world size are torch.distributed's
        saved = run.read(checkpoint)
        if saved is not None:
            batches.load_state_dict(run.loader_state(saved) or {})
        run.train(batches, options, saved, save=lambda value: None if value is None else run.write(checkpoint, value))


if __name__ == "__main__":
    main()
