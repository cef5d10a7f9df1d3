"""A checkpoint is data: no command of it runs, nothing is written outside, and what cannot be is refused in a line."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.cli import main
from semiseg.errors import UserError
from semiseg.inference.command import safe_names
from semiseg.inference.predictor import Predictor

OPTIONS = (
    *("--data", "Synthetic", "--data.num_cases", "10", "--data.size", "[32,32]", "--data.labeled_fraction", "0.5"),
    *("--trainer.accelerator", "cpu", "--trainer.max_steps", "2"),
    *("--model.network.widths", "[4,8]", "--model.network.dropout", "[0,0]"),
)
METHODS = {
    "Supervised": (),
    "MCNet": ("--model", "MCNet"),
    "DiffusionTeacherStudent": ("--model", "DiffusionTeacherStudent", "--model.network", "Denoiser"),
}
WEIGHT = "network.encoder.levels.0.1.weight"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, options in METHODS.items():
        folder = tmp_path_factory.mktemp("runs")
        assert main(["fit", *options, *OPTIONS, "--runs_dir", str(folder)]) == 0
        (found[name],) = folder.rglob("best.ckpt")
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image and with code that leaves a mark when it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save("a.png")
    mark = "from pathlib import Path\nPath('mark').touch()\n"
    Path("stranger.py").write_text(f"{mark}from semiseg.networks import UNet as Net\n")
    Path("hubconf.py").write_text(f"def go(*args, **kwargs):\n    {mark.replace(chr(10), ';')}\n")
    return tmp_path


def altered(source: Path, **changes: Any) -> Path:
    """A checkpoint with values replaced, whose keys are paths with `__` between their parts; `...` removes one."""
    content = torch.load(source, weights_only=True)
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[name]
        else:
            place[name] = value
    torch.save(content, "x.ckpt")
    return Path("x.ckpt")


def predict(checkpoint: Path, *options: str) -> int:
    return main(["predict", str(checkpoint), "a.png", "--output", "masks", "--device", "cpu", *options])


def refused(code: int, capsys: pytest.CaptureFixture, *words: str) -> None:
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("semiseg: error: x.ckpt: ")
    assert error.count("\n") == 1
    assert error.strip().isprintable()
    assert len(error) < 600
    assert not Path("mark").exists()
    assert not Path("masks").exists()
    for word in words:
        assert word in error


COMMANDS = [
    {"class_path": "torch.utils.collect_env.run", "init_args": {"command": "touch mark"}},
    {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "go", "source": "local"}},
    {"class_path": "os.system", "init_args": {"command": "touch mark"}},
    {"class_path": "semiseg.files.os.system", "init_args": {"command": "touch mark"}},
    {"class_path": "stranger.Net"},
    "stranger.Net",
    "torch.hub.load",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_class_path_is_called_or_imported(
    checkpoints: dict[str, Path], here: Path, capsys: pytest.CaptureFixture, command: Any
) -> None:
    network = altered(checkpoints["Supervised"], hyper_parameters__network=command)
    refused(predict(network), capsys, "Supervised's network: n")
    path = command["class_path"] if isinstance(command, dict) else command
    refused(predict(altered(checkpoints["Supervised"], hyper_parameters___class_path=path)), capsys, path)
    for place in ("widths", "norm", "head"):
        name = f"hyper_parameters__network__init_args__{place}"
        refused(predict(altered(checkpoints["Supervised"], **{name: command})), capsys, f"UNet's {place}")
    for place in ("optimizer", "schedule", "weight", "_instantiator"):  # for training: not looked at
        assert predict(altered(checkpoints["MCNet"], **{f"hyper_parameters__{place}": command})) == 0
    assert not Path("mark").exists()


def test_a_path_to_initial_weights_is_not_followed(checkpoints: dict[str, Path], here: Path) -> None:
    os.mkfifo("fifo")
    assert predict(altered(checkpoints["Supervised"], hyper_parameters__network__init_args__weights="fifo")) == 0


@pytest.mark.parametrize(
    ("method", "path", "values"),
    [
        ("Supervised", "", [..., "text", [1], {}, {3: 4}]),
        ("Supervised", "num_classes", [..., 10**9, -1, True, 2.0, "2", None, 3]),
        ("Supervised", "in_channels", [10**9, True, 1]),
        ("Supervised", "spatial_dims", [3, 7, True]),
        ("Supervised", "loss", ["stranger.run", 1, None]),
        ("Supervised", "hd95_medpy", ["yes", 1]),
        ("Supervised", "unknown", [1]),
        ("Supervised", "network", [None, 3, ["UNet"], "Network", "UNet", "VNet"]),
        ("Supervised", "network__init_args", [1, [1], {"widths": [8, 16], "dropout": [0.0, 0.0]}]),
        ("Supervised", "network__init_args__widths",
         [[10**6] * 2, [10**7] * 2, [4] * 1000, [-4, 8], [0, 0], [4.0, 8.0], [True, 8], ["4"], 4, None, [[4, 8]]]),
        ("Supervised", "network__init_args__dropout", [[float("nan"), 0.0], [2.0, 0.0], [-1.0, 0.0], ["0", "0"]]),
        ("Supervised", "network__init_args__in_channels", [3]),
        ("MCNet", "decoders", [["bilinear"] * 1000, ["bilinear"] * 30, ["stranger"], [], "bilinear"]),
        ("MCNet", "temperature", [float("nan"), float("inf"), 0.0, 1e15]),
        ("DiffusionTeacherStudent", "num_samples", [10**5, 10**12, 0, -1, True]),
        ("DiffusionTeacherStudent", "denoising_steps", [10**5]),
        ("DiffusionTeacherStudent", "diffusion_steps", [10**9, 0]),
        ("DiffusionTeacherStudent", "rounds", [-1, 10**9]),
        ("DiffusionTeacherStudent", "start", ["stranger", 7.0, float("nan")]),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be(
    checkpoints: dict[str, Path],
    here: Path,
    capsys: pytest.CaptureFixture,
    method: str,
    path: str,
    values: list[Any],
) -> None:
    for value in values:
        name = "hyper_parameters" + (f"__{path}" if path else "")
        refused(predict(altered(checkpoints[method], **{name: value})), capsys)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("spatial_dims", [3, True, "2", 10**9]),
        ("in_channels", [0, -1, 65, 1.0, "3"]),
        (
            "class_names",
            [("a",), ("a", "a"), "ab", (1, 2), ("a", ""), ("a", "b\n"), ("a", "\x1b[31m"), ("a", "b" * 999)],
        ),
        ("class_values", [(0,), (0, -1), (0, 70000), ("0", "1"), (0, (1, 2, 3)), ((0, 0, 0), (1, 1, 256)), (0.0, 1.0)]),
        ("image_size", [(0, 0), (-32, 32), (10**6, 10**6), (32,), ("a", "b"), (32.0, 32.0), 10**9]),
        ("patch_size", [(0, 0), (10**6, 10**6), "ab"]),
        ("spacing", [(0.0, 1.0), (1e-9, 1.0), (1e9, 1.0), (float("nan"), 1.0), ("a", "b"), (1.0,)]),
        ("mean", [("a", "b", "c"), (1.0,), (float("nan"),) * 3, (float("inf"),) * 3, None, 5.0]),
        ("std", [(0.0,) * 3, (-1.0,) * 3, (float("nan"),) * 3, (1e-300,) * 3, None]),
        ("h5_axes", ["zzz", None, ["xyz"]]),
        ("h5_spacing", [(0.0,) * 2, "x", (1.0,) * 9]),
        ("unknown", [1]),
    ],
)
def test_preprocessing_that_cannot_be(
    checkpoints: dict[str, Path], here: Path, capsys: pytest.CaptureFixture, name: str, values: list[Any]
) -> None:
    for value in values:
        checkpoint = altered(checkpoints["Supervised"], **{f"preprocessing__{name}": value})
        refused(predict(checkpoint), capsys, "preprocessing: ", "" if name in ("unknown", "spatial_dims") else name)


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "NaN": lambda w: w.fill_(float("nan")),
    "one infinite": lambda w: w.index_fill(0, torch.tensor(1), float("inf")),
    "far more values than the file": lambda w: torch.zeros(1).expand(10**6, 10**6),
    "one value for all": lambda w: torch.zeros(1).expand(w.shape),
    "overlapping": lambda w: torch.zeros(2 * 10**5).as_strided((10**5, 10**5), (1, 1)),
    "whole numbers": lambda w: w.long(),
    "complex": lambda w: w.to(torch.complex64),
    "8 bits": lambda w: w.to(torch.float8_e4m3fn),
    "sparse": lambda w: w.flatten(1).to_sparse(),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "without storage": lambda w: torch.empty_like(w, device="meta"),
    "another shape": lambda w: w.flatten(),
    "a list": lambda w: [1.0],
    "missing": lambda w: ...,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_cannot_be(
    checkpoints: dict[str, Path], here: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    weight = torch.load(checkpoints["Supervised"], weights_only=True)["state_dict"][WEIGHT]
    content = TENSORS[kind](weight)
    refused(predict(altered(checkpoints["Supervised"], **{f"state_dict__{WEIGHT}": content})), capsys)


def test_scores_that_are_not_numbers(checkpoints: dict[str, Path], here: Path, capsys: pytest.CaptureFixture) -> None:
    content = torch.load(checkpoints["Supervised"], weights_only=True)
    for value in content["state_dict"].values():
        value.fill_(3e38 if value.is_floating_point() else 1)
    torch.save(content, "x.ckpt")
    assert predict(Path("x.ckpt")) == 2
    assert "the scores of x.ckpt are not numbers" in capsys.readouterr().err


def packed(source: Path, description: bytes | None = None, compress: int = zipfile.ZIP_STORED, **more: bytes) -> None:
    """An archive like another one, with another description of its content, or records besides."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile("x.ckpt", "w", compress) as out:
        folder = archive.namelist()[0].partition("/")[0]
        for name in archive.namelist():
            changed = description is not None and name.endswith("data.pkl")
            out.writestr(name, description if changed else archive.read(name))
        for name, content in more.items():
            out.writestr(f"{folder}/{name}", content)


def flipped(source: Path) -> None:
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        values = archive.read(largest)  # between the records there are bytes that nothing reads
    content[content.index(values) + len(values) // 2] ^= 1
    Path("x.ckpt").write_bytes(content)


def hole(source: Path) -> None:
    with open("x.ckpt", "wb") as file:
        file.truncate(10**12)


class Call:
    def __reduce__(self) -> Any:
        return os.system, ("touch mark",)


START = b"\x80\x02"
FILES: dict[str, Callable[[Path], Any]] = {
    "a call": lambda source: packed(source, pickle.dumps(Call(), 2)),
    "a call without archive": lambda source: Path("x.ckpt").write_bytes(pickle.dumps(Call(), 2)),
    "100 GB of bytes": lambda source: packed(
        source, START + b"c__builtin__\nbytearray\n\x8a\x06" + (10**11).to_bytes(6, "little") + b"\x85R."
    ),
    "a key of several values": lambda source: packed(source, START + b"}K\x01\x85Ns."),
    "a key that is nested deeply": lambda source: packed(source, START + b"})" + b"\x85" * 10**6 + b"Ns."),
    "lists that are nested deeply": lambda source: packed(source, START + b"]" * 10**5 + b"a" * 99999 + b"."),
    "itself": lambda source: packed(source, START + b"]q\0h\0a."),
    "a billion values by reference": lambda source: packed(
        source, START + b"]q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(40)) + b"."
    ),
    "30 million values": lambda source: packed(source, START + b"(" + b"}" * (30 * 2**20) + b"t."),
    "keys of one hash": lambda source: packed(
        source,
        START + b"}(" + b"".join(b"\x8a\x0b" + ((2**61 - 1) * i).to_bytes(11, "little") + b"N" for i in range(1, 10**5))
        + b"u.",
    ),
    "3 GB, compressed": lambda source: packed(source, bytes(10**8), zipfile.ZIP_DEFLATED),
    "a second description": lambda source: packed(source, **{"DATA.PKL": b"N."}),
    "code": lambda source: packed(source, **{"code/__torch__.py": b"1"}),
    "a flipped byte": flipped,
    "half": lambda source: Path("x.ckpt").write_bytes(source.read_bytes()[:20000]),
    "a hole of 1 TB": hole,
    "a FIFO": lambda source: os.mkfifo("x.ckpt"),
    "a device": lambda source: Path("x.ckpt").symlink_to("/dev/zero"),
    "a folder": lambda source: Path("x.ckpt").mkdir(),
}  # fmt: skip

WORDS = {
    "a call": "names 'posix.system'",
    "100 GB of bytes": "names '__builtin__.bytearray'",
    "a key of several values": "none of torch.save",
    "a FIFO": "not a regular file",
    "a device": "not a regular file",
}


def in_child(checkpoint: Path) -> tuple[int, str]:
    """Exit code and standard error of a process that may take 1 GiB and 60 s."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.alarm(60)
            error = os.open("error", os.O_CREAT | os.O_WRONLY)
            os.dup2(error, 2)
            sys.stderr = os.fdopen(error, "w", closefd=False)
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
            code = predict(checkpoint)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), Path("error").read_text()


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_none_of_torch(checkpoints: dict[str, Path], here: Path, kind: str) -> None:
    FILES[kind](checkpoints["Supervised"])
    code, error = in_child(Path("x.ckpt"))
    assert (code, error.count("\n")) == (2, 1), error
    assert error.startswith("semiseg: error: x.ckpt: not a readable checkpoint")
    assert WORDS.get(kind, "") in error
    assert not Path("mark").exists()


def test_class_names_never_become_paths(checkpoints: dict[str, Path], here: Path) -> None:
    Path("victim.png").write_bytes(b"precious")
    names = ("background", f"../../{here.name}/victim")
    checkpoint = altered(checkpoints["Supervised"], preprocessing__class_names=names)
    assert predict(checkpoint, "--probabilities", "--overlay", "--uncertainty") == 0
    written = {path.name for path in Path("masks").rglob("*")}
    maps = {f"a_probability_______{here.name}_victim.png", "a_overlay.png", "a_uncertainty.png"}
    assert written == {"a.png", *maps}
    assert Path("victim.png").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("names", "safe"),
    [
        (("left atrium", "cyst-2", "A_b"), ["left_atrium", "cyst-2", "A_b"]),
        (("a/b", "a_b", "a b", "A_B"), ["a_b_1", "a_b", "a_b_2", "A_B_0"]),
        (("..", "/etc/passwd", "Drüse"), ["__", "_etc_passwd", "Dr_se"]),
    ],
)
def test_names_in_file_names(names: tuple[str, ...], safe: list[str]) -> None:
    assert safe_names(names) == safe


def test_links_at_the_outputs_are_replaced(checkpoints: dict[str, Path], here: Path) -> None:
    Path("victim").write_bytes(b"precious")
    Path("masks").mkdir()
    for name in ("a.png", "a_overlay.png", "a_uncertainty.png", "a_probability_foreground.png"):
        Path("masks", name).symlink_to(here / "victim")
    assert predict(checkpoints["Supervised"], "--probabilities", "--overlay", "--uncertainty") == 0
    assert Path("victim").read_bytes() == b"precious"
    assert not any(path.is_symlink() for path in Path("masks").iterdir())


NETWORK = """
from collections.abc import Callable
from enum import Enum
import torch
from torch import nn
from semiseg.networks import UNet

class Kind(Enum):
    WIDE = 2

class Net(UNet):
    def __init__(self, *args, kind: Kind | None = None, act: Callable[[], nn.Module] = nn.ReLU,
                 post: Callable = torch.tanh, rates: dict[str, float] | None = None, scale=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        torch.linspace(0, 1, 3).tolist()  # values are looked at while it is made
        self.act, self.kind, self.scale = act(), kind, scale
"""


def test_a_network_of_ones_own_with_objects_among_its_options(
    checkpoints: dict[str, Path], here: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("net_of_mine.py").write_text(NETWORK)
    arguments = {"widths": [4, 8], "dropout": [0.0, 0.0], "kind": "WIDE", "rates": {"a": 0.5}, "scale": 2.0}

    def checkpoint(**more: Any) -> Path:
        network = {"class_path": "net_of_mine.Net", "init_args": {**arguments, **more}}
        return altered(checkpoints["Supervised"], hyper_parameters__network=network)

    refused(predict(checkpoint()), capsys, "--trust net_of_mine")
    given = {"post": "torch.tanh", "act": {"class_path": "torch.nn.ReLU"}}
    network: Any = Predictor(checkpoint(**given), "cpu", ["net_of_mine"]).method.network
    assert (network.kind.name, network.scale, type(network.act)) == ("WIDE", 2.0, torch.nn.ReLU)
    leaky = checkpoint(act={"class_path": "torch.nn.LeakyReLU", "init_args": {"negative_slope": 0.3}})
    refused(predict(leaky, "--trust", "net_of_mine"), capsys, "Net's act: needs torch.nn.LeakyReLU", "--trust torch.nn")
    network = Predictor(leaky, "cpu", ["net_of_mine", "torch.nn"]).method.network
    assert network.act.negative_slope == 0.3
    refused(predict(checkpoint(post="os.system"), "--trust", "net_of_mine"), capsys, "Net's post")
    refused(predict(checkpoint(kind="TALL"), "--trust", "net_of_mine"), capsys, "Net's kind")
    with pytest.raises(UserError, match="no argument 'odd'"):
        Predictor(checkpoint(odd=1), "cpu", ["net_of_mine"])
    sys.modules.pop("net_of_mine")
