"""All stages of a run: their order, what other settings do to them, what they cost, whether their files are whole."""
