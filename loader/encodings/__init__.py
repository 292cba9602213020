"""Encodings of a column of a block: choose, encode, and the NumPy reference of each; one encoding a file."""
