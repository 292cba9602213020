"""Scans: what to read (predicate, prune, plan), in which order, and how its blocks arrive (coalesce, fetch, stream)."""
