"""Finished weights: key, cache, Hub, card."""
