"""Compaction: pick what is worth merging, rewrite it, and swap it in."""
