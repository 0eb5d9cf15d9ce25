"""Shipped test helpers: conformance suites for third parties' parts, and fakes named as such."""
