"""Where FMCE-Net's feature maps come from: the feature store, memory, or the backbones themselves."""
