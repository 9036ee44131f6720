"""The store: one SQLite file that survives restarts."""
