"""The stages of a run, one module each: a function of the run folder that leaves its results there and returns them."""
