"""Sources of events, one kind a file."""
