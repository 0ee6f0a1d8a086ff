"""Benchmarks of time and memory against other packages. Not part of the package."""
