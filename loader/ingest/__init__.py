"""Streams into tables: sources that can be replayed, their merge in event time, and the loop that commits each micro-batch exactly once."""
