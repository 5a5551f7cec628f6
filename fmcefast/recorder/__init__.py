"""Turns your own training loop into a run."""
