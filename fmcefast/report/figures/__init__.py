"""The figures: one look, and a function for each."""
