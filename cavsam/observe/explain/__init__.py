"""`cavsam explain`: one HTML page that shows what happened inside a run, from a `Trace`."""

from cavsam.observe.explain.page import Run, render

__all__ = ["Run", "render"]
