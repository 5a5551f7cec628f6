"""Compute kernels, each beside its plain reference. They know nothing of fmcefast."""
