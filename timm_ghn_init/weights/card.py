"""The model card of predicted weights on the Hub: how they came about and how to load them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ..registry import Initialisation
from ..report import InitReport
from ..sources import KNOWN, KnownGHN, Source, parse_source
from ..utils.text import clean

_PAPER = "[Pretraining a Neural Network before Knowing Its Architecture](https://arxiv.org/abs/2207.10049)"

_TEXT = """\
# {title}

Parameters of timm's `{architecture}`, initialised by {ghn}{orth}. **They were never trained**: they
are a starting point for training on your data, in place of a random initialisation.

## Load

```python
import timm

model = timm.create_model("hf-hub:{repo}", pretrained=True)
```

This needs nothing but timm. The package timm-ghn-init wrote them, and predicts parameters of any other architecture.

## How they came about

{facts}

## What was predicted

{coverage}
"""


def model_card(report: InitReport, provenance: Mapping[str, Any], repo: str) -> str:
    """The content of README.md for `repo`, as timm loads it: YAML that the Hub reads, and Markdown for people.

    Names in it come from models and files: none of them can break out of its place.
    """
    source = parse_source(report.source)
    known = KNOWN.get(source.name)
    text = _TEXT.format(
        title=_text(repo.rpartition("/")[2]),
        architecture=_code(report.model),
        ghn=_text(_origin(source)),
        orth=f" and post-processed ({_PAPER}, GHN-orth)" if source.orth else "",
        repo=_code(repo),
        facts=_table(("", ""), _facts(report, provenance)),
        coverage=_table(("", "parameters", "values"), _coverage(report)),
    )
    return f"---\n{_front_matter(provenance, known.license if known else 'unknown')}\n---\n{text}"


def _origin(source: Source) -> str:
    """The sources of the values, part by part."""
    return ", then ".join(work.description if work else "a GHN of the uploader's own" for work in _works(source))


def _works(source: Source) -> list[KnownGHN | Initialisation | None]:
    return [part.known or part.initialisation for part in source.parts]


def _front_matter(provenance: Mapping[str, Any], license: str) -> str:
    from huggingface_hub import ModelCardData

    classes = provenance.get("num_classes")
    data = ModelCardData(
        license=license,
        library_name="timm",
        pipeline_tag="image-classification" if classes else "image-feature-extraction",
        tags=["timm", "timm-ghn-init", "parameter-prediction"],
    )
    return data.to_yaml().strip()


def _facts(report: InitReport, provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    source = parse_source(report.source)
    ghn, known = provenance["ghn"], KNOWN.get(source.name)
    rows = [
        ("architecture", provenance["architecture"]),
        ("built with", ", ".join(f"{k}={v!r}" for k, v in provenance["options"].items()) or "timm's defaults"),
        ("source", report.source),
        ("GHN", ghn and f"{ghn['name']}, sha256 {ghn['sha256']}"),
        ("from", ghn and ghn.get("origin", "")),
        ("trained on", known.dataset if known else ""),
        ("licence of the GHN", known.license if known else "unknown" if ghn else ""),
        ("papers", ", ".join(f"{w.paper}, arXiv:{w.arxiv}" for w in _works(source) if w and w.arxiv)),
        ("graph", f"{report.nodes} nodes, {report.edges} edges" if report.nodes else ""),
        ("post-processed", report.layer and f"{len(report.postprocessed)} layers from layer {report.layer} on"),
        ("seed", report.seed),
        ("seed of timm's own initialisation", provenance["seed"]),
        ("computed on", provenance["device"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())),
        ("key", provenance.get("key", "")),
    ]
    return [(name, _text(value)) for name, value in rows if value not in (None, "")]


def _coverage(report: InitReport) -> list[tuple[str, str, str]]:
    """Predicted parameters by role, and those with timm's own initialisation by reason."""
    groups: dict[str, list[int]] = defaultdict(list)
    for name, role in report.predicted.items():
        groups[f"predicted: {role}"].append(report.sizes[name])
    for name, reason in report.skipped.items():
        groups[f"timm's own initialisation: {reason}"].append(report.sizes[name])
    rows = [(_text(what), f"{len(sizes):,}", f"{sum(sizes):,}") for what, sizes in groups.items()]
    return [*rows, ("predicted in all", f"{len(report.predicted):,}", f"{report.coverage:.2%}")]


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """One line in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&~$])", r"\\\1", _one_line(value))


def _code(value: object) -> str:
    """One line that ends neither the code nor the string that it stands in."""
    return re.sub(r'[`"\\]', "?", _one_line(value))


def _one_line(value: object) -> str:
    return clean(" ".join(str(value).split()))
