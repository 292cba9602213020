"""The quickstart: real shopping baskets from event streams to a trained, audited and compared model, in one command."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; see `ray_jobs.quickstart.driver`, which is imported only now."""
    from ray_jobs.quickstart import driver

    return driver.main(arguments)
