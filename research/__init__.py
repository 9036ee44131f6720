"""Research: synthetic data, benchmarks, and the training of the bundled models; not part of the wheel."""
