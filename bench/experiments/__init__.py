"""Whole experiments: what scores and FMCE-Net++ are worth on a data set, and the rows of the papers' tables."""
