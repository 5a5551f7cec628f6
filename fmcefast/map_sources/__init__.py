"""FMCE-Net's feature maps: extracted to the feature store, kept in memory, or recomputed by the backbones."""
