"""Tables: writing by key, resolving overlays by position, compaction."""
