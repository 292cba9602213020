"""Renewing a pin while work on its snapshot goes on. Owns how often, and that a busy catalog stops nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from loader.errors import HeadraceError

logger = logging.getLogger(__name__)

RENEW_SECONDS = 3600


class Renewal:
    """Calls `renew` once an hour, however often it is asked; pins last a day, so many calls may fail before one lapses.

    By the wall clock, as pins: a machine that slept renews when it wakes.
    """

    def __init__(self, renew: Callable[[], None]) -> None:
        self._renew = renew
        self._last = time.time()

    def __call__(self) -> None:
        """Renew, if it is time."""
        if time.time() - self._last < RENEW_SECONDS:
            return
        self._last = time.time()
        try:
            self._renew()
        except HeadraceError as error:
            logger.warning("a pin could not be renewed; it is tried again in an hour: %s", error)


def let_go(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Release the snapshots that a loader's attributes hold, where another's do not hold them too."""
    if one["_follower"] is not None:
        if one["_follower"] is not other.get("_follower"):
            one["_follower"].close()
    elif one["plan"] is not other.get("plan"):
        one["plan"].release()
