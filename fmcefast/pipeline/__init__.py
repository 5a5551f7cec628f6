"""The stages of a run in order, and what is asked of all of them."""
