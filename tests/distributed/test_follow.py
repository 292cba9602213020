"""A followed table over Ray: fetch actors and decode actors give the increments that threads of the rank give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import loader
from loader.distributed import RayBatchStream, RayBlockStream
from tests.train.sample_table import TENSOR_COLUMNS, as_rows, create, rows

pytest.importorskip("torch")
pytestmark = pytest.mark.ray


def test_actors_give_the_increments_that_the_rank_would_make(ray_cluster: None, tmp_path: Path) -> None:
    settings = loader.Follow(name="run", poll_seconds=0.01, max_wait_seconds=0.0, idle_seconds=0.0)
    with loader.connect(tmp_path / "lake") as lake:
        table = create(lake, num_rows=150, patch=False)
        scan = table.scan(columns=TENSOR_COLUMNS, closed_before="watermark", follow=settings)
        makers: list[dict[str, Any]] = [{}, {"stream": RayBlockStream}, {"stream": RayBatchStream, "decode": "actor"}]
        loaders = [loader.DataLoader(scan, global_batch_size=16, window_rows=40, threads=1, **options) for options in makers]
        list(loaders[0])
        state = loaders[0].state_dict()
        table.append(rows(150, 260), on_conflict="trust", watermark=260)
        table.compact(full=True)
        for batches in loaders:
            batches.restart(state)
        found = [[(as_rows(batch), batches.state_dict()) for batch in batches] for batches in loaders]
        assert len(found[0]) == 211 // 16 - 71 // 16 and found[1] == found[0] and found[2] == found[0]
        with pytest.raises(ValueError, match="follow reads one plan after another"):
            loader.DataLoader(scan, global_batch_size=16, stream=RayBlockStream(loaders[0].plan.fetch_spec()))
        for batches in loaders:
            batches.close()
