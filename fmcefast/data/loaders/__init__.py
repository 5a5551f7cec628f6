"""Loads images in batches: from memory, by DALI, by nvJPEG or by threads."""
