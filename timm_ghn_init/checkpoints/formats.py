"""One GHN in one file: a config and its tensors, read from four formats, checked against each other, written in one.

Read are safetensors (ours, with the config in the metadata), `torch.save`d checkpoints (ppuda's) and joblib pickles
(GHN-3's). Nothing is ever unpickled freely, see `unpickle`. Files without a config have it read off their tensors.
"""

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..ghn.facts import Facts
from ..utils.checks import FLAG, Kind, one_of, whole
from ..utils.text import Told, as_cause
from .joblib_files import read_joblib
from .safetensors_header import check_size, header
from .stand_ins import LazyTensor
from .torch_files import NotPlainError, read_torch
from .unpickle import Inert

if TYPE_CHECKING:
    import torch

    from ..ghn import GHN


class CheckpointError(Told, RuntimeError):
    """A GHN's file cannot be had, read or trusted. The message names the file, the cause and the way out."""


@dataclass(frozen=True)
class GHNFile:
    """A GHN that has been opened and found consistent; its tensors are read as they are asked for.

    Attributes:
        path: where it lies.
        facts: what it holds besides its tensors.
        tensors: by state-dict name, exactly those of `GHN.of(facts)`, in its shapes.
    """

    path: Path
    facts: Facts
    tensors: dict[str, LazyTensor]

    def load(self, name: str) -> "torch.Tensor":
        """One tensor: float32, contiguous, on CPU, finite.

        Raises:
            CheckpointError: it cannot be read, or holds NaN or inf.
        """
        import torch

        with _errors_name(self.path, f"{name} cannot be read"):
            tensor = self.tensors[name].load().detach()
            if not tensor.is_floating_point():
                raise TypeError(f"it is {tensor.dtype}, not floating point")
            tensor = tensor.reshape(self.tensors[name].shape).to("cpu", torch.float32).contiguous()
        check_finite(tensor, name, self.path)
        return tensor


def check_finite(tensor: "torch.Tensor", name: str, path: Path) -> None:
    """Raise a CheckpointError if there is a NaN or inf among the values of a tensor."""
    lowest, highest = tensor.aminmax()  # NaN if there is one; no temporary of the tensor's size
    if not (lowest.isfinite() and highest.isfinite()):
        raise CheckpointError(f"{path}: {name} holds NaN or inf values. Use another checkpoint of this GHN.")


@contextmanager
def open_ghn(path: Path, mapped: bool = False) -> Iterator[GHNFile]:
    """Open a GHN's file, whichever format it has, and check its config and the shapes of its tensors.

    Args:
        path: the file.
        mapped: tensors of a safetensors file may be views of the file, mapped into memory: only for files that are
            never written to again.

    Raises:
        CheckpointError: no such file, an unknown or damaged format, objects other than tensors and plain values in a
            pickle, an unknown or wrong value in the config, tensors that do not belong to it.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}. Give the path of a GHN's checkpoint.")
    with _errors_name(path, "cannot be read"):
        name = _format(path)
    with _READERS[name](path, mapped) as contents:
        config, tensors = _settle(contents, path)
        yield GHNFile(path, _facts(config, contents.metadata, path), tensors)


def build(file: GHNFile, device: Any = "cpu") -> "GHN":
    """The GHN of an open file: eval mode, float32, no gradients. Memory is taken once, the random state left alone."""
    ghn = _empty_ghn(file.facts, file.path)
    ghn.load_state_dict({name: file.load(name).to(device) for name in file.tensors}, assign=True)
    return ghn.eval().requires_grad_(False)


def _facts(config: dict[str, Any], metadata: Mapping[str, str], path: Path) -> Facts:
    try:
        return Facts.read({**metadata, "config": json.dumps(config)})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def write_ghn(
    path: Path,
    facts: Facts,
    tensors: Mapping[str, Callable[[], "torch.Tensor"]],
    metadata: Mapping[str, str],
) -> str:
    """Write our format, one tensor in memory at a time. Returns the file's sha256.

    Args:
        path: must not be a file that others read: it is not there until this returns, and half-written if it raises.
        facts: of the GHN; the shapes follow from them.
        tensors: one function per tensor of the GHN, that returns it as contiguous float32 on CPU.
        metadata: more entries for the header. They take precedence over those of `facts`.
    """
    import torch

    shapes = _shapes(facts, path)
    entries = {name: (shape, torch.float32) for name, shape in shapes.items()}
    text, _ = header(entries, {**facts.metadata(), **metadata, "config": facts.metadata()["config"]})
    digest = hashlib.sha256(text)
    with open(path, "wb") as f:
        f.write(text)
        for name, shape in shapes.items():
            values = tensors[name]().numpy().astype("<f4", copy=False)
            if values.shape != shape:
                raise CheckpointError(f"{path}: {name} has the shape {values.shape}, the config asks for {shape}.")
            digest.update(values.data)
            f.write(values.data)
    return digest.hexdigest()


# Reading


class _Contents(NamedTuple):
    """What a file holds, before anything of it is believed."""

    config: Any  # None where the file has none
    tensors: Any
    metadata: dict[str, str]


def _format(path: Path) -> str:
    """A file's format by its first bytes; the suffix says nothing (GHN-3's joblib pickles are called .pt)."""
    with open(path, "rb") as f:
        head = f.read(16)
    for name, pattern in _MAGIC.items():
        if re.match(pattern, head, re.DOTALL):
            return name
    raise CheckpointError(
        f"{path}: neither a safetensors file nor a checkpoint of PyTorch or joblib (it begins with {head!r}). If it "
        "was downloaded, it may be an error page or a Git LFS pointer: download it again."
    )


@contextmanager
def _read_safetensors(path: Path, mapped: bool) -> Iterator[_Contents]:
    from safetensors import safe_open

    with _errors_name(path, "damaged"):
        check_size(path)
        file = safe_open(str(path), framework="pt")
    with file:
        metadata = dict(file.metadata() or {})
        config = None
        if "config" in metadata:
            with _errors_name(path, "the config in its metadata is no JSON"):
                config = json.loads(metadata["config"])

        def lazy(name: str) -> LazyTensor:
            def load() -> "torch.Tensor":
                tensor = file.get_tensor(name)
                return tensor if mapped else tensor.clone()

            return LazyTensor(tuple(file.get_slice(name).get_shape()), load)

        tensors = {name: lazy(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        yield _Contents(config, tensors, metadata)


@contextmanager
def _read_torch(path: Path, mapped: bool) -> Iterator[_Contents]:
    with ExitStack() as stack:
        with _errors_name(path, "damaged"):
            try:
                loaded = stack.enter_context(read_torch(path))
            except NotPlainError as error:
                raise _not_plain(path, error) from None
        yield _Contents(*_unwrap(loaded), {})


def _not_plain(path: Path, error: NotPlainError) -> CheckpointError:
    classes = ", ".join(name.removeprefix("builtins.") for name in error.names)
    return CheckpointError(
        f"{path}: a pickle of other things than tensors and plain values, which is never read: {error}. Save it "
        "without them, or, if you trust whoever wrote it, have them passed over: "
        f"torch.serialization.add_safe_globals([{classes}])."
    )


@contextmanager
def _read_joblib(path: Path, mapped: bool) -> Iterator[_Contents]:
    with ExitStack() as stack:
        with _errors_name(path, "not read as a joblib pickle of tensors"):
            loaded = stack.enter_context(read_joblib(path))
        yield _Contents(*_unwrap(loaded), {})


_MAGIC: dict[str, bytes] = {
    "safetensors": rb".{4}\0{4}\{",
    "torch": rb"PK\x03\x04|\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9",
    "joblib": rb"\x80[\x02-\x05]|\x78[\x01\x5e\x9c\xda]|\x1f\x8b|BZh|\xfd7zXZ|\x5d\0|\x04\x22M\x18",
}

_READERS: dict[str, Callable[[Path, bool], Any]] = {
    "safetensors": _read_safetensors,
    "torch": _read_torch,
    "joblib": _read_joblib,
}


def _unwrap(loaded: Any) -> tuple[Any, Any]:
    """(config, state dict) of a checkpoint; a bare state dict has no config."""
    if isinstance(loaded, dict) and "state_dict" in loaded:
        return loaded.get("config"), loaded["state_dict"]
    return None, loaded


# Checking


_SIDE = whole(1, 4096)
_CONFIG: dict[str, Kind] = {
    "max_shape": Kind(
        "four whole numbers from 1 to 4096",
        lambda v: isinstance(v, list | tuple) and len(v) == 4 and all(map(_SIDE.valid, v)),
    ),
    "num_classes": whole(1, 10**6),
    "hypernet": one_of("gatedgnn", "mlp", "graphormer"),
    "decoder": one_of("conv", "mlp"),
    **dict.fromkeys(("weight_norm", "ve", "layernorm"), FLAG),
    "hid": whole(1, 2**14),
    **dict.fromkeys(("heads", "layers"), whole(1, 2**10)),
}
_MAX_BYTES = 2**34
_REQUIRED = ("max_shape", "num_classes")
_NO_CONCERN = ("debug_level", "pretrained", "is_ghn2")  # of the reference's own, with no effect on a prediction

# Names in released GHN-3 files -> names in the module.
_RENAMED = {
    f"{name}.weight": f"gnn.0.{name}.weight"
    for name in ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")
}


# What DataParallel and DDP, and torch.compile, put before the names of what they wrap.
_WRAPPERS = ("module.", "_orig_mod.")


def _settle(contents: _Contents, path: Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Config and tensors in the form that `GHN` wants, after all checks that need no values."""
    tensors = _named(contents.tensors, path)
    if contents.config is None:
        config = _infer(tensors, path)
    else:
        config = contents.config
    config = _check_config(config, path)
    if 10 * config.get("layers", 0) > len(tensors):  # each has 11, and to build many takes a while
        raise CheckpointError(f"{path}: its config says {config['layers']} layers, but it has {len(tensors)} tensors.")
    shapes = _shapes(Facts(config), path)
    _check_names(set(shapes), set(tensors), path)
    for name, shape in shapes.items():
        found = tensors[name].shape
        # A 1 x 1 convolution may be kept as the matrix that it is.
        if [n for n in found if n != 1] != [n for n in shape if n != 1]:
            raise CheckpointError(
                f"{path}: {name} has the shape {found}, but the config asks for {shape}. "
                "The file mixes two GHNs: export it again."
            )
    return config, {name: LazyTensor(shape, tensors[name].load) for name, shape in shapes.items()}


def _named(tensors: Any, path: Path) -> dict[str, LazyTensor]:
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f"{path}: holds no state dict (it is {_kind(tensors)}). Is it a GHN's checkpoint?")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, LazyTensor):
            raise CheckpointError(f"{path}: the entry {reprlib.repr(name)} is no tensor. Is it a GHN's state dict?")
    wrapped = 0  # characters that wrappers have put before all names
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p, wrapped) for name in tensors)), ""):
        wrapped += len(prefix)
    named: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        name = _RENAMED.get(name[wrapped:], name[wrapped:])
        if name in named:
            raise CheckpointError(f"{path}: has {name} twice, under both of its names. Remove one.")
        named[name] = tensor
    return named


def _kind(value: Any) -> str:
    return value.text if isinstance(value, Inert) else type(value).__name__


def _check_config(config: Any, path: Path) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its config is no dictionary but {_kind(config)}.")
    config = dict(config)
    if config.get("is_ghn2") is False:  # the reference's trainer says "gatedgnn" for GHN-3 as well
        config["hypernet"] = "graphormer"
    for name in _NO_CONCERN:
        config.pop(name, None)
    for name, value in config.items():
        if name not in _CONFIG:
            raise CheckpointError(
                f"{path}: unknown entry {reprlib.repr(name)} in its config; known are {', '.join(_CONFIG)}. "
                "It may need a newer timm_ghn_init."
            )
        if not _CONFIG[name].valid(value):
            raise CheckpointError(f"{path}: {name} in its config {_CONFIG[name].problem(value)}.")
    for name in _REQUIRED:
        if name not in config:
            raise CheckpointError(f"{path}: its config lacks {name}.")
    multiple = math.lcm(4, config.get("heads", 1))
    if config.get("hid", multiple) % multiple:
        raise CheckpointError(f"{path}: hid in its config must be a multiple of 4 and of heads, not {config['hid']}.")
    return {**config, "max_shape": tuple(config["max_shape"])}


def _check_names(wanted: set[str], found: set[str], path: Path) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        parts = [
            f"{len(names)} {what} ({_some(names)})"
            for names, what in ((missing, "missing"), (extra, "unknown"))
            if names
        ]
        raise CheckpointError(
            f"{path}: its tensors do not fit its config: {' and '.join(parts)}. Is it a GHN's checkpoint, and whole?"
        )


def _some(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _infer(tensors: dict[str, LazyTensor], path: Path) -> dict[str, Any]:
    """The config of a bare state dict: GHN-3 as released, or a GHN-2 in the same manner."""

    def rows(name: str) -> int:
        if name not in tensors or not tensors[name].shape:
            raise CheckpointError(
                f"{path}: has neither a config nor {name}, so it is no GHN's checkpoint that is known."
            )
        return tensors[name].shape[0]

    rows("embed.weight")
    hid = tensors["embed.weight"].shape[-1]
    width = math.isqrt(rows("decoder.conv.2.weight"))
    kernel = 11 if rows("shape_enc.embed_spatial.weight") == 9 else 16
    config: dict[str, Any] = {
        "max_shape": (width, width, kernel, kernel),
        "num_classes": rows("decoder.class_layer_predictor.1.weight"),
        "hid": hid,
        "weight_norm": True,
        "layernorm": "ln.weight" in tensors,
    }
    if "gnn.gru.weight_ih" in tensors:
        return {**config, "ve": any(name.startswith("gnn.mlp_ve.") for name in tensors)}
    layers = sum(re.fullmatch(r"gnn\.\d+\.ln1\.weight", name) is not None for name in tensors)
    heads = rows("gnn.0.attn.proj_e.2.weight")
    return {**config, "hypernet": "graphormer", "ve": True, "heads": heads, "layers": layers}


def _empty_ghn(facts: Facts, path: Path) -> "GHN":
    """A GHN without memory for its tensors."""
    import torch

    from ..ghn import GHN

    with _errors_name(path, "its config describes no GHN"), torch.device("meta"):
        return GHN.of(facts)


def _shapes(facts: Facts, path: Path) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(t.shape) for name, t in _empty_ghn(facts, path).state_dict().items()}
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    if size > _MAX_BYTES:  # a pickle of a few bytes can claim any shape
        raise CheckpointError(f"{path}: claims to hold {size >> 30} GiB of tensors. No GHN is that large.")
    return shapes


@contextmanager
def _errors_name(path: Path, what: str) -> Iterator[None]:
    """Whatever a library raises about a file becomes a CheckpointError that names the file and says the cause.

    All exceptions, because readers of damaged files raise all kinds: RuntimeError, EOFError, KeyError, struct.error ...
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        cause = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: {what} ({type(error).__name__}: {cause}). Download or export it again."
        ) from as_cause(error)
