"""Benchmarks of this package and its peers, each in its own processes, in alternating runs."""
