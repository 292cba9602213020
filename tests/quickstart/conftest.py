"""Streams and a lake of the tiny shop, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.quickstart import dataset
from ray_jobs.quickstart.dataset import Manifest
from tests.quickstart import toy


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    toy.write_raw(folder)
    return folder


@pytest.fixture(scope="session")
def streams(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    target = tmp_path_factory.mktemp("made") / "streams"
    return target, dataset.prepare(target, data_folder=raw_folder, batch_rows=200, batches_per_file=3)
