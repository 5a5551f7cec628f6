"""How mature the modules of any network are, told from how they see images: no run, no FMCE-Net, no training."""
