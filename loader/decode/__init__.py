"""Decoding a slab of chunks into an arena: the op table, its executors, and the columns they yield."""
