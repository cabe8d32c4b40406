"""The strings that name an initialisation, "ghn2-orth?layer=94&seed=1", and the hypernetworks that they can name.

    NAME[-orth][?key=value&...][+...]

`NAME` is a row of `KNOWN`, `file:PATH` (with one of `SUFFIXES`) or `ghn`, the default GHN; `-orth` adds the
post-processing of arXiv 2207.10049, Section 3. `KEYS` lists the keys. The rows of `registry` that are functions are
sources too, "orth?layer=37". In "ghn2-orth+mimetic", values of the later source replace
those of the earlier one.
"""

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .registry import PREDICTION, Initialisation, find, is_known, names, register_source
from .utils.checks import (
    FLAG,
    NAMESPACE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    InputError,
    Kind,
    either,
    instance,
    one_of,
    whole,
)
from .utils.text import did_you_mean, logger

_logger = logger(__name__)

DEFAULT = "ghn"
SHIPPED = "ghn2-fashion"
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # of the file of a GHN; what is in it tells the format
_SUFFIXES_OR = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"

_PPUDA = "https://raw.githubusercontent.com/facebookresearch/ppuda/4673a42507a9dcd0a5ae04e74599e8c92af689b9/checkpoints"
_PPUDA_PAPER = "Parameter Prediction for Unseen Deep Architectures"
_GHN3_HUB = "SamsungSAILMontreal/ghn3"

Dataset = Literal["imagenet-1k", "cifar-10", "fashion-mnist"]
_CLASSES: dict[Dataset, int] = {"imagenet-1k": 1000, "cifar-10": 10, "fashion-mnist": 10}


@dataclass(frozen=True)
class KnownGHN:
    """A hypernetwork that has a name. Its file comes from one of `url`, `hub` and `local`.

    Attributes:
        name: as in a source string.
        file: file name, below `url`, in the Hub repository or in the package.
        description: one line for lists.
        paper: title.
        arxiv: identifier of the paper.
        license: SPDX identifier, lower case as in timm.
        dataset: what the GHN was trained on.
        url: folder to download from.
        blob: git blob id of the file below `url`: sha1 of b"blob <size>\\0" + its bytes.
        hub: Hugging Face Hub repository.
        local: folder inside the package.
    """

    name: str
    file: str
    description: str
    paper: str
    arxiv: str
    license: str = "mit"
    dataset: Dataset = "imagenet-1k"
    url: str = ""
    blob: str = ""
    hub: str = ""
    local: str = ""

    @property
    def origin(self) -> str:
        """The origin of the file, exactly enough to tell one version of it from another."""
        if self.local:
            return f"package:{self.local}/{self.file}"
        return f"hf-hub:{self.hub}/{self.file}" if self.hub else f"{self.url}/{self.file}#{self.blob}"

    @property
    def dialect(self) -> Literal["ghn2", "ghn3"]:
        """The dialect of the graphs that it reads."""
        return "ghn3" if self.name.startswith("ghn3") else "ghn2"

    @property
    def num_classes(self) -> int:
        """The number of classes of its data set, which are those that it predicts a classifier for."""
        return _CLASSES[self.dataset]

    @property
    def local_path(self) -> Path | None:
        """The file inside the package, for a GHN that ships with it."""
        return Path(__file__).parent / self.local / self.file if self.local else None


def _ppuda(name: str, file: str, blob: str, description: str, dataset: Dataset = "imagenet-1k") -> KnownGHN:
    return KnownGHN(name, file, description, _PPUDA_PAPER, "2110.13100", dataset=dataset, url=_PPUDA, blob=blob)


def _ghn3(size: str, file: str, description: str) -> KnownGHN:
    paper = "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?"
    return KnownGHN(f"ghn3-{size}", file, description, paper, "2303.04143", hub=_GHN3_HUB)


def _ours(name: str, trained: str, dataset: Dataset) -> KnownGHN:
    """Trained by this project, in the package."""
    about = f"GHN-2 trained by this project {trained}"
    return KnownGHN(name, f"{name}.safetensors", about, _PPUDA_PAPER, "2110.13100", "apache-2.0", dataset, local="data")


_GHN2_CIFAR, _GHN1_CIFAR = "4f290e0fad1b73066eeabb50be52e0c377d0b15b", "0c97a283aefc0445dd357c08f1b36698149b8013"
_MLP_CIFAR = "3a987c98b437fd2dfc603668a846f2b632ed28a3"

KNOWN: dict[str, KnownGHN] = {
    ghn.name: ghn
    for ghn in (
        _ppuda("ghn2", "ghn2_imagenet.pt", "7b5d6733e9fdf0069bc6186cad3a0b1b54fda68d", "GHN-2 for ImageNet"),
        _ppuda("ghn1", "ghn1_imagenet.pt", "985ebeb350c4ae79e0553d88c07d986fa69c227b", "GHN-1 for ImageNet"),
        _ppuda("ghn2-cifar10", "ghn2_cifar10.pt", _GHN2_CIFAR, "GHN-2 for CIFAR-10", "cifar-10"),
        _ppuda("ghn1-cifar10", "ghn1_cifar10.pt", _GHN1_CIFAR, "GHN-1 for CIFAR-10", "cifar-10"),
        _ppuda("mlp-cifar10", "mlp_cifar10.pt", _MLP_CIFAR, "Baseline without messages, for CIFAR-10", "cifar-10"),
        _ghn3("t", "ghn3tm8.pt", "GHN-3 for ImageNet, tiny: 7 M parameters, 27 MB"),
        _ghn3("s", "ghn3sm8.pt", "GHN-3 for ImageNet, small"),
        _ghn3("l", "ghn3lm8.pt", "GHN-3 for ImageNet, large"),
        _ghn3("xl", "ghn3xlm16.pt", "GHN-3 for ImageNet, extra large: 654 M parameters, 2.5 GB"),
        _ours(SHIPPED, "on Fashion-MNIST; ships with the package", "fashion-mnist"),
    )
}


_HE = "Delving Deep into Rectifiers: Surpassing Human-Level Performance on ImageNet Classification"
_SAXE = "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks"
_MIMETIC = "Mimetic Initialization of Self-Attention Layers"
_SELECT = "Initializing Models with Larger Ones"

register_source(DEFAULT, PREDICTION, description="the default: TIMM_GHN_DEFAULT, else ghn2, else the GHN that ships")
for ghn in KNOWN.values():
    register_source(ghn.name, PREDICTION, description=ghn.description, paper=ghn.paper, arxiv=ghn.arxiv)
_RAND = "timm_ghn_init.recipe.baselines:rand"
register_source("rand", _RAND, description="He initialisation, no GHN", paper=_HE, arxiv="1502.01852", effective=True)
register_source(
    "orth", _RAND, description="Orthogonal initialisation, no GHN", paper=_SAXE, arxiv="1312.6120", orthogonal=True
)
register_source(
    "mimetic",
    "timm_ghn_init.recipe.mimetic:mimetic",
    keys={"pos": False},
    description="Attention that resembles a trained one, no GHN; the rest stays",
    paper=_MIMETIC,
    arxiv="2305.09828",
    effective=True,
)
register_source(
    "select",
    "timm_ghn_init.recipe.select:select",
    keys={"from": str, "weights": str},
    description="Entries of a larger network of the same family, no GHN: select?from=ARCH",
    paper=_SELECT,
    arxiv="2311.18823",
)


class _Key(NamedTuple):
    """One `key=value`: which values there are, and the field of `Source` that holds them."""

    kind: Kind
    field: str
    predicts: bool = True  # False: it changes where weights are kept, not what they are


PATTERNS = Kind(
    "patterns of parameter names, separated by commas",
    lambda value: isinstance(value, tuple) and all(isinstance(p, str) and p and "," not in p for p in value),
    lambda text: tuple(text.split(",")),
)
_SPELLING = instance("text, e.g. ghn2-orth", str)
_SWITCH = replace(FLAG, wanted="0 or 1")
_BETA = replace(NOT_NEGATIVE, wanted=f"{NOT_NEGATIVE.wanted}, e.g. 3e-5")

# In the order in which `str(source)` writes them.
KEYS: dict[str, _Key] = {
    "layer": _Key(either(whole(1), one_of("auto")), "layer"),
    "beta": _Key(_BETA, "beta"),
    "seed": _Key(SEED, "seed"),
    "orth": _Key(_SWITCH, "orthogonal"),
    "classifier": _Key(_SWITCH, "classifier"),
    "layer_scale": _Key(either(POSITIVE, one_of("auto", "keep")), "layer_scale"),
    "only": _Key(PATTERNS, "only"),
    "skip": _Key(PATTERNS, "skip"),
    "cache": _Key(_SWITCH, "cache", predicts=False),
    "hub": _Key(NAMESPACE, "hub", predicts=False),
    "push": _Key(_SWITCH, "push", predicts=False),
}
_RIGHT = "only sources without a GHN may come after a +"


@dataclass(frozen=True, repr=False)
class Source:
    """Which GHN predicts, and what is done with its prediction; or an initialisation without a GHN; or several.

    `str(source)` writes the shortest string that `parse_source` reads back to an equal source.

    Attributes:
        name: a name in `KNOWN`, "ghn", "file:PATH" or another name in the `registry`.
        orth: post-process the prediction (arXiv 2207.10049, Section 3).
        layer: the first layer that is post-processed, counted from 1; "auto" leaves the choice to the package. For the
            baseline "orth": the first layer that is orthogonal; "auto" is 1.
        beta: scale of the noise that post-processing adds, Eq. (1); 0 adds none.
        seed: of everything that is drawn at random. None means 0 unless an argument sets it, so that a caller's own
            `seed` argument can tell a source that names one from a source that does not.
        orthogonal: whether post-processing makes weights orthogonal, Eq. (2), or only adds its noise. The key `orth`:
            "ghn2-orth?orth=0" is noise alone, "ghn2?orth=1" is the same as "ghn2-orth".
        classifier: whether the classification layer is predicted.
        layer_scale: the value that layer scales get, which multiply the branches of a residual network (timm starts
            them at 1e-6). "keep" leaves them; "auto" is what was chosen for the GHN (`GHN.layer_scale`), or "keep".
        only, skip: patterns of parameter names, as `fnmatch` reads them: only what one of `only` matches is
            initialised, and nothing that one of `skip` matches.
        cache: whether finished weights are kept on disk; None leaves that to TIMM_GHN_CACHE.
        hub: the user or organisation on the Hugging Face Hub in whose repositories finished weights are looked for;
            None leaves that to TIMM_GHN_HUB.
        push: whether weights that were not there are pushed there.
        own: the keys that only this source has, and their values.
        plus: the source whose values replace those of this one.

    Raises:
        ValueError: no such source, a value outside of what `KEYS` allows, or a key that the source does not have.

    Example:
        >>> source = Source("ghn2", orth=True, layer=37)
        >>> str(source)
        'ghn2-orth?layer=37'
    """

    name: str = DEFAULT
    orth: bool = False
    layer: int | Literal["auto"] = "auto"
    beta: float = 3e-5
    seed: int | None = None
    orthogonal: bool = True
    classifier: bool = True
    layer_scale: float | Literal["auto", "keep"] = "auto"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    cache: bool | None = None
    hub: str | None = None
    push: bool = False
    own: tuple[tuple[str, Any], ...] = ()
    plus: "Source | None" = None

    def __post_init__(self) -> None:
        _SPELLING.check("name", self.name)
        object.__setattr__(self, "own", tuple((key, value) for key, value in self.own))
        for field in ("only", "skip"):
            object.__setattr__(self, field, patterns(getattr(self, field)))
        _check_name(self.name, self.name)
        FLAG.check(f"Source {self.name!r}: orth", self.orth)
        for name, key in KEYS.items():
            value = getattr(self, key.field)
            if value is not None or _DEFAULTS[key.field] is not None:
                key.kind.check(f"Source {self.name!r}: {name}", value)
        _check_orth(self.name, self.orth, f"{self.name}-orth")
        for name, key in KEYS.items():
            if name not in self.keys and getattr(self, key.field) != _DEFAULTS[key.field]:
                raise InputError(f"Source {self.name!r}: {_has_no_key(self.name, name)}")
        if not (self.orth or self.orthogonal):
            raise InputError(f"Source {self.name!r}: orthogonal=False (noise only) needs orth=True.")
        kinds = self.initialisation.keys if self.initialisation else {}
        for name, value in self.own:
            if name not in kinds:
                raise InputError(f"Source {self.name!r}: {_has_no_key(self.name, name)}")
            kinds[name].check(f"Source {self.name!r}: {name}", value)
        object.__setattr__(self, "own", tuple(sorted(self.own, key=lambda pair: list(kinds).index(pair[0]))))
        if self.plus is not None and self.plus.initialisation is None:
            raise InputError(f"Source {self.name}+{self.plus}: {_RIGHT}, and {self.plus.name} is a GHN.")
        if self.plus is not None and (self.cache or self.hub or self.push) and not self.initialisation:
            raise InputError(f"Source {self.name}+{self.plus}: cache=, hub= and push= are for a single source.")
        object.__setattr__(self, "beta", float(self.beta))
        if not isinstance(self.layer_scale, str):
            object.__setattr__(self, "layer_scale", float(self.layer_scale))

    def __str__(self) -> str:
        shared = {name: getattr(self, key.field) for name, key in KEYS.items()}
        chosen = {name: value for name, value in shared.items() if value != _DEFAULTS[KEYS[name].field]}
        pairs = [
            f"{name}={int(value) if type(value) is bool else ','.join(value) if type(value) is tuple else value}"
            for name, value in (*chosen.items(), *self.own)
        ]
        alone = self.name + "-orth" * self.orth + ("?" + "&".join(pairs) if pairs else "")
        return alone if self.plus is None else f"{alone}+{self.plus}"

    def __repr__(self) -> str:
        return f"Source({str(self)!r})"

    def _repr_html_(self) -> str:
        from .utils.notebook import folded

        about = self.known or self.initialisation
        what = about.description if about else "the default GHN" if self.name == DEFAULT else "a checkpoint of your own"
        paper = f"\n{about.paper}, arXiv:{about.arxiv}" if about and about.paper else ""
        licence = f"\nlicence: {self.known.license}" if self.known else ""
        fields = {name: KEYS[name].field for name in self.keys if name in KEYS}
        rows = [(n, getattr(self, f), _DEFAULTS[f]) for n, f in fields.items()] + [(n, v, "") for n, v in self.own]
        return folded(f"{self}: {what}{paper}{licence}", "keys", ("key", "value", "default"), rows)

    @property
    def is_postprocessed(self) -> bool:
        """Whether weights are changed after they have been predicted or drawn."""
        return self.orth or (self.initialisation is not None and self.initialisation.orthogonal)

    @property
    def parts(self) -> "tuple[Source, ...]":
        """The sources that this one is composed of: values of a later one replace those of an earlier one."""
        alone = self if self.plus is None else replace(self, plus=None)
        return (alone,) if self.plus is None else (alone, *self.plus.parts)

    @property
    def prediction(self) -> "Source":
        """This source without the keys that change nothing about the weights."""
        plain = {key.field: _DEFAULTS[key.field] for key in KEYS.values() if not key.predicts}
        return replace(self, **plain, plus=self.plus and self.plus.prediction)

    def seed_or(self, seed: int | None) -> int:
        """The caller's own seed, else the source's, else 0."""
        return int(next(s for s in (seed, self.seed, 0) if s is not None))  # also NumPy's

    @property
    def known(self) -> KnownGHN | None:
        """The named GHN; None for "ghn" and for files."""
        return KNOWN.get(self.name)

    @property
    def initialisation(self) -> Initialisation | None:
        """The row of the registry that is named, where a function gives the values; None where a GHN predicts them."""
        row = None if self.path or self.name in KNOWN else find(self.name)
        return None if row is None or row.function == PREDICTION else row

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of `KEYS` that it can have."""
        row = self.initialisation
        return tuple(KEYS) if row is None else (*row.shared, *row.keys)

    @property
    def path(self) -> Path | None:
        """The file of a "file:PATH" source."""
        return Path(os.path.expanduser(self.name.removeprefix("file:"))) if self.name.startswith("file:") else None

    @property
    def tag(self) -> str | None:
        """This source as the tag of a timm model name ("convnext_base.ghn2-orth"); None if it has a path or keys."""
        text = str(self)
        return None if self.path or "?" in text else text


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Source)}

# A file's path may hold anything as long as it ends in one of the suffixes, also "?" and "-orth".
_FILE = rf"file:.+(?:{'|'.join(map(re.escape, SUFFIXES))})"
_SYNTAX = re.compile(rf"(?P<name>{_FILE}|[^?]*?)(?P<orth>[-_]orth)?(?:\?(?P<query>.*))?", re.DOTALL)

# Texts that begin like our sources; not paths, which have separators, nor other words that start with these letters.
_CLAIMED = re.compile(
    r"file:.*|(?:(?:ghn(?:orth|(?![a-z]))|mlp[-_]cifar)[^/\\?]*|(?:rand|orth)(?:[-_]orth)?)(?:\?.*)?",
    re.DOTALL | re.IGNORECASE,
)


def is_source(text: object) -> bool:
    """Whether something is meant to be one of our sources, so that `parse_source` is to be asked (and may raise).

    True for all that parses and for what begins like it ("ghn2-ort", "GHN2", "ghn9?layr=3"), so that a slip of the pen
    is an error instead of some other weights. False for timm's own tags, paths, other words and anything but strings.
    """
    if not isinstance(text, str):
        return isinstance(text, Source)
    first = re.split(r"[?+]", text, maxsplit=1)[0].replace("_", "-")
    return is_known(first) or is_known(first.removesuffix("-orth")) or _CLAIMED.fullmatch(text) is not None


def parse_source(text: str | Source) -> Source:
    """Read a source string; the inverse of `str(source)`.

    Args:
        text: `NAME[-orth][?key=value&...][+...]`. "_" is accepted for "-" in names: "ghn2_orth" is "ghn2-orth".

    Raises:
        ValueError: no such GHN (the message lists all, and close matches), an unknown or repeated key, a bad value.

    Example:
        >>> parse_source("ghn2_orth?layer=94")
        Source('ghn2-orth?layer=94')
    """
    if isinstance(text, Source):
        return text
    _SPELLING.check("source", text)
    first, *others = _parts(text)
    source = _parse_alone(first, text)
    return replace(source, plus=parse_source("+".join(others))) if others else source


def _parts(text: str) -> list[str]:
    """A composition taken apart: a "+" counts before the name of a source, so that paths may hold one."""
    if "+" not in text:
        return [text]
    known = "|".join(name.replace("-", "[-_]") for name in names())
    return re.split(rf"\+(?=(?:{known})(?:[-_]orth)?(?:[?+]|$))", text)


def _parse_alone(spelling: str, text: str) -> Source:
    match = _SYNTAX.fullmatch(spelling)
    assert match is not None  # the pattern's last alternatives match anything
    name, orth, query = match["name"], bool(match["orth"]), match["query"]
    if not name.startswith("file:"):
        name = name.replace("_", "-")
    _check_name(name, text)
    _check_orth(name, orth, text)
    values = _read_query(query, text, name) if query is not None else {}
    if not orth:  # without post-processing so far, orth=1 asks for it and orth=0 for nothing
        orth = values.pop("orthogonal", False)
    return Source(name, orth, **values)


def patterns(value: Any) -> Any:
    """Patterns of parameter names as a tuple, from one or several of them; anything else as it is."""
    if isinstance(value, str):
        return PATTERNS.parse(value)
    return tuple(value) if isinstance(value, (list, set, frozenset)) else value


def list_sources() -> list[Source]:
    """List the sources with a name: GHNs without and with post-processing, "ghn", the default, first, then all others.

    Example:
        >>> [str(source) for source in list_sources()][:3]
        ['ghn', 'ghn-orth', 'ghn2']
    """
    ghns = [DEFAULT, *(n for n, ghn in KNOWN.items() if ghn.local_path is None or ghn.local_path.is_file())]
    functions = [name for name in names() if name not in KNOWN and name != DEFAULT and _loads(name)]
    return [Source(name, orth) for name in ghns for orth in (False, True)] + [Source(name) for name in functions]


def _loads(name: str) -> bool:
    """Whether a source can be used; one warning if a package's cannot."""
    try:
        return find(name) is not None
    except InputError as error:
        _logger.warning("%s", error)
        return False


def _read_query(query: str, text: str, source: str) -> dict[str, Any]:
    allowed, row = Source(source).keys, Source(source).initialisation
    kinds = {**{n: k.kind for n, k in KEYS.items()}, **(row.keys if row else {})}
    read: dict[str, Any] = {}
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        if name not in kinds or not equals:
            raise InputError(
                f"Source {text!r}: {pair!r} is not key=value with one of the keys {', '.join(allowed)}."
                + did_you_mean(name, allowed)
            )
        if name not in allowed:
            raise InputError(f"Source {text!r}: {_has_no_key(source, name)}")
        if name in read:
            raise InputError(f"Source {text!r}: the key {name} is given twice.")
        try:
            read[name] = kinds[name].read(value)
        except ValueError as error:
            raise InputError(f"Source {text!r}: {name} {error}.") from None
    shared = {KEYS[name].field: value for name, value in read.items() if name in KEYS}
    return {**shared, "own": tuple((name, value) for name, value in read.items() if name not in KEYS)}


def _check_name(name: str, text: str) -> None:
    """Raise unless there is a GHN or baseline of that name; `text` is what the user wrote."""
    if name in KNOWN:
        return
    if name.startswith("file:"):
        if re.fullmatch(_FILE, name, re.DOTALL):
            return
        raise InputError(f"Source {text!r}: the path after file: must end in {_SUFFIXES_OR}.")
    if find(name) is not None:
        return
    as_file = f" For a file, write file:{text}." if any(suffix in text for suffix in SUFFIXES) else ""
    close = did_you_mean(re.split("[?+]", name)[-1].lower(), map(str, list_sources()))
    functions = ", ".join(n for n in names() if n != DEFAULT and n not in KNOWN)
    raise InputError(
        f"Unknown source {text!r}.{as_file}{close} "
        f"Sources: {', '.join([DEFAULT, *KNOWN])}, file:PATH ({_SUFFIXES_OR}), each also with -orth and with "
        f"?key=value&... ({', '.join(KEYS)}); without a GHN {functions}; several with + between them."
    )


def _check_orth(name: str, orth: bool, text: str) -> None:
    if orth and Source(name).initialisation:
        raise InputError(f"Source {text!r}: {name} is not post-processed. Did you mean orth?")


def _has_no_key(name: str, key: str) -> str:
    return f"{name} has no key {key}, only {', '.join(Source(name).keys)}."
