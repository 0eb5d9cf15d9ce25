"""Tiller."""
