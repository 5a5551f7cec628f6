"""Files that hold weights: which tensors they name, and their values when they are asked for."""
