"""`headrace doctor`: says that all is well, explains what is not, mends what it can, and its exit code tells scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import loader
from loader.cli.app import run

Capture = pytest.CaptureFixture[str]


def execute(shop: Path, statement: str) -> None:
    with loader.connect(shop) as lake, lake.database.write() as connection:
        connection.execute(statement)


def test_a_healthy_lake(shop: Path, capsys: Capture) -> None:
    assert run(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out
    assert run(["doctor", "clicks", "--deep", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["is_clean"], report["tables"], report["findings"], report["num_sections"]) == (True, ["clicks"], [], 3)


def test_what_is_wrong_is_explained_and_mended(shop: Path, capsys: Capture) -> None:
    execute(shop, "update snapshots set num_rows = 9 where id = 3")
    assert run(["doctor"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "error snapshot-rows: clicks, snapshot 3: states 9 rows, and 6 are live in its segments" in out
    assert "why it matters: " in out
    assert "--repair: counts the live rows" in out
    assert run(["doctor", "--repair"]) == 0
    assert "repaired snapshot-rows: snapshot 3 states 6 rows" in capsys.readouterr().out
    assert run(["doctor", "--deep"]) == 0


def test_what_cannot_be_mended_says_what_to_do(shop: Path, capsys: Capture) -> None:
    execute(shop, "delete from inline_data")
    assert run(["doctor", "--repair", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {finding["code"] for finding in report["findings"]} == {"inline-bytes"}
    assert "restore the lake from a backup" in report["findings"][0]["remedy"]


def test_leftovers_are_named_and_do_not_count(shop: Path, capsys: Capture) -> None:
    execute(shop, "insert into garbage values ('data/1/x/00000000.hr', 1, 5, 'planted')")
    assert run(["doctor"]) == 0
    assert "notice garbage-waits" in capsys.readouterr().out


def test_a_table_that_is_not_there(shop: Path, capsys: Capture) -> None:
    assert run(["doctor", "click"]) == 1
    assert "did you mean clicks" in capsys.readouterr().err
