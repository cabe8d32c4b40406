"""Whatever fails, and whenever: the model is as it was."""

import copy
import os
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from timm_ghn_init import InitReport, init_model, postprocess
from timm_ghn_init.ghn import GHN
from timm_ghn_init.recipe import assign, postprocessing
from timm_ghn_init.sources import SHIPPED

ORTH = "ghn2-orth?layer=1"


def resnet(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return timm.create_model("test_resnet", num_classes=10)


def state(model: nn.Module) -> dict[str, tuple[int, torch.device, Tensor]]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ids = {name: id(p) for name, p in model.named_parameters()}
    return {n: (ids.get(n, 0), t.device, t.detach().clone()) for n, t in named.items()}


def assert_unchanged(model: nn.Module, before: dict[str, tuple[int, torch.device, Tensor]]) -> None:
    now = state(model)
    assert now.keys() == before.keys()
    for name, (identity, device, values) in before.items():
        assert now[name][:2] == (identity, device), name
        assert values.is_meta or torch.equal(now[name][2], values), name


def fails_at(number: int, error: BaseException, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose call of this number raises."""
    calls: list[None] = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise error
        return function(*args, **kwargs)

    return failing


START: dict[str, Callable[[nn.Module, GHN], object]] = {
    "prediction": lambda model, ghn: init_model(model, ORTH, ghn=ghn),
    "orth": lambda model, ghn: init_model(model, "orth"),
    "all of its own": lambda model, ghn: init_model(model, ORTH, ghn=ghn, init_rest=True),
    "post-processing alone": lambda model, ghn: postprocess(model, layer=1),
}


@pytest.mark.parametrize("error", [MemoryError("full"), KeyboardInterrupt()], ids=["memory", "Ctrl-C"])
@pytest.mark.parametrize("start", START)
def test_failing_post_processing(
    start: str, error: BaseException, seeded_ghn2: GHN, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resnet()
    before = state(model)
    monkeypatch.setattr(postprocessing, "correlation_std", fails_at(5, error, postprocessing.correlation_std))
    with pytest.raises(type(error)):
        START[start](model, seeded_ghn2)
    assert_unchanged(model, before)


@pytest.mark.parametrize("moment", ["embed", "decode", "post-process", "write"])
def test_a_model_on_the_meta_device_stays_there(moment: str, seeded_ghn2: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    model = resnet("meta")
    before = state(model)
    home, name = {
        "embed": (GHN, "embed"),
        "decode": (GHN, "decode"),
        "post-process": (postprocessing, "process_weight"),
        "write": (assign, "write_results"),
    }[moment]
    monkeypatch.setattr(home, name, fails_at(1, RuntimeError("no more"), getattr(home, name)))
    with pytest.raises(RuntimeError, match="no more"):
        init_model(model, ORTH, ghn=seeded_ghn2, device="cpu")
    assert_unchanged(model, before)
    monkeypatch.undo()
    assert not init_model(model, ORTH, ghn=seeded_ghn2, device="cpu").unset


def test_results_that_are_not_finite() -> None:
    """Of one layer, whose values are the largest that 16 bits can hold."""
    model: Any = resnet()
    weight = model.layer1[0].conv1.half().weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape).sign() * 6.5e4)
    before = state(model)
    with pytest.raises(RuntimeError, match=r"layer1\.0\.conv1\.weight is not finite .* beta is too large .*float16"):
        postprocess(model, layer=1, beta=1000, orthogonal=False)
    assert_unchanged(model, before)


def interrupted(write: Callable[..., Any]) -> Callable[..., Any]:
    def writing(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(*args)

    return writing


def test_ctrl_c_while_writing_waits_until_all_is_written(seeded_ghn2: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model = resnet(), resnet()
    init_model(expected, ORTH, ghn=seeded_ghn2)
    monkeypatch.setattr(assign, "write", interrupted(assign.write))
    with pytest.raises(KeyboardInterrupt):
        init_model(model, ORTH, ghn=seeded_ghn2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_no_room_for_the_temporary_file(seeded_ghn2: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model = resnet(), resnet()
    init_model(expected, ORTH, ghn=seeded_ghn2)

    def full(**options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    init_model(model, ORTH, ghn=seeded_ghn2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def whole_numbers(model: Any) -> None:
    conv = model.layer4[0].conv1
    conv.weight = nn.Parameter(torch.ones(conv.weight.shape, dtype=torch.int8), requires_grad=False)


def expanded(model: Any) -> None:
    bn = model.layer4[0].bn1
    bn.weight = nn.Parameter(torch.ones(1).expand(bn.weight.shape))


def overlapping(model: Any) -> None:
    weight = model.layer4[0].conv1.weight
    weight.data = torch.randn(weight.numel()).as_strided(weight.shape, (1, 1, 1, 1))


def made_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.layer4[0].bn1 = copy.deepcopy(model.layer4[0].bn1)


@pytest.mark.parametrize("source", ["ghn2", ORTH, "rand", "orth"])
@pytest.mark.parametrize(
    ("spoil", "parameter", "says"),
    [
        (whole_numbers, "conv1", "int8.*quantise"),
        (expanded, "bn1", "expanded.*clone"),
        (overlapping, "conv1", "expanded.*clone"),
        (made_in_inference_mode, "bn1", "inference_mode.*inside"),
    ],
)
def test_a_parameter_that_cannot_be_written(
    spoil: Callable[[nn.Module], None], parameter: str, says: str, source: str, seeded_ghn2: GHN
) -> None:
    model = resnet()
    spoil(model)
    before = state(model)
    ghn = seeded_ghn2 if source.startswith("ghn") else None
    if ghn is not None and spoil is whole_numbers:  # no prediction is for it
        report = init_model(model, source, ghn=ghn)
        assert "int8" in report.skipped["layer4.0.conv1.weight"]
        assert torch.equal(before["layer4.0.conv1.weight"][2], model.get_parameter("layer4.0.conv1.weight"))
        return
    with pytest.raises(ValueError, match=rf"layer4\.0\.{parameter}\.weight is .*{says}|weight was .*{says}"):
        init_model(model, source, ghn=ghn)
    assert_unchanged(model, before)


def test_a_classifier_of_other_classes_is_held_to_the_same(seeded_ghn2: GHN) -> None:
    """Whether a model can be taken does not depend on how many classes the GHN has."""
    model: Any = resnet()
    model.fc.weight = nn.Parameter(torch.ones(1, model.fc.in_features).expand(model.fc.out_features, -1))
    before = state(model)
    with pytest.raises(ValueError, match=r"fc\.weight is expanded.*clone"):
        init_model(model, "ghn2", ghn=seeded_ghn2)
    assert_unchanged(model, before)


def test_what_is_not_predicted_may_hold_anything(seeded_ghn2: GHN) -> None:
    """Layers that the forward does not use are neither read nor written."""
    model: Any = resnet()
    model.aux, model.table = nn.Linear(4, 4), nn.Embedding(5, 5)
    with torch.no_grad():
        model.aux.weight.fill_(float("inf"))
    model.table.weight = nn.Parameter(torch.ones(5, 5, dtype=torch.int8), requires_grad=False)
    report: InitReport = init_model(model, ORTH, ghn=seeded_ghn2)
    assert {"aux.weight", "table.weight"} <= set(report.skipped)
    assert (model.aux.weight == float("inf")).all() and (model.table.weight == 1).all()
    assert "layer4.0.conv2.weight" in report.postprocessed


class Layouts(nn.Module):
    """A network with a weight for each way in which tensors lie in memory."""

    def __init__(self, lie: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.position = nn.Parameter(torch.zeros(1, 16, 32))
        self.conv, self.point = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 1)
        self.norms = nn.ModuleList([nn.LayerNorm([8, 4, 4]), nn.LayerNorm([1, 8, 4, 4])])
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 10)
        for module in self.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(lie(p.detach())))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) + self.position.transpose(1, 2).reshape(1, 32, 4, 4)
        x = self.norms[1](self.norms[0](self.point(x))[:, None])[:, 0]
        return self.head(self.linear(x.mean((2, 3))))


def reversed_dims(t: Tensor) -> Tensor:
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted": reversed_dims,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "every other value": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "in the midst of other memory": lambda t: torch.cat((t, t, t)).narrow(0, len(t), len(t)),
}


@pytest.mark.parametrize("source", [SHIPPED, f"{SHIPPED}-orth?layer=1", "rand", "orth"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gets_the_same_values(layout: str, source: str) -> None:
    plain, other = Layouts(lambda t: t), Layouts(LAYOUTS[layout])
    for model in (plain, other):
        init_model(model, source, input_size=4)
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_an_expanded_buffer_is_refused_before_anything_is_written() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 10))
    model[1].running_mean = torch.zeros(1).expand(32)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"1\.running_mean is expanded"):
        init_model(model, SHIPPED, input_size=3, init_rest=True)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_fake_tensors_are_refused() -> None:
    real = resnet()
    before = state(real)
    with FakeTensorMode():
        fake = resnet()
        with pytest.raises(ValueError, match="fake"):
            init_model(real, SHIPPED)
        with pytest.raises(ValueError, match="fake"):
            timm.create_model("test_resnet", pretrained=SHIPPED)
    for call in (lambda: init_model(fake, ORTH), lambda: init_model(fake, "rand"), lambda: postprocess(fake, layer=1)):
        with pytest.raises(ValueError, match="fake"):
            call()
    assert_unchanged(real, before)
