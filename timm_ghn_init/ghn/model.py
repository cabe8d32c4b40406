"""The Graph HyperNetwork: Graph -> node embeddings -> parameters."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import PRIMITIVES, Dialect, Graph, Node, Place, Target
from ..utils.threads import one_thread
from .decoders import ConvDecoder, MLPDecoder, resize
from .facts import Depth, Facts
from .gated_gnn import MLP, GatedGNN, NodeMLP
from .graphormer import Graphormer
from .shape_encoder import ShapeEncoder
from .tiles import Tile, normalise

_INDEX = {primitive: i for i, primitive in enumerate(PRIMITIVES)}


def _fact(name: str) -> Any:
    """A property that is an entry of `GHN.facts`."""
    return property(
        lambda ghn: getattr(ghn.facts, name),
        lambda ghn, value: setattr(ghn, "facts", replace(ghn.facts, **{name: value})),
    )


class GHN(nn.Module):
    """A Graph HyperNetwork: GHN-1 and GHN-2 (arXiv 2110.13100), GHN-3 (arXiv 2303.04143).

    The keyword arguments are the `config` of a released checkpoint and the state dict has the released keys.

    Args:
        max_shape: (M0, M1, M2, M3), the largest block that is decoded; larger parameters repeat it.
        num_classes: classes of the data set that the GHN was trained on.
        hypernet: "gatedgnn" (GHN-1, GHN-2), "mlp" (the baseline without messages) or "graphormer" (GHN-3).
        decoder: "conv" or "mlp".
        weight_norm: scale predictions by fan-in (and squash those of norms and biases).
        ve: messages along virtual edges as well, i.e. GHN-2 rather than GHN-1.
        layernorm: normalise the final node embeddings.
        hid: width of node embeddings.
        heads: attention heads of the Graphormer.
        layers: of the Graphormer.

    Attributes:
        facts: all that belongs to the GHN besides its state dict. The other attributes are read from it.
        config: the keyword arguments above.
        depth: the part of a network's layers, from 0 up to 1, before its post-processing begins, where that was chosen
            for this GHN by measuring (see `recipe.plan.auto_layer`); else None. One number, or one for each kind of
            network (see `Graph.kind`). Kept in its file's metadata.
        layer_scale: the value that layer scales get (see `Source.layer_scale`), where that was chosen likewise; else
            None, and they keep their own. A network whose layer scales are 1e-6 does not use what is predicted.
        trained_on: name of the images it was trained on, if its file has it; else None. From a file, so any text.

    Example:
        >>> ghn = GHN(max_shape=(64, 64, 16, 16), num_classes=1000, weight_norm=True, ve=True, layernorm=True)
        >>> parameters = ghn.predict(trace(model))
    """

    def __init__(
        self,
        max_shape: Collection[int],
        num_classes: int,
        hypernet: Literal["gatedgnn", "mlp", "graphormer"] = "gatedgnn",
        decoder: Literal["conv", "mlp"] = "conv",
        weight_norm: bool = False,
        ve: bool = False,
        layernorm: bool = False,
        hid: int = 32,
        heads: int = 8,
        layers: int = 3,
    ) -> None:
        super().__init__()
        self.max_shape = m = tuple(max_shape)
        self.num_classes, self.weight_norm = num_classes, weight_norm
        config: dict[str, Any] = {
            "max_shape": m,
            "num_classes": num_classes,
            "hypernet": hypernet,
            "decoder": decoder,
            "weight_norm": weight_norm,
            "ve": ve,
            "layernorm": layernorm,
            "hid": hid,
        }
        graphormer = hypernet == "graphormer"
        if graphormer:
            config.update(heads=heads, layers=layers)
        self.facts = Facts(config)
        self.dialect: Dialect = "ghn3" if graphormer else "ghn2"
        if layernorm:
            self.ln = nn.LayerNorm(hid)
        self._modules["embed"] = nn.Embedding(len(PRIMITIVES), hid)  # see `primitive_table`
        self.shape_enc = ShapeEncoder(hid, num_classes, m)
        self.gnn = self._hypernet(hypernet, hid, ve, heads, layers)
        if decoder not in ("conv", "mlp"):
            raise ValueError(f'decoder must be "conv" or "mlp", not {decoder!r}.')
        self.decoder: ConvDecoder | MLPDecoder = (
            ConvDecoder(hid, m, num_classes, centre=graphormer, linear=graphormer)
            if decoder == "conv"
            else MLPDecoder(hid, m, num_classes)
        )
        self.decoder_1d = MLP(hid, 2 * hid, 2 * max(m[:2]), last_activation=False)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(max(m[:2]), num_classes))

    @staticmethod
    def _hypernet(name: str, hid: int, ve: bool, heads: int, layers: int) -> nn.Module:
        if name == "gatedgnn":
            return GatedGNN(hid, ve)
        if name == "mlp":
            return NodeMLP(hid, hid, hid)
        if name == "graphormer":
            return Graphormer(hid, heads, layers)
        raise ValueError(f'hypernet must be "gatedgnn", "mlp" or "graphormer", not {name!r}.')

    @classmethod
    def of(cls, facts: Facts) -> "GHN":
        """A GHN with these facts, its values drawn at random."""
        ghn = cls(**facts.config)
        ghn.facts = replace(facts, config=ghn.config)
        return ghn

    @property
    def config(self) -> dict[str, Any]:
        return self.facts.config

    depth: Depth | None = _fact("depth")
    layer_scale: float | None = _fact("layer_scale")
    trained_on: str | None = _fact("trained_on")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def primitive_table(self) -> nn.Embedding:
        """One row per primitive, (15, hid).

        Released files call it `embed.weight`, while `embed(graph)` is what users call. An attribute cannot be both, so
        the table is registered under its released name and read here.
        """
        return self._modules["embed"]  # type: ignore[return-value]

    def node_features(self, graph: Graph) -> Tensor:
        """The features of each node on its own: the embeddings of its primitive and of its shape, (N, hid)."""
        return self._features(graph.nodes)

    def _features(self, nodes: tuple[Node, ...]) -> Tensor:
        primitives = torch.tensor([_INDEX[node.primitive] for node in nodes], device=self.device)
        return self.primitive_table(primitives) + self.shape_enc(nodes)

    def embed(self, graph: Graph) -> Tensor:
        """Embed the nodes of a graph by message passing (arXiv 2110.13100, Section 3).

        Differentiable where gradients are on and the GHN's parameters require them.

        Args:
            graph: from `trace`, with this GHN's dialect.

        Returns:
            (N, hid), float32; row i belongs to `graph.nodes[i]`.

        Raises:
            ValueError: the graph is of another dialect than the GHN was trained on.

        Example:
            >>> import timm, timm_ghn_init
            >>> ghn = timm_ghn_init.load_ghn("ghn2-fashion")
            >>> graph = timm_ghn_init.trace(timm.create_model("test_resnet"))
            >>> ghn.embed(graph).shape == (len(graph.nodes), ghn.config["hid"])
            True
        """
        self._check_dialect(graph)
        small = isinstance(self.gnn, GatedGNN) and not self.training
        with one_thread() if small else nullcontext():  # many small operations
            x = self.gnn(self.node_features(graph), graph)
            return self.ln(x) if self.config["layernorm"] else x

    def _check_dialect(self, graph: Graph) -> None:
        if graph.dialect != self.dialect:
            raise ValueError(f"This GHN reads {self.dialect} graphs: trace(model, dialect={self.dialect!r}).")

    def predict(self, graph: Graph, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Predicted parameters by name, each a new float32 tensor of the parameter's shape.

        The classification layer is predicted for any number of classes by repeating or cutting the GHN's own
        `num_classes` rows, which has a meaning only where they agree. Rows of a position embedding that belong to
        class or register tokens are zero.

        Args:
            graph: from `trace`, with this GHN's dialect.
            names: parameters to predict. Default: all of `graph.targets`.

        Returns:
            Name -> value, on the GHN's device.

        Raises:
            KeyError: a name is not among `graph.targets`; the message gives the reason.
            ValueError: as `embed`.
        """
        return {name: tile.full() for name, tile in self.decode(graph, self.embed(graph), names).items()}

    def decode(self, graph: Graph, z: Tensor, names: Iterable[str] | None = None) -> dict[str, Tile]:
        """Decode node embeddings to predictions that are not yet repeated to the parameters' sizes.

        Args:
            graph: as in `predict`.
            z: (N, hid), from `embed`, on the GHN's device.
            names: as in `predict`.

        Returns:
            Name -> `Tile`; its `full()` has the parameter's shape.

        Raises:
            KeyError: as `predict`.
        """
        targets = list(graph.targets.values()) if names is None else [_target(graph, name) for name in names]
        with nullcontext() if self.training else one_thread():  # many small products
            return {t.param: tile for t, tile in zip(targets, self._decode(z, targets), strict=True)}

    def predict_many(self, graphs: Sequence[Graph]) -> list[dict[str, Tensor]]:
        """`predict` for several graphs at once, for training: faster, and differentiable.

        Args:
            graphs: each as in `predict`.

        Returns:
            One dictionary as of `predict` for each graph, in their order. Repeated values share memory.

        Raises:
            ValueError: as `embed`.
        """
        for graph in graphs:
            self._check_dialect(graph)
        sizes = [len(graph.nodes) for graph in graphs]
        xs = self._features(tuple(node for graph in graphs for node in graph.nodes)).split(sizes)
        many = getattr(self.gnn, "many", None)
        z = torch.cat(many(xs, graphs) if many else [self.gnn(x, g) for x, g in zip(xs, graphs, strict=True)])
        if self.config["layernorm"]:
            z = self.ln(z)
        starts = np.cumsum([0, *sizes])
        targets = [
            t._replace(node=t.node + int(start))
            for graph, start in zip(graphs, starts, strict=False)
            for t in graph.targets.values()
        ]
        tiles = iter(self._decode(z, targets))
        return [{name: next(tiles).view() for name in graph.targets} for graph in graphs]

    def _decode(self, z: Tensor, targets: Sequence[Target]) -> list[Tile]:
        """A tile for each target; those of one group are decoded together."""
        tiles: dict[int, Tile] = {}
        groups = {key: (group, z[[targets[i].node for i in group]]) for key, group in self._groups(targets).items()}
        weights = [(zs, shape) for (kind, shape), (_, zs) in groups.items() if kind == "weight"]
        decoded = self.decoder.many(*zip(*weights, strict=True)) if weights else iter(())
        for (kind, shape), (group, zs) in groups.items():
            blocks = next(decoded) if kind == "weight" else _DECODE[kind](self, zs, shape)
            role = targets[group[0]].role
            if self.weight_norm and role in ("norm", "bias"):  # of any length the same, so all at once
                blocks = normalise(blocks, (), role)
            tiles.update((i, self._tile(targets[i], block)) for i, block in zip(group, blocks, strict=True))
        return [tiles[i] for i in range(len(targets))]

    def _groups(self, targets: Sequence[Target]) -> dict[tuple[str, tuple[int, ...]], list[int]]:
        """Indices of targets that can be decoded together: same decoder, same part of its output."""
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        kind: str
        shape: tuple[int, ...]
        for i, t in enumerate(targets):
            if t.role in ("norm", "bias"):
                kind, shape = ("class_bias", ()) if t.classifier and t.role == "bias" else (t.role, ())
            elif t.classifier:
                kind, shape = "class_weight", (min(t.shape[1], self.max_shape[1]),)
            else:
                k, c, *kernel = _as_kernel(t)
                kind, shape = "weight", (min(t.offset + k, self.max_shape[0]), min(c, self.max_shape[1]), *kernel)
            groups.setdefault((kind, shape), []).append(i)
        return groups

    def _tile(self, target: Target, block: Tensor) -> Tile:
        """Bring one prediction into the form of its parameter: kernel size, number of dimensions, scale."""
        shape = target.kernel or target.shape
        if target.place is not None:
            shape = _as_kernel(target)
        if block.dim() == 4:
            block = resize(block, _as_kernel(target)[2:])
        if self.weight_norm and target.role not in ("norm", "bias"):
            block = normalise(block, shape, target.role)
        if target.place is not None:
            return Tile(_as_position(block, target.place), target)
        return Tile(_with_dims(block, len(shape)), target)


# How each kind of target is decoded from embeddings z (n, hid); `shape` is the part of the block that is needed.
_DECODE: dict[str, Callable[[GHN, Tensor, Any], Tensor]] = {
    "class_weight": lambda ghn, z, shape: ghn.decoder.classifier(z, *shape),
    "norm": lambda ghn, z, shape: ghn.decoder_1d(z).unflatten(1, (2, -1))[:, 0],
    "bias": lambda ghn, z, shape: ghn.decoder_1d(z).unflatten(1, (2, -1))[:, 1],
    "class_bias": lambda ghn, z, shape: ghn.bias_class(ghn.decoder_1d(z).unflatten(1, (2, -1))[:, 1]),
}


def _target(graph: Graph, name: str) -> Target:
    if name not in graph.targets:
        reason = graph.skipped.get(name, "the model has no parameter of that name")
        raise KeyError(f"{name} is not predicted: {reason}")
    return graph.targets[name]


def _as_kernel(target: Target) -> tuple[int, int, int, int]:
    """A weight's shape as (K, C, kh, kw); of a 3-D convolution the spatial part, which is repeated over time."""
    if target.place is not None:
        return (1, target.place.box[target.place.channels][1], *target.place.grid)
    shape = target.kernel or target.shape
    k, c, *kernel = shape
    kh, kw = (*kernel, 1, 1)[:2] if len(kernel) < 3 else kernel[-2:]
    return (k, c, kh, kw)


def _with_dims(block: Tensor, dims: int) -> Tensor:
    """(K0, C0, kh, kw) as a weight of 2, 3, 4 or 5 dimensions; (K0, C0) likewise."""
    if block.dim() < 2:
        return block
    if dims > 4:
        return block.unsqueeze(2)
    if block.dim() < dims:
        return block.reshape(*block.shape, *(1,) * (dims - block.dim()))
    return block.flatten(dims - 1) if dims == block.dim() else block.reshape(block.shape[:dims])


def _as_position(block: Tensor, place: Place) -> Tensor:
    """(1, C0, h, w) repeated to all channels and brought into the parameter's layout."""
    channels = place.box[place.channels][1]
    values = block.repeat(1, -(-channels // block.shape[1]), 1, 1)[0, :channels]  # (C, h, w)
    if len(place.axes) == 1:
        h, w = place.grid
        values = values.flatten(1).repeat(1, place.box[place.axes[0]][1] // (h * w))  # e.g. for every time of a video
    dims = (place.channels, *place.axes)
    values = values.permute(sorted(range(len(dims)), key=dims.__getitem__))
    shape = [1] * len(place.box)
    for dim, extent in zip(sorted(dims), values.shape, strict=True):
        shape[dim] = extent
    return values.reshape(shape)
