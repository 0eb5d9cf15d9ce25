"""Spaces: what may change in a frozen model's input, one file a kind."""
