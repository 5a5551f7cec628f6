"""All stages of a run: their order, the effect of changed settings, cost, and integrity."""
