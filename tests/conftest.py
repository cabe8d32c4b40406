"""GHNs with reproducible weights: each tensor is filled from its own state-dict name (see tests/parity/README.md)."""

import gc
import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, hub_serving, set_constants

from timm_ghn_init.ghn import GHN

GHN2_CONFIG = {
    "max_shape": (64, 64, 16, 16),
    "num_classes": 1000,
    "hypernet": "gatedgnn",
    "decoder": "conv",
    "weight_norm": True,
    "ve": True,
    "layernorm": True,
    "hid": 32,
}
GHN3_CONFIG = {**GHN2_CONFIG, "hypernet": "graphormer", "hid": 64, "heads": 8, "layers": 3}


def pytest_collection_finish() -> None:
    """What has been imported stays; to look through it for garbage takes a third of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings and no folder of theirs, in processes that tests start as well; one thread if tests share cores."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("TIMM_GHN_")]:
            patch.delenv(name)
        patch.setenv("TIMM_GHN_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("HF_HUB_OFFLINE", raising=False)  # some processes ask a Hub of the tests' own
        if "PYTEST_XDIST_WORKER" in os.environ:
            torch.set_num_threads(1)
            patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> None:
    """What a shell starts in the background ignores Ctrl-C, and what nohup starts a hangup."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def seed_weights(ghn: torch.nn.Module) -> torch.nn.Module:
    """Fill every tensor of a GHN by the rule of the parity data."""
    state = ghn.state_dict()
    for name, tensor in state.items():
        t = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if "embed" in name:
            filled = t
        elif t.dim() >= 2:
            filled = t * (2 / t[0].numel()) ** 0.5
        elif name.endswith(("ln.weight", "ln1.weight", "ln2.weight")):
            filled = 1 + 0.1 * t
        else:
            filled = 0.1 * t
        tensor.copy_(filled)
    ghn.load_state_dict(state)
    return ghn.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def seeded_ghn2() -> GHN:
    return seed_weights(GHN(**GHN2_CONFIG))


@pytest.fixture(scope="session")
def seeded_ghn3() -> GHN:
    return seed_weights(GHN(**GHN3_CONFIG))


@pytest.fixture(scope="session")
def ghn_file(seeded_ghn2: GHN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seeded GHN-2 as a checkpoint file, for `file:PATH` sources."""
    from timm_ghn_init.checkpoints.load import save_ghn

    path = tmp_path_factory.mktemp("ghn") / "seeded-ghn2.safetensors"
    save_ghn(seeded_ghn2, path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub of our own that `huggingface_hub` uses, with an empty cache; the user's token may write to "me"."""
    import huggingface_hub.utils

    import timm_ghn_init.weights.hub

    with hub_serving() as server:
        set_constants(
            monkeypatch,
            ENDPOINT=server.url,
            HUGGINGFACE_CO_URL_TEMPLATE=server.url + "/{repo_id}/resolve/{revision}/{filename}",
            HF_HUB_CACHE=str(tmp_path / "hf"),
            HF_TOKEN_PATH=str(tmp_path / "token"),
            HF_HUB_DISABLE_XET=True,
            HF_HUB_DISABLE_TELEMETRY=True,
            HF_HUB_OFFLINE=False,
        )
        monkeypatch.setattr(timm_ghn_init.weights.hub, "_warned", set())
        monkeypatch.setattr(timm_ghn_init.weights.hub, "_unreachable", {})
        monkeypatch.setenv("HF_TOKEN", "hf_mytoken")
        for name in ("TIMM_GHN_HUB", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        huggingface_hub.utils.disable_progress_bars()
        for name in ("reset_sessions", "close_session"):  # before 1.0, and since: one that was opened offline stays so
            getattr(huggingface_hub.utils, name, lambda: None)()
        server.tokens["hf_mytoken"] = {"me"}
        yield server
