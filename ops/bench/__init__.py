"""Benchmarks: the fleet beside what a user would build instead, in one run on one server. `make bench`."""
