"""The cache changes no bit of a prediction, and nothing that happens to it keeps a model from being initialised."""

import copy
import errno
import json
import logging
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cache_processes import scenarios
from damages import DAMAGES
from processes import aside
from torch import Tensor, nn

from timm_ghn_init import GHN, init_model
from timm_ghn_init.weights import cache
from timm_ghn_init.weights.files import read, save

ARCH = "test_convnext"
SOURCE = "ghn2-orth?layer=20"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; nothing that the user's environment says."""
    for name in ("TIMM_GHN_CACHE", "TIMM_GHN_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache, "_unwritable", set())
    return tmp_path / "home"


def files(home: Path) -> list[Path]:
    return sorted((home / "weights").glob("*.safetensors"))


def same(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    x, y = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


class Positions(nn.Module):
    """Tokens of which the first has a position of its own, in a layer that is post-processed as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 16, 16)
        self.token = nn.Parameter(torch.rand(1, 1, 32))
        self.positions = nn.Module()
        self.positions.weight = nn.Parameter(torch.rand(1, 17, 32))
        self.block, self.fc = nn.Linear(32, 32), nn.Linear(32, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions.weight
        return self.fc(self.block(x)[:, 0])


# What is special about them: nothing; rows that are not predicted; a classifier of ten classes that is not the last
# layer; rows that are not predicted, in the weight of what might be a layer.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: timm.create_model(ARCH),
    "tokens": lambda: timm.create_model("test_vit"),
    "two classifiers": lambda: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10),
    "tokens in a weight": Positions,
}
OPTIONS = {"tokens in a weight": {"input_size": 64}}


def test_the_models_are_special() -> None:
    models = {name: make() for name, make in MODELS.items()}
    reports = {
        name: init_model(model, "ghn2-orth?layer=1", ghn=tiny_ghn(), **OPTIONS.get(name, {}))
        for name, model in models.items()
    }
    assert all(set(report.postprocessed) <= set(report.predicted) for report in reports.values())
    assert {"head.weight", "head_dist.weight"} <= set(reports["two classifiers"].skipped)
    assert reports["tokens"].predicted["pos_embed"] == "pos_enc"
    assert reports["tokens in a weight"].predicted["positions.weight"] == "pos_enc"
    assert reports["tokens in a weight"].postprocessed == ("patches.weight", "block.weight")


def tiny_ghn() -> GHN:
    return GHN(max_shape=(16, 16, 4, 4), num_classes=1000, weight_norm=True, layernorm=True, hid=8).eval()


CASES = [(kind, torch.float32) for kind in MODELS] + [
    (kind, dtype)
    for kind in ("plain", "tokens in a weight")
    for dtype in (torch.bfloat16, torch.float16, torch.float64)
]


def test_what_is_predicted_faster_than_read_is_not_kept(seeded_ghn2: GHN, home: Path) -> None:
    for source in ("ghn2", "ghn2-orth?layer=1&orth=0"):
        report = init_model(timm.create_model(ARCH), source, ghn=seeded_ghn2, cache=True)
        assert len(files(home)) == bool(report.postprocessed) and bool(report.key) == bool(report.postprocessed)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_same_bits_as_without(kind: str, dtype: torch.dtype, seeded_ghn2: GHN, home: Path) -> None:
    def initialised(seed: int, **options: Any) -> tuple[nn.Module, bool]:
        torch.manual_seed(seed)  # of what is not predicted
        model = MODELS[kind]().to(dtype)
        source = "ghn2-orth?layer=1&beta=1e-2"
        report = init_model(model, source, ghn=seeded_ghn2, **options, **OPTIONS.get(kind, {}))
        return model, report.cached

    for seed, cached in ((1, False), (2, True)):
        expected, _ = initialised(seed)
        model, was_cached = initialised(seed, cache=True)
        assert was_cached == cached
        assert same(model, expected)
    [file] = files(home)
    assert {t.dtype for t in read(file)[0].values()} == {dtype}


@pytest.mark.parametrize("spelling", ["pretrained", "tag", "environment"])
def test_create_model(spelling: str, ghn_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what timm draws at random, and the random state afterwards, are those without the cache."""
    monkeypatch.setenv("TIMM_GHN_DEFAULT", f"file:{ghn_file}")

    def create(cached: bool) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(3)
        keys = "&cache=1" if cached and spelling != "environment" else ""
        monkeypatch.setenv("TIMM_GHN_CACHE", "1" if cached and spelling == "environment" else "0")
        source = "ghn-orth?layer=20" + keys
        if spelling == "tag":
            model = timm.create_model(f"{ARCH}.{source}", pretrained=True, num_classes=10)
        else:
            model = timm.create_model(ARCH, pretrained=source, num_classes=10)
        assert model.pretrained_cfg["source"] == f"file:{ghn_file}-orth?layer=20"
        return model, torch.rand(3)

    expected, drawn = create(False)
    assert files(home) == []
    for _ in range(2):
        model, drawn_too = create(True)
        assert same(model, expected)
        assert torch.equal(drawn, drawn_too)
        assert len(files(home)) == 1


@pytest.mark.parametrize(
    ("argument", "key", "environment", "on"),
    [
        (None, "", "", False),
        (None, "", "0", False),
        (None, "", "1", True),
        (None, "?cache=0", "1", False),
        (None, "?cache=1", "0", True),
        (False, "?cache=1", "1", False),
        (True, "?cache=0", "0", True),
        (True, "", "nonsense", True),
    ],
)
def test_who_decides(
    argument: bool | None,
    key: str,
    environment: str,
    on: bool,
    seeded_ghn2: GHN,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIMM_GHN_CACHE", environment)
    report = init_model(timm.create_model(ARCH), "ghn2-orth" + key, ghn=seeded_ghn2, cache=argument)
    assert (report.cached, report.source) == (False, "ghn2-orth")
    assert len(files(home)) == on


@pytest.mark.parametrize(("name", "value"), [("TIMM_GHN_CACHE", "yes"), ("TIMM_GHN_CACHE_SIZE", "10 apples")])
def test_wrong_settings_leave_the_model_as_it_was(
    name: str, value: str, seeded_ghn2: GHN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMM_GHN_CACHE", "1")
    monkeypatch.setenv(name, value)
    model = timm.create_model(ARCH)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"{name}.*{value}|{value}.*{name}"):
        init_model(model, "ghn2-orth", ghn=seeded_ghn2)
    assert same(model, before)


def test_report(seeded_ghn2: GHN) -> None:
    reports = [init_model(timm.create_model(ARCH), SOURCE, ghn=seeded_ghn2, cache=c) for c in (False, True, True)]
    assert [r.cached for r in reports] == [False, False, True]
    assert ["cached" in str(r) for r in reports] == [False, False, True]
    stages = {"trace", "embed", "decode", "write", "postprocess"}
    assert [set(r.seconds) for r in reports] == [stages, {*stages, "cache"}, {"trace", "cache"}]
    for field in ("predicted", "skipped", "postprocessed", "layer", "seed", "source", "sizes"):
        assert getattr(reports[0], field) == getattr(reports[1], field) == getattr(reports[2], field)


def test_another_model_reads_nothing_of_it(seeded_ghn2: GHN, home: Path) -> None:
    for count, options in enumerate(({}, {"num_classes": 10}, {"num_classes": 11}, {"in_chans": 1}), start=1):
        assert not init_model(timm.create_model(ARCH, **options), SOURCE, ghn=seeded_ghn2, cache=True).cached
        assert len(files(home)) == count


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(seeded_ghn2: GHN) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(ARCH)
    init_model(model, SOURCE, ghn=seeded_ghn2)
    return model.state_dict()


@pytest.fixture
def initialise(seeded_ghn2: GHN, expected: dict[str, Tensor]) -> Callable[[], bool]:
    """Initialise a model with the cache, see that it is right, and say whether it came from there."""

    def initialise() -> bool:
        torch.manual_seed(0)
        model = timm.create_model(ARCH)
        report = init_model(model, SOURCE, ghn=seeded_ghn2, cache=True)
        assert same(model.state_dict(), expected)
        return report.cached

    return initialise


@pytest.fixture(scope="module")
def sound(seeded_ghn2: GHN, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The file that the cache makes of that model: its name and its bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIMM_GHN_HOME", str(home := tmp_path_factory.mktemp("sound")))
        init_model(timm.create_model(ARCH), SOURCE, ghn=seeded_ghn2, cache=True)
    [file] = files(home)
    return file.name, file.read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(
    damage: str,
    sound: tuple[str, bytes],
    initialise: Callable[[], bool],
    home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = home / "weights" / sound[0]
    file.parent.mkdir(parents=True)
    file.write_bytes(sound[1])
    DAMAGES[damage](file)
    assert not initialise()
    assert file.name in warnings(caplog)[0]
    assert "replaced" in warnings(caplog)[0]
    if damage == "folder":  # which is not ours to remove
        assert file.is_dir()
        assert "cannot be kept" in warnings(caplog)[1]
    else:
        assert len(warnings(caplog)) == 1
        assert not file.is_symlink()
        assert file.read_bytes() == sound[1]
    if damage == "link":
        assert file.with_name("elsewhere").read_bytes() == sound[1]
    assert not list(home.rglob("*.tmp"))


def test_a_sound_file_is_read(sound: tuple[str, bytes], initialise: Callable[[], bool], home: Path) -> None:
    (home / "weights").mkdir(parents=True)
    (home / "weights" / sound[0]).write_bytes(sound[1])
    assert initialise()


def test_a_sound_file_of_something_else_is_replaced(
    initialise: Callable[[], bool], seeded_ghn2: GHN, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a name that is not its own, with too few tensors, or with one of another shape or dtype."""
    init_model(timm.create_model(ARCH), "ghn2-orth?layer=1", ghn=seeded_ghn2, cache=True)
    [other] = files(home)
    initialise()
    [file] = [f for f in files(home) if f != other]
    sound = file.read_bytes()
    tensors, about = read(file)
    tensors = {name: t.clone() for name, t in tensors.items()}
    name = next(iter(tensors))
    wrong = ({}, {**tensors, name: tensors[name][:1].clone()}, {**tensors, name: tensors[name].half()})
    for count, replacement in enumerate((None, *wrong), start=1):
        if replacement is None:
            file.write_bytes(other.read_bytes())
        else:
            save(file, replacement, {"name": about["name"]})
        assert not initialise()
        assert file.read_bytes() == sound
        assert len(warnings(caplog)) == count


def fail_to_save(path: Path, tensors: object, about: object) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel itself breaks off what writes more to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("how", ["no space left", "file too large"])
def test_disk_full(
    how: str,
    initialise: Callable[[], bool],
    home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One warning; nothing half-written stays."""
    if how == "no space left":
        monkeypatch.setattr(cache, "save", fail_to_save)
    for _ in range(2):
        with largest_file(100_000):
            assert not initialise()
        assert len(warnings(caplog)) == 1
        assert str(home / "weights") in warnings(caplog)[0]
        assert how in warnings(caplog)[0].lower()
        assert not files(home) + list(home.rglob("*.tmp"))


@contextmanager
def not_root() -> Iterator[None]:
    """Root may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_read_only_folder(
    initialise: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    initialise()  # and import all that it takes
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)  # below pytest's own folder, nobody but its owner gets anywhere
        home = Path(parent, "home")
        monkeypatch.setenv("TIMM_GHN_HOME", str(home))
        (home / "weights").mkdir(parents=True)
        for folder in (home, home / "weights"):
            folder.chmod(0o555)
        for _ in range(2):
            with not_root():
                assert not initialise()
        assert len(warnings(caplog)) == 1
        assert "cannot be kept" in warnings(caplog)[0]
        assert "Permission denied" in warnings(caplog)[0]
        assert list((home / "weights").iterdir()) == []
        (home / "weights").chmod(0o755)
        initialise()
        (home / "weights").chmod(0o555)
        with not_root():
            assert initialise()  # what is there can be read
        assert len(warnings(caplog)) == 1
        (home / "weights").chmod(0o755)


def test_no_folder_to_be_had(
    initialise: Callable[[], bool], home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("a file")
    assert not initialise()
    assert len(warnings(caplog)) == 1
    assert home.read_text() == "a file"


def test_no_home_folder(
    initialise: Callable[[], bool], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written anywhere, one warning says so, and the model is initialised."""
    for name in ("TIMM_GHN_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user whom the system does not know
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert not initialise()
    (warning,) = warnings(caplog)
    assert "cannot be kept in any folder" in warning and "set TIMM_GHN_HOME" in warning
    assert cache.entries() == []
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_file_system_without_locks(
    error: int,
    initialise: Callable[[], bool],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", flock)
    assert not initialise()
    assert initialise()
    assert warnings(caplog) == []


def test_a_lock_that_never_opens(
    initialise: Callable[[], bool], home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a process that was stopped, for one."""
    from filelock import FileLock

    initialise()
    [file] = files(home)
    lock = file.with_name(f".{file.name[:2]}.lock")  # some versions of filelock remove it
    file.unlink()
    monkeypatch.setattr(cache, "_PATIENCE", 0.2)
    monkeypatch.setattr("timm_ghn_init.utils.files.QUIET", 0.1)
    with FileLock(lock):
        assert not initialise()
    assert f"predicts the same weights and holds {lock}" in caplog.text
    assert initialise()


def test_errors_of_the_prediction_come_out(home: Path, initialise: Callable[[], bool], seeded_ghn2: GHN) -> None:
    ghn = copy.deepcopy(seeded_ghn2)
    ghn.decoder_1d.fc[2].bias[:] = float("nan")
    model = timm.create_model(ARCH)
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="not finite"):
        init_model(model, SOURCE, ghn=ghn, cache=True)
    assert same(model, before)
    assert files(home) == []
    assert not initialise()  # the lock is free


def test_dtype_that_the_format_does_not_know(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = torch.full((2,), 1j, dtype=torch.complex128)
    tensors, _, cached = cache.remember("0" * 64 + "-cpu", lambda: ({"a": part}, {}))
    assert tensors["a"] is part and not cached
    assert len(warnings(caplog)) == 1
    assert files(home) == []


# -- several at once ---------------------------------------------------------------------------------------------------


def test_threads_with_the_same_key(home: Path) -> None:
    """One of them makes the weights, the others wait and read them."""
    made, found, start = [], [], threading.Barrier(6)

    def run() -> None:
        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            made.append(torch.arange(1000.0))
            threading.Event().wait(0.2)
            return {"a": made[-1]}, {"b": 1}

        start.wait()
        found.append(cache.remember("0" * 64 + "-cpu", make))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 1
    assert sorted(cached for *_, cached in found) == [False] + [True] * 5
    assert all(torch.equal(tensors["a"], torch.arange(1000.0)) and about["b"] == 1 for tensors, about, _ in found)


@pytest.fixture(scope="module")
def processes(ghn_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The scenarios of `cache_processes.py`: where each one's home is, and what its processes say."""
    folder = tmp_path_factory.mktemp("processes")
    return {name: (folder / name, answers) for name, answers in aside(scenarios, ghn_file, folder).items()}


def test_processes_with_the_same_key(processes: dict[str, Any]) -> None:
    home, answers = processes["together"]
    assert sorted(a["cached"] for a in answers) == [False, True, True]
    assert len({a["digest"] for a in answers}) == 1
    assert len(files(home)) == 1


def test_killed_while_others_wait(processes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL of the one that holds the lock: the next takes over, and what it left is removed."""
    home, answers = processes["killed"]
    assert sorted(a["cached"] for a in answers) == [False, True]
    assert len({a["digest"] for a in answers}) == 1
    assert answers[0]["digest"] == processes["together"][1][0]["digest"]
    [file] = files(home)
    monkeypatch.setenv("TIMM_GHN_HOME", str(home))
    assert not list(home.rglob("*.tmp"))
    assert cache.prune(10**9) == []
    assert files(home) == [file]


# -- size --------------------------------------------------------------------------------------------------------------


def keep(number: int, size: int = 1000) -> bool:
    tensors = {"a": torch.zeros(2, size // 2, dtype=torch.uint8)}
    return cache.remember(f"{number:064x}-cpu", lambda: (tensors, {}))[2]


def kept(home: Path) -> set[int]:
    return {int(file.name[:64], 16) for file in files(home)}


def test_least_recently_used_goes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_GHN_CACHE_SIZE", "4KB")
    for number in (1, 2, 3):
        assert not keep(number)
    for age, file in enumerate(files(home)):  # 3 is the oldest
        os.utime(file, (10**9 - age, 10**9 - age))
    assert keep(3)
    assert not keep(4)
    assert kept(home) == {1, 3, 4}
    assert sum(e.size for e in cache.entries()) <= 4000
    assert not keep(5, 5000)  # more than there will ever be room for
    assert kept(home) == {1, 3, 4}


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10", 10), ("10B", 10), ("1.5kb", 1500), ("10GB", 10**10), ("10 G", 10**10), ("2TB", 2 * 10**12)],
)
def test_sizes(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_GHN_CACHE_SIZE", text)
    assert cache.size_limit() == cache.size_limit(text) == size


@pytest.mark.parametrize("text", ["-1", "GB", "1e9", "ten", "1 0", "10GiB", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        cache.size_limit(text)


def test_only_our_own_files_are_ever_removed(home: Path, tmp_path: Path) -> None:
    keep(1)
    folder = home / "weights"
    outside = tmp_path / "outside"
    outside.write_text("precious")
    mine = [folder / "notes.txt", folder / "model.safetensors", folder / f"{2:064x}-cpu.safetensors.bak"]
    for path in mine:
        path.write_text("mine")
    directory = folder / f"{3:064x}-cpu.safetensors"
    directory.mkdir()
    link = folder / f"{4:064x}-cpu.safetensors"
    link.symlink_to(outside)
    file = folder / f"{1:064x}-cpu.safetensors"
    assert {e.path for e in cache.prune(0)} == {file, link}
    assert outside.read_text() == "precious"
    assert all(path.read_text() == "mine" for path in mine)
    assert directory.is_dir()
    assert not link.is_symlink()
    assert cache.entries() == []


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    from timm_ghn_init.cli import main

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["cache", *map(str, argv)])
        return status, *capsys.readouterr()

    return run


def test_command_list_and_info(run: Callable, initialise: Callable[[], bool], home: Path) -> None:
    assert run("list")[:2] == (0, "key  size  last used  model  source  device\n")
    initialise()
    [file] = files(home)
    assert run() == run("list")
    row = run("list")[1].splitlines()[1].split()
    assert row[0] == file.name[:12]
    assert row[-3:] == [ARCH, SOURCE, "cpu"]
    said = json.loads(run("info", row[0])[1])
    assert (said["path"], said["model"], said["source"]) == (str(file), ARCH, SOURCE)
    shapes = {n: list(p.shape) for n, p in timm.create_model(ARCH).named_parameters()}
    assert said["parameters"] == {n: s for n, s in shapes.items() if n in said["parameters"]}
    status, stdout, _ = run("info")
    assert status == 0
    assert str(home / "weights") in stdout
    assert "files: 1," in stdout


@pytest.mark.parametrize("key", ["../../outside", "/etc/passwd", "0123456789abcdefg", ""])
def test_command_info_of_what_is_not_there(key: str, run: Callable, home: Path) -> None:
    keep(1)
    keep(2)
    if key:
        assert run("info", key)[:2] == (2, "")
    else:
        assert run("info", "00000000")[2].count("2 keys begin with") == 1


def test_command_survives_damaged_and_hostile_files(run: Callable, home: Path) -> None:
    keep(1)
    [file] = files(home)
    save(file, {}, {"model": "\x1b[2J\nevil", "source": ["x"], "device": None})
    for number, damage in enumerate(DAMAGES.values(), start=2):
        keep(number)
        damage(cache.folder() / f"{number:064x}-cpu.safetensors")
    status, stdout, stderr = run("list")
    assert (status, stderr) == (0, "")
    assert "\x1b" not in stdout
    assert "(damaged)" in stdout
    assert len(stdout.splitlines()) == 2 + len(DAMAGES) - 1  # a folder is none of ours
    assert run("info", f"{2:064x}")[0] == 2


def test_command_prune_and_clear(run: Callable, home: Path) -> None:
    for number in (1, 2, 3):
        keep(number)
    assert run("prune")[1] == "removed 0 files, 0.00B\n"
    assert run("prune", "--size", "3KB")[1].startswith("removed 1 files, 1.")
    assert len(files(home)) == 2
    assert run("clear")[1].startswith("removed 2 files")
    assert not files(home) + list(home.rglob("*.tmp"))
    assert run("clear")[1].startswith("removed 0 files")


@pytest.mark.parametrize("argv", [("prune", "--size", "much"), ("clear", "--size", "1GB"), ("list", "abc")])
def test_command_mistakes(argv: tuple[str, ...], run: Callable, home: Path) -> None:
    keep(1)
    status, stdout, stderr = run(*argv)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert kept(home) == {1}
