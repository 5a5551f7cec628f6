"""A run folder: its configuration and its files."""
