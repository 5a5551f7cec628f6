"""Where a network looks: heat maps of images, and what can be counted in them."""
