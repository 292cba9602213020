"""The `headrace` command. Owns argument parsing, terminal output and exit codes; all work is done by the packages below."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script; ends the process with 0, 1 (an error that says what to do), 2 (wrong usage) or 130 (Ctrl-C)."""
    from loader.cli.app import run

    raise SystemExit(run())
