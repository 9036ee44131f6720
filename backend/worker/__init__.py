"""The model process and the worker that feeds it."""
