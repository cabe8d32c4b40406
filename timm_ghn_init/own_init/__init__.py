"""What a model would have drawn itself."""
