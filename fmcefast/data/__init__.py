"""Labelled images: where they come from, and how they reach the network in batches."""
