"""Having buckets to oneself while they are compacted: leases that a thread renews, and owners' names that tell whether their process still lives."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Collection, Iterator

from loader.catalog.connection import Database
from loader.catalog.leases import LEASE_SECONDS, give_buckets_back, renew_buckets, take_buckets
from loader.catalog.records import BucketLease
from loader.errors import HeadraceError

logger = logging.getLogger(__name__)


def new_owner() -> str:
    """A name for one compactor: where it runs, and what nobody else is called."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"


def is_dead(owner: str) -> bool:
    """Whether the process of an owner has ended for sure: it ran on this host, and no process has its number any more."""
    host, _, rest = owner.partition(":")
    number = rest.partition(":")[0]
    if host != socket.gethostname() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # somebody else's process, so it lives
    return False


@contextlib.contextmanager
def holding(catalog: Database, table_id: int, owner: str, buckets: Collection[int], *, seconds: float = LEASE_SECONDS) -> Iterator[BucketLease]:
    """Hold those of the buckets that are free, for as long as the block lasts.

    Args:
        catalog: The catalog.
        table_id: The table.
        owner: As `new_owner` names one.
        buckets: Wanted; the lease says which were free.
        seconds: After which a lease that is not renewed may be taken by others; it is renewed three times as often.
    """
    with catalog.write(table_id, durability="relaxed") as connection:  # a lease that the machine's power takes along is nobody's loss
        lease = take_buckets(connection, table_id, owner, list(buckets), seconds=seconds, is_dead=is_dead)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(seconds / 3):
            try:
                with catalog.write(table_id, durability="relaxed") as connection:
                    kept = renew_buckets(connection, table_id, lease, seconds=seconds)
            except HeadraceError as error:
                logger.warning("the lease on buckets %s could not be renewed, trying again: %s", lease.buckets, error)
                continue
            if kept < len(lease.buckets):
                logger.warning("another compactor took over buckets of %s: what is in hand for them will not be committed", lease.buckets)
                return

    thread = threading.Thread(target=renew, name="headrace-lease", daemon=True)
    if lease.buckets:
        thread.start()
    try:
        yield lease
    finally:
        ended.set()
        if lease.buckets:
            thread.join()
            with catalog.write(table_id, durability="relaxed") as connection:
                give_buckets_back(connection, table_id, lease)
