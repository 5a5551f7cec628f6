"""Training a backbone: the loop, what it minimises, and what makes an epoch durable."""
