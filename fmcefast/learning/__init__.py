"""Learning with feature maps ([LFM]): skip images that are explained already, and train on feature maps."""
