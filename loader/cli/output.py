"""What commands print: tables, bars, progress and JSON, and the options that they share.

Results go to standard output, messages and progress to standard error, so that `headrace … --json | jq` works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from loader.lake import Lake

_WIDE = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # into a file or a pipe, lines need not fit a screen
console = Console(highlight=False, width=_WIDE)
messages = Console(stderr=True, highlight=False)

LakeOption = Annotated[str, typer.Option("--lake", envvar="HEADRACE_LAKE", help="Folder or URL of the lake.", show_default=True)]
CatalogOption = Annotated[str | None, typer.Option("--catalog", envvar="HEADRACE_CATALOG", help="URL of its catalog; default, SQLite inside the lake.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
DEFAULT_LAKE = "./lake"
STOPPED = "the lake is as the last commit left it"


@dataclasses.dataclass
class _Settings:
    """What holds for the whole process.

    Attributes:
        verbose: Given before the command.
        on_stop: What Ctrl-C leaves, as the command would say it; None if the command says so itself.
    """

    verbose: bool = False
    on_stop: str | None = STOPPED


settings = _Settings()


def fail(message: str, code: int = 1) -> int:
    """Print one line that starts with `error:` and return the exit code."""
    messages.print("error: " + " ".join(message.split()), markup=False, soft_wrap=True, style=None)
    return code


@contextlib.contextmanager
def open_lake(location: str, catalog: str | None, *, create: bool = False) -> Iterator[Lake]:
    """Connect for one command and close after it."""
    import loader

    lake = loader.connect(location, catalog=catalog, create=create)
    try:
        yield lake
    finally:
        lake.close()


def plain(value: Any) -> Any:
    """Values as JSON knows them: dataclasses become objects, times ISO text, NumPy scalars numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """A table without borders; numbers to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        right = bool(rows) and all(isinstance(row[index], (int, float)) or str(row[index])[:1].isdigit() for row in rows)
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    console.print(table)


def _cell(item: Any) -> Text:
    if isinstance(item, Text):
        return item
    return Text(f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) else str("" if item is None else item))


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Names and values under each other."""
    table = Table.grid(padding=(0, 2))
    for key, value in pairs.items():
        table.add_row(Text(key, style="bold"), _cell("–" if value is None else value))
    console.print(table)


def bar(share: float, width: int = 16) -> str:
    """A bar of `width` cells, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def bars(share: float) -> Text:
    """A bar as a table's cell: never wrapped."""
    return Text(bar(share), no_wrap=True)


def size(num_bytes: int) -> str:
    """Bytes in the unit that reads best."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{num_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def state_file(command: str, lake: str, catalog: str | None, table: str | None) -> Path:
    """Where a run that was stopped is remembered: with the user, because a lake may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = lake if "://" in lake else str(Path(lake).resolve())
    name = hashlib.blake2b(repr((place, catalog, table)).encode(), digest_size=12).hexdigest()
    return cache / "headrace" / command / f"{name}.json"


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields `advance(done, total)`. Shown only on a terminal, and gone afterwards."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as shown:
        task = shown.add_task(text, total=None)

        def advance(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        yield advance


@contextlib.contextmanager
def counter(text: str) -> Iterator[Callable[[int], None]]:
    """A running count of rows and rows a second, where the total is not known; yields `count(rows)`."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as shown:
        task = shown.add_task(text, total=None)
        yield lambda rows: shown.update(task, completed=rows)
