"""What this machine can do, and which implementation each stage will use on it."""
