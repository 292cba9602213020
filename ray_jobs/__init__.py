"""Entry points that run as Ray jobs or as plain modules: ingest, compact, train and the quickstart."""
