"""The values that a model would have drawn itself."""
