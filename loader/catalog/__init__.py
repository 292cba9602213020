"""The catalog: a SQL database that says which files make up which snapshot of which table."""
