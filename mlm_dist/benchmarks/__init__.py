"""Benchmarks of this package and its peers in alternating runs, and plans of runs, each in processes of its own."""
