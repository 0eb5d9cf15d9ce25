"""Solvers, one file an algorithm. The folder's listing is the registry."""
