"""The segment format: byte layout (FORMAT.md), writer, reader, checksums and key index."""
