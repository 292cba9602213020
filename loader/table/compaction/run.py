"""stub"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionOptions:
    min_segments: int = 4


class CompactionReport: ...


Progress = Callable[[Any], None]


def compact(context, *, full, options, progress):
    raise NotImplementedError
