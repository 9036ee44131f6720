"""The page of `cavsam explain`: HTML that shows what happened inside a run, from a `Trace`."""

from cavsam.observe.explain.page import Context, render

__all__ = ["Context", "render"]
