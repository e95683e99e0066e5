"""`python -m benchmarks`, verb by verb."""
