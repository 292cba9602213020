"""The README's code runs as it stands: the training loop on a lake with the quickstart's schema, and the example of writing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import loader

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LAKE = "runs/quickstart/lake"
ROWS = 12_000
DAY = 86_400
FIRST_DAY = 1_483_228_800  # 2017-01-01


def block_with(text: str) -> str:
    """The first block of code that holds a text."""
    return next(block for block in BLOCKS if text in block)


@pytest.fixture
def quickstart_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lake as the quickstart leaves it, with few rows, under the current folder."""
    dataset = pytest.importorskip("ray_jobs.quickstart.dataset")
    random = np.random.default_rng(17)
    lengths = random.integers(0, 5, ROWS)
    ends = np.cumsum(lengths)
    entries = random.integers(1, 60_000, ends[-1]).astype(np.int32)
    given = {
        "household_id": random.integers(1, 100, ROWS),
        "basket_id": np.arange(ROWS),
        "product_id": random.integers(1, 1000, ROWS),
        "ts": FIRST_DAY + np.sort(random.integers(0, 330 * DAY, ROWS)),
        "product": random.integers(1, 60_000, ROWS).astype(np.int32),
        "pair_count": random.integers(0, 9, ROWS).astype(np.int32),
        "history": [part.tolist() for part in np.split(entries, ends[:-1])],
        "label": pa.array(random.integers(0, 2, ROWS).astype(np.int8), mask=random.random(ROWS) < 0.7),
    }
    schema = dataset.table_schema()
    columns = [pa.array(given.get(field.name, [None] * ROWS), field.type) for field in schema]
    with loader.connect(tmp_path / LAKE) as lake:
        table = lake.create_table(
            "samples",
            schema,
            primary_key=list(dataset.KEY),
            bucket_by=["household_id"],
            cluster_by=["household_id", dataset.TIME],
            time_column=dataset.TIME,
            attribution=loader.Attribution(column=dataset.LABEL, window_seconds=28 * DAY),
        )
        table.append(pa.table(columns, schema=schema), watermark=FIRST_DAY + 330 * DAY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_training_loop_runs_and_its_state_goes_on(quickstart_lake: Path) -> None:
    names: dict[str, object] = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    batches, closed = names["batches"], int(np.sum(_times(quickstart_lake) + 28 * DAY <= _cut()))
    assert isinstance(batches, loader.DataLoader)
    assert len(batches) == closed // 4096 > 0
    assert batches.stats().rows == len(batches) * 4096
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    exec(compile(block_with("loader.Transforms("), "README.md", "exec"), names)
    batch = next(iter(names["batches"]))  # type: ignore[call-overload]
    assert batch["kjt"].keys == ("history",)


def test_the_training_loop_has_ten_lines_after_the_imports() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line and not line.startswith("import ")]) <= 10


def test_the_example_of_writing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block_with("create_table("), "README.md", "exec"), names)
    table = names["table"]
    assert isinstance(table, loader.Table)
    assert table.to_arrow(["sample", "label"], closed_before="watermark").sort_by("sample").to_pylist() == [
        {"sample": 1, "label": 0},
        {"sample": 2, "label": 1},
    ]
    assert "label" in capsys.readouterr().out


def test_every_link_and_script_is_there() -> None:
    root = Path(__file__).parents[1]
    for target in [*re.findall(r"\]\(([^)#]+)\)", README), *re.findall(r"scripts/\w+", README)]:
        assert (root / target).exists(), target


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from loader.cli.app import run

    run(["--help"])
    commands = re.findall(r"^  (\w+)  ", capsys.readouterr().out.partition("Commands:")[2], flags=re.MULTILINE)
    assert commands
    for command in commands:
        assert f"headrace {command}" in README


def _times(folder: Path) -> np.ndarray:
    with loader.connect(folder / LAKE) as lake:
        return lake.table("samples").to_arrow(["ts"])["ts"].cast(pa.int64()).to_numpy()


def _cut() -> int:
    return int(np.datetime64("2017-10-20").astype("datetime64[s]").astype(np.int64))
