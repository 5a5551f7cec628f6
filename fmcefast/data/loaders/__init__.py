"""Images in batches for a network, from memory, by DALI or by torchvision."""
