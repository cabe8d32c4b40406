"""What initialisations are worth: how alike channels are, where a GHN places architectures, reports on fine-tuning."""

from .correlations import BINS, Correlations, channel_correlations, check_correlations, compare, model_correlations
from .embeddings import embed_graph, place, project, sampled_reference, timm_architecture, timm_reference
from .figures import correlation_figure, embedding_figure, layer_figure, rendered, style
from .page import page
from .runs import experiments
from .values import read_values

__all__ = [
    "BINS",
    "Correlations",
    "channel_correlations",
    "check_correlations",
    "compare",
    "correlation_figure",
    "embed_graph",
    "embedding_figure",
    "experiments",
    "layer_figure",
    "model_correlations",
    "page",
    "place",
    "project",
    "read_values",
    "rendered",
    "sampled_reference",
    "style",
    "timm_architecture",
    "timm_reference",
]
