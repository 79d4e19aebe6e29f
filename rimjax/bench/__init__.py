"""Benchmarks: the kernels beside their peers, checked for correctness before anything is timed."""
