"""The FMCS-Dataset on disk: feature maps of every phase in `.npy` shards, listed in a manifest ([FMCE] IV-D)."""
