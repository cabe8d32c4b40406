"""Training a GHN of one's own: sampled networks, images, the loop, and what came of it."""
