"""Source strings: what they mean, what they are mistaken for, and that they survive a round trip."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm

from timm_ghn_init import sources
from timm_ghn_init.sources import KEYS, KNOWN, SUFFIXES, Source, is_source, list_sources, parse_source

READ = {
    "ghn": Source("ghn"),
    "ghn-orth": Source("ghn", orth=True),
    "ghn2": Source("ghn2"),
    "ghn2_orth": Source("ghn2", orth=True),
    "ghn2-cifar10": Source("ghn2-cifar10"),
    "ghn2_cifar10_orth": Source("ghn2-cifar10", orth=True),
    "mlp-cifar10-orth": Source("mlp-cifar10", orth=True),
    "ghn3-t-orth": Source("ghn3-t", orth=True),
    "ghn3-xl": Source("ghn3-xl"),
    "ghn2-fashion-orth": Source("ghn2-fashion", orth=True),
    "ghn2-orth?layer=94&beta=1e-4&seed=7": Source("ghn2", orth=True, layer=94, beta=1e-4, seed=7),
    "ghn2-orth?seed=7&layer=auto": Source("ghn2", orth=True, seed=7),
    "ghn2?classifier=0": Source("ghn2", classifier=False),
    "ghn2-orth?cache=1&layer=3": Source("ghn2", orth=True, layer=3, cache=True),
    "ghn2?cache=0": Source("ghn2", cache=False),
    "ghn2-orth?beta=0": Source("ghn2", orth=True, beta=0.0),
    "ghn2?orth=1": Source("ghn2", orth=True),
    "ghn2?orth=0": Source("ghn2"),
    "ghn2-orth?orth=1": Source("ghn2", orth=True),
    "ghn2-orth?orth=0": Source("ghn2", orth=True, orthogonal=False),
    "rand": Source("rand"),
    "rand?seed=3": Source("rand", seed=3),
    "orth": Source("orth"),
    "orth?layer=37&seed=1": Source("orth", layer=37, seed=1),
    "orth?layer=auto": Source("orth"),
    "file:a.pt": Source("file:a.pt"),
    "file:a.pth": Source("file:a.pth"),
    "file:epoch=3.ckpt-orth": Source("file:epoch=3.ckpt", orth=True),
    "file:pytorch_model.bin?seed=1": Source("file:pytorch_model.bin", seed=1),
    "file:/x/y.safetensors_orth": Source("file:/x/y.safetensors", orth=True),
    "file:x-orth.pt": Source("file:x-orth.pt"),
    "file:what?.pt-orth?seed=1": Source("file:what?.pt", orth=True, seed=1),
    "file:a.pt?seed=1": Source("file:a.pt", seed=1),
    "file:./with space/é&=.safetensors": Source("file:./with space/é&=.safetensors"),
}


@pytest.mark.parametrize("text", READ)
def test_parse(text: str) -> None:
    assert parse_source(text) == READ[text]
    assert parse_source(str(READ[text])) == READ[text]
    assert is_source(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ghn2_orth?seed=0&layer=auto&beta=0.00003", "ghn2-orth?seed=0"),
        ("ghn2?orth=1&classifier=1", "ghn2-orth"),
        (
            "ghn2-orth?classifier=0&orth=0&seed=1&beta=0.5&layer=2",
            "ghn2-orth?layer=2&beta=0.5&seed=1&orth=0&classifier=0",
        ),
    ],
)
def test_canonical_spelling(text: str, canonical: str) -> None:
    assert str(parse_source(text)) == canonical


def test_round_trip_of_random_sources() -> None:
    draw = random.Random(0)
    parts = ["a", "-orth", "_orth", ".pt", "?", "seed=1", "&", "/", "=", "b.safetensors", " ", "ü", "\n"]
    for _ in range(2000):
        orth = draw.random() < 0.5
        name = draw.choice([*KNOWN, "ghn", ""]) or (
            "file:x" + "".join(draw.choices(parts, k=draw.randrange(6))) + draw.choice(SUFFIXES)
        )
        source = Source(
            name,
            orth,
            layer=draw.choice(["auto", 1, draw.randrange(1, 10**6)]),
            beta=draw.choice([3e-5, 0.0, 1.0, draw.random(), 10 ** draw.uniform(-300, 300)]),
            seed=draw.choice([None, 0, draw.randrange(2**63)]),
            orthogonal=not orth or draw.random() < 0.5,
            classifier=draw.random() < 0.5,
            cache=draw.choice([None, False, True]),
        )
        assert parse_source(str(source)) == source


def test_prediction_leaves_out_where_weights_are_kept() -> None:
    source = Source("ghn2", True, layer=3, beta=1e-4, seed=5, orthogonal=False, classifier=False, cache=True)
    assert source.prediction == replace(source, cache=None)
    assert str(source.prediction) + "&cache=1" == str(source)


# what is wrong -> what the message must say
WRONG = {
    "RAND": "Did you mean rand",
    "rand-orth": "Did you mean orth",
    "orth_orth?seed=1": "Did you mean orth",
    "orth?beta=3e-5": "orth has no key beta, only layer, seed",
    "orth?orth=1": "orth has no key orth",
    "rand?layer=3": "rand has no key layer, only seed",
    "rand?sed=3": "Did you mean seed",
    "orth?layer=0": "layer must be a whole number from 1 on",
    "ghn2-ort": "Did you mean ghn2-orth",
    "GHN2": "Did you mean ghn2",
    "ghn9": "ghn3-xl",
    "ghn4-t": "Did you mean ghn3-t",
    "ghn2-orth-orth": "Did you mean ghn2-orth",
    "ghnorth": "Did you mean ghn-orth",
    "mlp-cifar100": "Did you mean mlp-cifar10",
    "ghn2_imagenet.pt": "write file:ghn2_imagenet.pt",
    "ghn2 ": "Did you mean ghn2",
    "ghn2-orth?layr=3": "Did you mean layer",
    "ghn2-orth?": "'' is not key=value",
    "ghn2-orth?seed": "'seed' is not key=value",
    "ghn2-orth?seed=1&seed=1": "seed is given twice",
    "ghn2-orth?seed=1.5": "seed must be a whole number from 0 on, not '1.5'",
    "ghn2-orth?seed=-1": "seed must be a whole number",
    "ghn2-orth?seed=": "seed must be a whole number",
    "ghn2-orth?seed=1_0": "seed must be a whole number",
    f"ghn2-orth?seed={2**63}": "seed must be a whole number",
    "ghn2-orth?layer=0": "layer must be a whole number from 1 on, or auto, not '0'",
    "ghn2-orth?layer=-3": "layer must be",
    "ghn2-orth?layer=last": "layer must be",
    "ghn2-orth?beta=-1e-5": "beta must be a finite number from 0 on",
    "ghn2-orth?beta=nan": "beta must be",
    "ghn2-orth?beta=inf": "beta must be",
    "ghn2-orth?beta=x": "beta must be",
    "ghn2?orth=2": "orth must be 0 or 1",
    "ghn2?classifier=yes": "classifier must be 0 or 1",
    "ghn2?cache=2": "cache must be 0 or 1",
    "file:": "must end in .pt, .pth, .ckpt, .bin or .safetensors",
    "file:.pt": "must end in .pt, .pth, .ckpt, .bin or .safetensors",
    "file:model.onnx": "must end in .pt, .pth, .ckpt, .bin or .safetensors",
    "file:model.onnx?seed=1": "must end in .pt, .pth, .ckpt, .bin or .safetensors",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_begins_like_a_source_and_is_none_is_an_error(text: str) -> None:
    assert is_source(text)
    with pytest.raises(ValueError) as error:
        parse_source(text)
    assert WRONG[text] in str(error.value)
    assert repr(text) in str(error.value)


def test_unknown_names_list_all_sources() -> None:
    with pytest.raises(ValueError) as error:
        parse_source("ghn9")
    assert all(name in str(error.value) for name in [*KNOWN, "file:PATH", *KEYS])


@pytest.mark.parametrize(
    "values",
    [
        {"name": "ghn9"},
        {"name": "ghn2-orth"},
        {"name": "file:x"},
        {"orth": 1},
        {"layer": 0},
        {"layer": True},
        {"layer": 2.0},
        {"layer": None},
        {"beta": -1.0},
        {"beta": float("nan")},
        {"beta": float("inf")},
        {"beta": "0"},
        {"seed": -1},
        {"seed": 1.0},
        {"seed": False},
        {"classifier": 1},
        {"orthogonal": False},
        {"beta": 0.0, "name": "orth"},
        {"layer": 2, "name": "rand"},
        {"orth": True, "name": "orth"},
    ],
)
def test_values_are_checked_at_construction_too(values: dict) -> None:
    with pytest.raises(
        ValueError, match=next(iter(values)) if "name" not in values else "ghn9|ghn2-orth|file:x|rand|orth"
    ):
        Source(**values)


def test_a_whole_number_is_a_beta() -> None:
    assert Source("ghn2", beta=1) == Source("ghn2", beta=1.0)  # type: ignore[arg-type]
    assert str(Source("ghn2", beta=1)) == "ghn2?beta=1.0"  # type: ignore[arg-type]


def test_timms_own_tags_are_not_claimed() -> None:
    names = timm.list_pretrained()
    tags = {name.partition(".")[2] for name in names} - {s.tag for s in list_sources()}
    assert len(tags) > 200
    assert [tag for tag in tags if is_source(tag)] == []
    assert [name for name in timm.list_models() if is_source(name)] == []


@pytest.mark.parametrize(
    "thing",
    [
        *(
            "",
            "in1k",
            "fb_in22k_ft_in1k",
            "a1_in1k",
            "imagenet",
            "orthogonal",
            "random",
            "mlp",
            "mlp_mixer_b16",
            "ghost",
        ),
        *("ghnet", "ghnasty_in1k", "my-ghn2", "xghn", "hf-hub:ghn2"),
        *("./ghn2", "ghn2/model.safetensors", "ghn\\x", "C:\\ghn2", "/data/ghn2", "models/ghn2-orth"),
        *(True, False, None, 2, 1.5, b"ghn2", {"tag": "ghn2"}, ["ghn2"], Path("ghn2")),
    ],
)
def test_other_things_are_not_claimed(thing: object) -> None:
    assert is_source(thing) is False


def test_a_source_is_a_source() -> None:
    source = Source("ghn2", seed=3)
    assert is_source(source)
    assert parse_source(source) is source


def test_tags_are_names_that_timm_can_take_apart() -> None:
    for source in list_sources():
        assert source.tag == str(source)
        assert timm.models.split_model_name_tag(f"convnext_base.{source.tag}") == ("convnext_base", source.tag)
        assert timm.models.parse_model_name(f"convnext_base.{source.tag}")[1] == f"convnext_base.{source.tag}"
        assert parse_source(source.tag) == source
    assert Source("ghn2", seed=1).tag is None
    assert Source("file:x.pt").tag is None


def test_list_sources() -> None:
    names = [str(s) for s in list_sources()]
    assert names[:4] == ["ghn", "ghn-orth", "ghn2", "ghn2-orth"]
    assert {"ghn1", "ghn1-cifar10-orth", "mlp-cifar10", "ghn3-t", "ghn3-s", "ghn3-l-orth", "ghn3-xl-orth"} <= set(names)
    assert len(names) == len(set(names))
    shipped = KNOWN[sources.SHIPPED].local_path
    assert shipped is not None
    assert (sources.SHIPPED in names) == shipped.is_file()


def test_every_known_ghn_says_where_it_comes_from() -> None:
    for name, ghn in KNOWN.items():
        assert name == ghn.name == parse_source(name).name
        assert ghn.license in ("mit", "apache-2.0")
        assert ghn.paper and ghn.arxiv and ghn.description
        assert sum(map(bool, (ghn.url, ghn.hub, ghn.local))) == 1
        assert bool(ghn.url) == (len(ghn.blob) == 40)
    assert len({ghn.origin for ghn in KNOWN.values()}) == len(KNOWN)
    assert Source("ghn2").known is KNOWN["ghn2"]
    assert Source("ghn").known is None
    assert Source("file:~/x.pt").path == Path("~/x.pt").expanduser()


def test_importing_it_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys\n"
        "from timm_ghn_init import sources\n"
        "print(sources.parse_source('ghn_orth'), *(m for m in ('torch', 'timm', 'numpy') if m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["ghn-orth"]
