"""Whole-engine benchmarks against peers that run the same weights."""
