"""The doctor: checks every invariant of a lake, explains what is wrong, and offers the repair."""
