"""The FMCS-Dataset on disk: feature maps of every phase, in `.npy` shards under a manifest ([FMCE] IV-D)."""
