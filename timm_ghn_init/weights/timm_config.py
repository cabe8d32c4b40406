"""Weights of our sources in timm's config.json and `pretrained_cfg`."""

from dataclasses import replace
from typing import Any

from torch import nn

from ..report import InitReport
from ..sources import KNOWN, Source, parse_source

PAPER = "Pretraining a Neural Network before Knowing Its Architecture"
PAPER_ID = "arXiv:2207.10049"


def source_cfg(source: Source | None, base: Any) -> Any:
    """The `PretrainedCfg` of an architecture whose weights a source predicts; None for those drawn at random.

    Fields on data and layers are those of `base`, the architecture's own; fields on weights are replaced.
    """
    return replace(base, **cfg_fields(source))


def cfg_fields(source: Source | None) -> dict[str, Any]:
    """The fields of a `PretrainedCfg` in which a source takes the place of the weights' origin."""
    if source is None:
        return dict.fromkeys(("source", "tag", "license", "description", "origin_url", "paper_name", "paper_ids"))
    known = KNOWN.get(source.name)
    work = known or source.initialisation
    paper = (work.paper, f"arXiv:{work.arxiv}") if work and work.arxiv else (None, None)
    paper = (PAPER, PAPER_ID) if source.orth else paper
    return {
        **dict.fromkeys(("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "label_offset", "notes")),
        "custom_load": False,
        "source": str(source),
        "tag": None if source.path else str(source),  # timm takes no paths in names
        "license": known.license if known else None,
        "description": _description(source),
        "origin_url": known.origin if known else None,
        "paper_name": paper[0],
        "paper_ids": paper[1],
    }


def note_source(model: nn.Module, report: InitReport) -> None:
    """Attach a report to the model that it is about, as `ghn_report`, and have timm's models in it name the source.

    Those are all modules with a `pretrained_cfg` some of whose parameters were predicted.
    """
    fields = cfg_fields(parse_source(report.source))
    for path, module in model.named_modules():
        config = module.__dict__.get("pretrained_cfg")
        if isinstance(config, dict) and any(name.startswith(f"{path}." * bool(path)) for name in report.predicted):
            ours = {**config, **fields}  # some models share theirs
            for attribute in [a for a in ("pretrained_cfg", "default_cfg") if module.__dict__.get(a) is config]:
                setattr(module, attribute, ours)
    model.ghn_report = report  # type: ignore[assignment]


def _description(source: Source) -> str:
    if source.initialisation or source.plus:
        return ", then ".join(_described(part) for part in source.parts)
    return _described(source)


def _described(source: Source) -> str:
    if source.initialisation:
        return source.initialisation.description
    # of a file no folders: they are the user's
    name = source.known.description if source.known else source.path.name if source.path else source.name
    return f"Parameters predicted by {name}" + (", post-processed (GHN-orth)" if source.orth else "")
