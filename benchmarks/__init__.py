"""Measurements against other engines; run as ``python -m benchmarks.layers`` and the like."""
