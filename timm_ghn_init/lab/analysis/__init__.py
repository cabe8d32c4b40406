"""Measurements of initialisations, without training and with it.

Correlation of channels, signals, differences of two sets of weights, embeddings of architectures, and
reports on fine-tuning.
"""

from ..pictures import rendered, style
from .correlations import BINS, Correlations, channel_correlations, check_correlations, compare, model_correlations
from .embeddings import embed_graph, place, project, read_values, sampled_reference, timm_architecture, timm_reference
from .figures import correlation_figure, embedding_figure, layer_figure, signal_figure
from .inits import obtainable
from .page import page
from .runs import experiments
from .signal import signals

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
    "obtainable",
    "page",
    "place",
    "project",
    "read_values",
    "rendered",
    "sampled_reference",
    "signal_figure",
    "signals",
    "style",
    "timm_architecture",
    "timm_reference",
]
