"""Graph HyperNetworks: Graph -> embeddings -> parameter tensors. Knows shapes and weights, nothing of timm."""

from .facts import Facts
from .model import GHN
from .tiles import Tile

__all__ = ["GHN", "Facts", "Tile"]
