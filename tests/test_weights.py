"""Files of finished weights: what is written is read back, and anything else is refused."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from damages import DAMAGES
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from timm_ghn_init.weights.files import WeightsError, digest, plain, read, read_about, save, state_dict


def test_tied_and_sliced_tensors_are_saved_under_each_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            storage = torch.arange(10.0)
            self.register_buffer("first", storage[:5])
            self.register_buffer("second", storage[3:])
            self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).T)

    model = Tied()
    save(tmp_path / "m.safetensors", state_dict(model), {})
    tensors = load_file(tmp_path / "m.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    fresh = Tied()
    fresh.load_state_dict(tensors, strict=True)
    assert fresh.a.weight is fresh.b.weight


def some() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "half": torch.tensor([1.0, -0.0, float("nan")], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 4),
        "../b/c\n": torch.tensor([True, False]),
    }


def test_read_gives_back_what_save_was_given(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(path, some(), {"source": "ghn2", "list": [1, None]})
    tensors, about = read(path)
    assert about == read_about(path) == {"source": "ghn2", "list": [1, None], "digest": digest(some())}
    assert tensors.keys() == some().keys()
    for name, tensor in some().items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert tensors[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8)), name
    first = path.read_bytes()
    save(path, dict(reversed(some().items())), {"source": "ghn2", "list": [1, None]})
    assert path.read_bytes() == first


def test_what_other_libraries_ask_of_a_file(tmp_path: Path) -> None:
    """Its framework, and tensors that begin at multiples of their own size. It is what the library itself writes."""
    path = tmp_path / "m.safetensors"
    save(path, some(), {})
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        metadata = file.metadata()
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    theirs = safetensors.torch.save(some(), metadata)
    assert path.read_bytes()[8 + size :] == theirs[8 + int.from_bytes(theirs[:8], "little") :]
    for name, tensor in some().items():
        assert (8 + size + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_a_dtype_that_no_file_can_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x is torch\.complex128, which safetensors files cannot hold"):
        save(tmp_path / "m.safetensors", {"x": torch.zeros(2, dtype=torch.complex128)}, {})
    assert not list(tmp_path.iterdir())


def test_digest_sees_names_dtypes_shapes_and_values() -> None:
    t = torch.arange(4, dtype=torch.int32)
    others: list[dict[str, Tensor]] = [
        {"b": t},
        {"a": t.view(torch.float32)},
        {"a": t.reshape(2, 2)},
        {"a": t.flip(0)},
        {"a": t, "b": t[:0]},
        {"a": t[:2], "b": t[2:]},
    ]
    assert len({digest(d) for d in ({"a": t}, *others)}) == 7
    assert digest({"a": t, "b": 2 * t}) == digest({"b": 2 * t, "a": t})
    assert digest({"a": t.reshape(2, 2).T}) == digest({"a": torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)})


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(path, some(), {})
    DAMAGES[damage](path)
    with pytest.raises(WeightsError, match=r"m\.safetensors is damaged"):
        read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "m.safetensors")


def test_plain_copies_no_more_than_it_must() -> None:
    t = torch.arange(6.0)
    result = plain({"t": t, "again": t, "row": torch.arange(9.0).reshape(3, 3)[1]})
    assert result["t"].data_ptr() == t.data_ptr() != result["again"].data_ptr()
    assert result["row"].untyped_storage().nbytes() == 12
