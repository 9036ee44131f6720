"""The lane: one process of its own that owns the model and does one task after the other."""
