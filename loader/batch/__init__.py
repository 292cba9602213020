"""Batches: decoded blocks become shuffled windows, windows become batches of tensors."""
