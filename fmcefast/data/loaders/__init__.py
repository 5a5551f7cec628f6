"""Loads images in batches: from memory, by DALI or by torchvision."""
