"""init_model: what it writes, what it leaves alone, and what it refuses."""

import copy
import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_ghn_init
from timm_ghn_init import GHN, TraceError, init_model, load_ghn, save_ghn, trace
from timm_ghn_init.recipe.layer_scale import layer_scales


def small() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 80, 3),
            bn=nn.BatchNorm2d(80),
            act=nn.ReLU(),
            mid=nn.Conv2d(80, 96, 3),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(96, 1000),
        )
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def test_any_module(seeded_ghn2: GHN) -> None:
    model = small()
    predicted = seeded_ghn2.predict(trace(model))
    report = init_model(model, "ghn2", ghn=seeded_ghn2)
    assert set(report.predicted) == {n for n, _ in model.named_parameters()} == set(predicted)
    assert report.coverage == 1
    for name, p in model.named_parameters():
        assert torch.equal(p, predicted[name]), name


def test_report(seeded_ghn2: GHN, caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("test_convnext", num_classes=10)
    with caplog.at_level(logging.INFO, logger="timm_ghn_init"):
        report = init_model(model, "ghn2-orth?layer=3", ghn=seeded_ghn2, seed=4)
    assert report.model == "test_convnext"
    assert report.source == "ghn2-orth?layer=3"
    assert (report.layer, report.seed) == (3, 4)
    names = {n for n, _ in model.named_parameters()}
    assert set(report.predicted) | set(report.skipped) == names
    assert not set(report.predicted) & set(report.skipped)
    assert "classifier of 10 classes" in report.skipped["head.fc.weight"]
    assert "scale" in next(reason for name, reason in report.skipped.items() if name.endswith("gamma"))
    assert 0.9 < report.coverage < 1
    assert report.postprocessed
    assert json.loads(json.dumps(report.to_dict()))["coverage"] == report.coverage
    assert "test_convnext" in caplog.text
    assert "post-processed" in str(report)


def test_explicit_ghn_wins(seeded_ghn2: GHN) -> None:
    """No checkpoint is looked for when a GHN is given."""
    report = init_model(small(), "ghn1-cifar10", ghn=seeded_ghn2)
    assert report.predicted


def test_model_survives(seeded_ghn2: GHN) -> None:
    """What an optimizer, a checkpoint or a training loop may rely on stays as it was."""
    model = timm.create_model("test_resnet").train()
    model.layer1.eval()
    model.conv1[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    identity = {n: (id(p), p.dtype, p.requires_grad, p.data_ptr()) for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    modes = [m.training for m in model.modules()]
    keys, torch_state = list(model.state_dict()), torch.get_rng_state()
    init_model(model, "ghn2-orth", ghn=seeded_ghn2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert list(model.state_dict()) == keys
    assert {n: (id(p), p.dtype, p.requires_grad, p.data_ptr()) for n, p in model.named_parameters()} == identity
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.grad_fn is None for p in model.parameters())
    weight = model.layer4[-1].conv2.weight
    before = weight.clone()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)


def test_tied_parameters_stay_tied(seeded_ghn2: GHN) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
            self.c = nn.Conv2d(8, 8, 1)
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.c(self.b(self.a(x))).mean((2, 3)))

    model = Tied()
    init_model(model, "ghn2", ghn=seeded_ghn2)
    assert model.c.weight is model.b.weight
    assert torch.equal(model.b.weight, seeded_ghn2.predict(trace(model))["b.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_computed_in_float32_and_cast_at_the_end(dtype: torch.dtype, seeded_ghn2: GHN) -> None:
    reference, model = small(), small().to(dtype)
    model.load_state_dict(reference.state_dict())
    for m in (reference, model):
        init_model(m, "ghn2", ghn=seeded_ghn2)
    for (name, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert q.dtype == dtype
        assert torch.equal(p.to(dtype), q), name


def test_channels_last(seeded_ghn2: GHN) -> None:
    reference, model = small(), small().to(memory_format=torch.channels_last)
    for m in (reference, model):
        init_model(m, "ghn2", ghn=seeded_ghn2)
    assert model.mid.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(p, q) for p, q in zip(reference.parameters(), model.parameters(), strict=True))


def test_same_seed_same_bits(seeded_ghn2: GHN) -> None:
    models = [small() for _ in range(4)]
    for model, seed in zip(models, (0, 0, 1, None), strict=True):
        init_model(model, "ghn2-orth?layer=1", ghn=seeded_ghn2, seed=seed)
    a, b, c, d = (m.mid.weight for m in models)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a, d)
    init_model(models[0], "ghn2-orth?layer=1", ghn=seeded_ghn2, seed=0)
    assert torch.equal(models[0].mid.weight, b)


def test_classifier_is_predicted_for_the_ghns_classes_only(seeded_ghn2: GHN) -> None:
    model = small()
    assert "fc.weight" in init_model(model, "ghn2", ghn=seeded_ghn2).predicted
    before = model.fc.weight.clone()
    report = init_model(model, "ghn2?classifier=0", ghn=seeded_ghn2)
    assert "classifier=0" in report.skipped["fc.weight"]
    model.fc = nn.Linear(96, 10)
    before = model.fc.weight.clone()
    report = init_model(model, "ghn2-orth", ghn=seeded_ghn2)
    assert "10 classes" in report.skipped["fc.weight"]
    assert torch.equal(model.fc.weight, before)


def test_model_without_a_classifier(seeded_ghn2: GHN) -> None:
    """mobilenetv3's last layer yields features when num_classes=0; it is no classifier then."""
    model = timm.create_model("mobilenetv3_small_050", num_classes=0)
    report = init_model(model, "ghn2", ghn=seeded_ghn2)
    assert report.predicted["conv_head.weight"] == "weight"
    assert report.coverage == 1


def test_tokens_keep_their_values(seeded_ghn2: GHN) -> None:
    model = timm.create_model("test_vit")
    before = snapshot(model)
    report = init_model(model, "ghn2", ghn=seeded_ghn2)
    assert report.predicted["pos_embed"] == "pos_enc"
    assert torch.equal(model.pos_embed[:, :1], before["pos_embed"][:, :1])
    assert not torch.isclose(model.pos_embed[:, 1:], before["pos_embed"][:, 1:]).any(dim=-1).all()
    assert torch.equal(model.cls_token, before["cls_token"])
    assert "token" in report.skipped["cls_token"]


def test_joined_biases(seeded_ghn2: GHN) -> None:
    """BEiT joins q, zeros and v biases before use: each is its part of one predicted bias."""
    model = timm.create_model("beit_base_patch16_224", depth=1, embed_dim=192, num_heads=3)
    graph = trace(model)
    q, v = graph.targets["blocks.0.attn.q_bias"], graph.targets["blocks.0.attn.v_bias"]
    assert (q.node, q.offset, v.offset) == (v.node, 0, 2 * 192)
    assert graph.nodes[q.node].shape == (3 * 192,)
    init_model(model, "ghn2", ghn=seeded_ghn2)
    whole = seeded_ghn2.decode(graph, seeded_ghn2.embed(graph), ["blocks.0.attn.q_bias"])["blocks.0.attn.q_bias"].block
    torch.testing.assert_close(model.blocks[0].attn.q_bias.data, whole.repeat(3)[:192])
    torch.testing.assert_close(model.blocks[0].attn.v_bias.data, whole.repeat(9)[384:576])


class WithUnusedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.aux, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.used(x))


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("a bug of the model")


def refused() -> dict[str, tuple[nn.Module, dict[str, Any], type[Exception], str]]:
    """name -> (model, arguments, exception, what its message must say)."""
    return {
        "unknown source": (small(), {"source": "ghn7"}, ValueError, "Sources: ghn, ghn2"),
        "unknown key": (small(), {"source": "ghn2-orth?depth=3"}, ValueError, "layer"),
        "negative beta": (small(), {"source": "ghn2-orth?beta=-1"}, ValueError, "beta"),
        "layer beyond the last": (small(), {"source": "ghn2-orth?layer=4"}, ValueError, "layer"),
        "no parameters": (nn.ReLU(), {}, TraceError, "no parameters"),
        "nothing recognised": (nn.PReLU(), {}, TraceError, "PReLU"),
        "size refused": (timm.create_model("test_vit"), {"input_size": 50}, TraceError, "input_size"),
        "bad size": (small(), {"input_size": (3, 0, 4)}, ValueError, "input_size"),
        "bug in forward": (NoForward(), {}, TraceError, "a bug of the model"),
        "pattern that matches nothing": (
            small(),
            {"only": "backbone.*"},
            ValueError,
            "backbone.* matches none",
        ),
        "pattern without a star": (small(), {"skip": "conv"}, ValueError, r"conv\.\* matches all of a module"),
        "pattern in the source": (small(), {"source": "ghn2?skip=x.*"}, ValueError, r"skip=x\.\* matches none"),
        "pattern that is none": (small(), {"only": 3}, ValueError, "only must be patterns"),
        "nothing left": (small(), {"skip": "*"}, TraceError, "none of its parameters"),
    }


@pytest.mark.parametrize("case", refused())
def test_refusals_leave_the_model_as_it_was(case: str, seeded_ghn2: GHN) -> None:
    model, arguments, exception, says = refused()[case]
    is_meta = any(p.is_meta for p in model.parameters())
    before = {} if is_meta else snapshot(model)
    with pytest.raises(exception, match=says):
        init_model(model, **{"source": "ghn2-orth", "ghn": seeded_ghn2, **arguments})
    assert is_meta or unchanged(model, before)


@pytest.mark.parametrize("source", ["ghn2-orth?layer=1", "orth"])
def test_only_and_skip(source: str, seeded_ghn2: GHN) -> None:
    """What is left out is neither written nor post-processed, and all else is what it would have been."""
    options: Any = {} if source == "orth" else {"ghn": seeded_ghn2}
    whole, model = small(), small()
    init_model(whole, source, **options)
    before = snapshot(model)
    report = init_model(model, source, only=["conv.*", "bn.*", "mid.weight"], skip="*.bias", **options)
    assert set(report.predicted) == {"conv.weight", "bn.weight", "mid.weight"}
    assert set(report.postprocessed) == {"conv.weight", "mid.weight"}
    assert report.skipped["conv.bias"] == "skip=*.bias"
    assert report.skipped["fc.weight"] == "not in only=conv.*,bn.*,mid.weight"
    for name, p in model.named_parameters():
        assert torch.equal(p, whole.get_parameter(name) if name in report.predicted else before[name]), name
    other = small()
    other.load_state_dict(before)
    separator = "&" if "?" in source else "?"
    text = f"{source}{separator}only=conv.*,bn.*,mid.weight&skip=*.bias"
    assert init_model(other, text, **options).skipped == report.skipped
    assert unchanged(other, snapshot(model))


def test_patterns_match_the_names_that_the_user_knows(seeded_ghn2: GHN) -> None:
    """Those inside a wrapper, those of a wrapper, and all names of a parameter that is shared."""
    model = nn.DataParallel(small())
    for pattern in ("module.conv.*", "conv.*"):
        assert set(init_model(model, "ghn2", ghn=seeded_ghn2, only=pattern).predicted) == {
            "module.conv.weight",
            "module.conv.bias",
        }
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    shared[1].weight = shared[0].weight
    assert "0.weight" not in init_model(shared, "ghn2", ghn=seeded_ghn2, skip="1.weight").predicted


def test_a_weight_that_is_computed_is_left_whole(seeded_ghn2: GHN) -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    model = nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    before = snapshot(model)
    report = init_model(model, "ghn2", ghn=seeded_ghn2, skip="*.original0")
    assert set(report.predicted) == {"0.bias", "1.weight", "1.bias"}  # and the last layer is a head
    assert all(torch.equal(model.state_dict()[n], before[n]) for n in before if "original" in n)


def test_orth_of_very_few_layers(seeded_ghn2: GHN) -> None:
    """The default of `layer` is one of the model's layers, however few it has."""
    for n in (1, 2, 3):
        layers = [nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3), nn.BatchNorm2d(8)) for i in range(n)]
        report = init_model(nn.Sequential(*layers), "ghn2-orth", ghn=seeded_ghn2, input_size=16)
        assert report.layer == n and report.postprocessed == (f"{n - 1}.0.weight",)


@pytest.mark.parametrize("source", ["ghn2-orth?layer=2", "orth"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_post_processing_is_rounded_once(source: str, dtype: torch.dtype, seeded_ghn2: GHN) -> None:
    options: Any = {} if source == "orth" else {"ghn": seeded_ghn2}
    reference, model = small(), small().to(dtype)
    names = init_model(reference, source, **options).postprocessed
    assert init_model(model, source, **options).postprocessed == names
    for name in names:
        assert torch.equal(model.get_parameter(name), reference.get_parameter(name).to(dtype)), name


def test_prediction_that_is_not_finite(seeded_ghn2: GHN) -> None:
    import copy

    ghn = copy.deepcopy(seeded_ghn2)
    ghn.decoder_1d.fc[2].bias[:] = float("nan")
    model = small()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"Sequential.*conv.bias"):
        init_model(model, "ghn2", ghn=ghn)
    assert unchanged(model, before)


def test_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    model = small()
    before = snapshot(model)
    with pytest.raises(timm_ghn_init.CheckpointError, match=r"nowhere.safetensors"):
        init_model(model, f"file:{tmp_path}/nowhere.safetensors")
    assert unchanged(model, before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_cuda_agrees_with_the_cpu(where: str, seeded_ghn2: GHN) -> None:
    """Predictions to 1e-4; decoded on the GPU wherever the model is."""
    reference = timm.create_model("resnet18")
    init_model(reference, "ghn2", ghn=seeded_ghn2, device="cpu")
    model = timm.create_model("resnet18").to(where)
    report = init_model(model, "ghn2", ghn=seeded_ghn2)
    assert report.device.startswith("cuda")
    for (name, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert q.device.type == where
        assert (p - q.cpu()).abs().max() <= 1e-4 * p.abs().max(), name


# -- layer scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["file:{ghn}", "file:{ghn}-orth", "rand", "orth"])
def test_layer_scales_get_the_value_that_the_source_names(source: str, tmp_path: Path, seeded_ghn2: GHN) -> None:
    save_ghn(seeded_ghn2, tmp_path / "a.safetensors")
    source = source.format(ghn=tmp_path / "a.safetensors")
    kept = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 10}
    model, plain = (timm.create_model("convnext_atto", **kept) for _ in range(2))
    report = init_model(model, f"{source}?layer_scale=0.25&skip=stages.3.*", input_size=32)
    init_model(plain, f"{source}?skip=stages.3.*", input_size=32)
    for (name, value), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        if name.endswith("gamma") and "stages.3" not in name:
            assert (value == 0.25).all() and (other == 1e-6).all()
            assert report.skipped[name] == "layer scale, set to 0.25"
        elif "stages.3" not in name and "head" not in name:
            assert torch.equal(value, other), name
    assert (model.stages[3].blocks[0].gamma == 1e-6).all()


def test_layer_scales_get_the_value_that_was_chosen_for_the_ghn(tmp_path: Path, seeded_ghn2: GHN) -> None:
    ghn = copy.deepcopy(seeded_ghn2)
    ghn.layer_scale = 0.5
    save_ghn(ghn, tmp_path / "a.safetensors")
    assert load_ghn(tmp_path / "a.safetensors").layer_scale == 0.5
    for key, wanted in (("", 0.5), ("?layer_scale=keep", 1e-6), ("?layer_scale=2", 2.0)):
        model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=10)
        init_model(model, f"file:{tmp_path / 'a.safetensors'}{key}", input_size=32)
        scales = torch.cat([stage.blocks[0].gamma for stage in model.stages])
        assert (scales == wanted).all()


def test_layer_scales_are_set_where_the_weights_come_from_the_cache() -> None:
    models = [timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)) for _ in range(2)]
    reports = [init_model(model, "ghn2-fashion-orth?layer_scale=0.5&cache=1", input_size=32) for model in models]
    assert [report.cached for report in reports] == [False, True]
    for model in models:
        assert (model.stages[0].blocks[0].gamma == 0.5).all()


def test_what_is_a_layer_scale() -> None:
    """Known by name; a norm that calls its weight "gamma" is none."""

    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.lin = Norm(), torch.nn.Linear(4, 4)
            self.gamma_1 = torch.nn.Parameter(torch.ones(4))
            self.layer_scale = torch.nn.Parameter(torch.ones(4, 1, 1))

    assert set(layer_scales(Block(), ())) == {"gamma_1", "layer_scale"}
    assert set(layer_scales(Block(), {"gamma_1"})) == {"layer_scale"}
    with torch.device("meta"):
        found = {name: len(layer_scales(timm.create_model(name), ())) for name in ("cait_xxs24_224", "resmlp_12_224")}
    assert found == {"cait_xxs24_224": 52, "resmlp_12_224": 24}
