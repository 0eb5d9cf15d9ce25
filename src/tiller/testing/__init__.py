"""Conformance suites and fakes, shipped for tests; never a default path."""
