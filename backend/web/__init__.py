"""The HTTP layer: Label Studio's routes, the status page, and its controls."""
