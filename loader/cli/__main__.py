"""`python -m loader.cli` is `headrace`."""

from __future__ import annotations

from loader.cli import main

main()
