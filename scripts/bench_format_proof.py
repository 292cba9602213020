"""What stands between Headrace's decode and this machine's memory: each stage of it beside the time in which memory could move the same bytes.

Made of one run's figures: stages and their bytes (bench_format_stages.py), speeds of memory (`limits`), decode times. Nothing here is measured.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench_format_measure import CACHED_BYTES
from rich.console import Console
from rich.table import Table

Report = dict[str, Any]
# What moves a stage's bytes at best; lists are laid out in buffers that stay in a cache, some rows at a time, and so are the regions of a small block.
MEMORY_OF = {"read": "copy", "checksums": "read", "lists": "write_cached"}


def profile(part: Report, cores: str) -> Report | None:
    """The stages of a decode on so many cores, None where they were not timed.

    Returns:
        `stages`: name, seconds, share of their sum, bytes, the speed of memory that applies and the seconds it takes (None for what moves no bytes of note:
        opening, views, tensors). `seconds`: of the stages together, `scan_seconds`: of a whole decode in the rounds, `memory_seconds`: in which memory moves
        the bytes of all stages, `call_seconds`: of stages without bytes.
    """
    figure = part["formats"]["Headrace"][cores]
    if not figure.get("stage_seconds"):
        return None
    sizes, limits, found = figure["stage_bytes"], part["limits"][cores], []
    total = sum(figure["stage_seconds"].values())
    regions = sum(num_bytes for name, num_bytes in sizes.items() if name not in MEMORY_OF)
    of_ops = "write_cached" if regions <= CACHED_BYTES else "write_warm"
    for name, seconds in figure["stage_seconds"].items():
        memory = MEMORY_OF.get(name, of_ops) if sizes.get(name) else None
        best = sizes[name] / statistics.median(limits[f"{memory}_bytes_per_second"]) if memory else None
        found.append({"name": name, "seconds": seconds, "share": seconds / total, "bytes": sizes.get(name, 0), "memory": memory, "memory_seconds": best})
    return {
        "stages": found,
        "seconds": total,
        "scan_seconds": statistics.median(figure["decode_seconds"]),
        "memory_seconds": sum(stage["memory_seconds"] or 0 for stage in found),
        "call_seconds": sum(stage["seconds"] for stage in found if stage["memory"] is None),
        "num_tensors": figure["num_tensors"],
    }


def limit(found: Report, peer_seconds: float) -> Report:
    """How many times a peer's speed this machine permits: were there nothing but its memory, and with the calls that name views and tensors."""
    return {
        "memory_ratio": peer_seconds / found["memory_seconds"],
        "memory_and_calls_ratio": peer_seconds / (found["memory_seconds"] + found["call_seconds"]),
        "ratio": peer_seconds / found["scan_seconds"],
    }


def explain(found: Report, peer: str, peer_seconds: float, asked: float) -> str:
    """Why the target is missed: what it leaves, what memory alone takes of that, and which stages take most beyond memory's time."""
    ratios = limit(found, peer_seconds)
    over = sorted((stage for stage in found["stages"] if stage["memory"]), key=lambda stage: stage["memory_seconds"] - stage["seconds"])[:3]
    largest = ", ".join(f"{stage['name']} {stage['seconds'] * 1e3:.1f} of which memory {stage['memory_seconds'] * 1e3:.1f}" for stage in over)
    return (
        f"{asked:g} × {peer} leaves {peer_seconds / asked * 1e3:.1f} ms. Moving the bytes of its stages at this machine's speeds alone takes "
        f"{found['memory_seconds'] * 1e3:.1f} ms ({ratios['memory_ratio']:.1f} ×), with {found['call_seconds'] * 1e3:.1f} ms of calls that open, show and name "
        f"{found['num_tensors']:,} tensors {ratios['memory_and_calls_ratio']:.1f} × is what the machine permits were decoding free; measured "
        f"{found['scan_seconds'] * 1e3:.1f} ms, {ratios['ratio']:.1f} ×. Most beyond memory's time, ms: {largest}"
    )


def show(console: Console, title: str, cores: str, found: Report, peer: str | None, peer_seconds: float) -> None:
    """Print the stages as a table, with what the machine permits beside the fastest compressed peer."""
    table = Table(title=f"{title}, {cores} core{'s' if cores != '1' else ''}: the stages of a decode, each alone", title_justify="left")
    for column in ("", "ms", "share", "MB", "GB/s", "memory's speed", "ms at that speed"):
        table.add_column(column, justify="left" if column in ("", "memory's speed") else "right")
    for stage in found["stages"]:
        cells = [f"{stage['seconds'] * 1e3:.2f}", f"{stage['share']:.0%}"]
        if stage["memory"]:
            cells += [f"{stage['bytes'] / 1e6:.1f}", f"{stage['bytes'] / stage['seconds'] / 1e9:.1f}", stage["memory"].replace("_", " ")]
            cells.append(f"{stage['memory_seconds'] * 1e3:.2f}")
        table.add_row(stage["name"], *cells)
    table.add_section()
    table.add_row("together", f"{found['seconds'] * 1e3:.2f}", "", "", "", "", f"{found['memory_seconds'] * 1e3:.2f}")
    table.add_row("a whole decode", f"{found['scan_seconds'] * 1e3:.2f}", f"{found['scan_seconds'] / found['seconds']:.0%}")
    console.print(table)
    if peer is not None:
        ratios = limit(found, peer_seconds)
        console.print(
            f"  {peer} takes {peer_seconds * 1e3:.1f} ms: {ratios['ratio']:.1f} × as long; the machine permits {ratios['memory_ratio']:.1f} × by memory alone, "
            f"{ratios['memory_and_calls_ratio']:.1f} × with the {found['call_seconds'] * 1e3:.1f} ms of calls that move nothing"
        )
