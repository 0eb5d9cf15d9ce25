"""Measuring: statistics of runs, prompt sets, comparisons at equal cost."""
