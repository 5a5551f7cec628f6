"""Runs out of training loops of people's own."""
