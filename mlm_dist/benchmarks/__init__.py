"""Benchmarks of this package and its peers, each in processes of its own, in alternating runs."""
