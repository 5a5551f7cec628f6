"""The score of a frozen FMCE-Net as a loss ([FMCE-Net++] equations 4 and 5)."""
