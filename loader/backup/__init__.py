"""Backup and restore of a lake, catalog and files, to one consistent point."""
