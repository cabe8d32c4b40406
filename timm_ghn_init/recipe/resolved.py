"""A source, and what it stands for on this machine."""

import inspect
from dataclasses import dataclass
from functools import cached_property, partial

from ..ghn import GHN
from ..sources import Source
from ..weights.key import ghn_digest
from .offer import Function


@dataclass(frozen=True)
class Resolved:
    """Made once, at the front door; whoever needs a source further down takes it from here."""

    asked: Source  #: as the user named it
    source: Source  #: really used: "ghn" resolved, without the keys that change nothing about the weights
    ghn: GHN | None  #: where it is to compute; None for a source with a function
    own: bool = False  #: whether the GHN is an object of the user's instead of what the source names
    cache: bool = False  #: whether finished weights are kept on disk
    org: str | None = None  #: in whose repositories on the Hub to look for them

    @property
    def function(self) -> Function:
        """The function that gives the values, if no GHN predicts them."""
        row = self.source.initialisation
        assert row is not None
        return partial(row.load(), **{**row.defaults, **dict(self.source.own)})

    @property
    def needs_graph(self) -> bool:
        """Whether that function wants the model's graph."""
        return "graph" in inspect.signature(self.function).parameters

    @property
    def effective(self) -> bool:
        """Whether values are meant for the weights that layers compute with (see `register_source`)."""
        row = self.source.initialisation
        return row is None or row.effective or row.orthogonal

    @cached_property
    def digest(self) -> str:
        """As `ghn_digest`."""
        assert self.ghn is not None
        return ghn_digest(self.ghn, frozen=not self.own)
