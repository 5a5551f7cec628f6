"""The score of a frozen FMCE-Net as a loss."""
