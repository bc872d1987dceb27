"""Benchmarks: speed and memory, never correctness (that is what tests/ is for)."""
