"""What an FMCE-Net predicts for feature maps, and how good its predictions are."""
