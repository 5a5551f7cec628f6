"""Networks: backbones that are evaluated, and FMCE-Net that evaluates them."""
