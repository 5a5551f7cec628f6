"""The stages of a run: one module, and in it one Stage object, for each."""
