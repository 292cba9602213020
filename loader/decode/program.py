"""The decode program: chunk headers of one slab as one relocated, verified op table."""

from __future__ import annotations

import numpy as np

PROGRAM_OP = np.dtype(
    [
        ("kind", "u1"),
        ("out_kind", "u1"),
        ("scan", "u1"),
        ("num_sources", "u1"),
        ("level", "u1"),
        ("flags", "u1"),
        ("reserved", "<u2"),
        ("count", "<u4"),
        ("first_source", "<u4"),
        ("dict_count", "<u4"),
        ("num_patches", "<u4"),
        ("scale", "<u4"),
        ("chunk", "<u4"),  # which chunk of the program, for error reports
        ("out", "<u8"),  # arena offset of item 0
        ("dict", "<u8"),  # arena offset of the dictionary, NO_OFFSET if none
        ("anchors", "<u8"),  # slab offsets from here on, NO_OFFSET if none
        ("scan_anchors", "<u8"),
        ("bits0", "<u8"),
        ("bits1", "<u8"),
        ("patches", "<u8"),
        ("base", "<i8"),
        ("view_base", "<u4"),  # added to the start of every view: pools of several blocks laid end to end
        ("reserved1", "<u4"),
    ]
)
PROGRAM_SOURCE = np.dtype([("data", "<u8"), ("meta", "<u8"), ("kind", "<u4"), ("value", "<u4"), ("count", "<u4"), ("num_words", "<u4")])
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
