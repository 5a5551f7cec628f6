"""How well a number tells the maturity of a checkpoint, over many training runs."""
