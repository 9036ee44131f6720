"""What a run shows of itself: progress, timings, a trace, and the page made of it."""
