"""FMCE-Net++: training a backbone under a frozen FMCE-Net, once or for many RAFs and seeds."""
