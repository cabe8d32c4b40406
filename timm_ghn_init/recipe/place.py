"""The place of a model's values: the one thing in which a whole and a sharded model differ."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..ghn import GHN, Tile
from ..graph import Graph
from ..sources import Source
from .clock import Clock
from .pending import Pending
from .plan import Plan

T = TypeVar("T")


class Place(ABC):
    """A model and its memory, for the recipe to work on.

    Attributes:
        model: whose values they are.
        name: of the model, for messages.
        device: where to decode and post-process.
        clock: of this initialisation.
        whole: whether this process has all of it.
        first: whether this process speaks, where several do the same.
        given_names: the model's own names of its parameters -> names that the user knows them by (see `wrappers`).
        own, unset: as in `InitReport`, once there is memory.
    """

    model: nn.Module
    name: str
    device: torch.device
    clock: Clock
    whole = True
    first = True
    given_names: Mapping[str, str] = MappingProxyType({})
    own: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()

    @abstractmethod
    def share(self, what: str, load: Callable[[], tuple[Source, GHN]]) -> tuple[Source, GHN]:
        """The resolved source and its GHN, loaded once for all who work on this model.

        Args:
            what: what is loaded, in words for messages.
            load: loads it.
        """

    @abstractmethod
    def together(
        self, topic: str, work: Callable[[], T], in_common: Callable[[T], Mapping[str, str]] | None = None
    ) -> T:
        """Do a piece of work; where it fails for one who works on this model, it fails for all.

        Args:
            topic: what the work is, in words for messages.
            work: what to do.
            in_common: what of the result all of them must have in common, by what it is called.

        Returns:
            This process's own result.
        """

    @abstractmethod
    def trace(self, dialect: Literal["ghn2", "ghn3"], input_size: Any, example_inputs: Any) -> Graph:
        """As `graph.trace`."""

    @abstractmethod
    def give_values(self) -> None:
        """Values for all of the model, so that a function may read any. The model's own initialisation gives them."""

    @abstractmethod
    def values(self, names: Collection[str]) -> Mapping[str, Tensor]:
        """As `set_values`, of the model as its constructor left it."""

    @abstractmethod
    def part(self, parameter: Tensor) -> Tensor:
        """The part of a parameter that this process has, to read and write."""

    @abstractmethod
    def give_memory(self, overwritten: list[str]) -> None:
        """Memory, and their own initialisation, for values that do not have it yet.

        Args:
            overwritten: names of the parameters that need none of the latter, because they will be written whole.
        """

    @abstractmethod
    def postprocess(self, plan: Plan, tiles: dict[str, Tile], results: Pending, progress: bool | None) -> None:
        """Eq. (1) and (2) on the layers of a plan. Nothing is written.

        Args:
            tiles: predictions. Those used are taken out.
            results: have the values of a function, and get this process's part of what is to be written.
            progress: as in `init_model`.
        """

    @abstractmethod
    def write(self, tiles: Mapping[str, Tile], results: Pending, found: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        """Write into the parameters, which keep identity, dtype, device and `requires_grad`.

        Args:
            tiles: predictions.
            results: what has waited for this.
            found: parts of parameters, and finished values for them.
        """

    @abstractmethod
    def take_back(self) -> None:
        """Take back what `give_memory` and `give_values` gave: the model is as it was."""
