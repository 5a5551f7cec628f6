"""Reads loss logs of other tools: CSV, JSON Lines, JSON, parquet, .npy, TensorBoard events, Markdown, plain numbers."""
