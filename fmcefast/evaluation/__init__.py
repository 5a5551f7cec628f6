"""What an FMCE-Net predicts for feature maps, and how good the predictions are."""
