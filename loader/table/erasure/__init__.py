"""Erasure: rows that must not be readable any more, at any snapshot, and the proof that they are not."""
