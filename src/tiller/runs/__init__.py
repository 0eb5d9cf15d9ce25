"""Runs: the folder a run lives in, its journal, its report and its exports."""
