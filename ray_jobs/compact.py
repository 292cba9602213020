"""Compact a table: `python -m ray_jobs.compact LAKE TABLE [--full]`, alone or under `ray job submit`.

Merges small segments and folds labels into rows, a bucket and time partition at a time; each is committed by itself, so that a run that is
stopped has lost nothing, and the next one goes on with what is left.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import loader
from loader.errors import HeadraceError

log = logging.getLogger("headrace.compact")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when nothing is left worth doing, 1 for an error it can name, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.compact", description="Merge small segments and fold patches into rows.")
    parser.add_argument("lake", help="folder or URL of the lake")
    parser.add_argument("table")
    parser.add_argument("--catalog", help="URL of the catalog, if it is not inside the lake")
    parser.add_argument("--full", action="store_true", help="rewrite everything that is not one sorted run, not only what is worth it by size")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with loader.connect(options.lake, catalog=options.catalog, create=False) as lake:
            report = lake.table(options.table).compact(full=options.full)
    except HeadraceError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.warning("stopped; what was rewritten is committed, and the same command goes on with the rest")
        return INTERRUPTED
    log.info(
        "%d segments became %d, %s bytes became %s, in %.1f s",
        report.segments_before,
        report.segments_after,
        f"{report.bytes_before:,}",
        f"{report.bytes_after:,}",
        report.seconds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
