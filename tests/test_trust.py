"""What a file may name: classes that are defined already; nothing is imported or called by a path from a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from semiseg.errors import OneLineParser, UserError
from semiseg.methods import Method, Supervised
from semiseg.networks import Network, UNet
from semiseg.trust import add_trust_option, foreign_modules, import_trusted, named_class

OWN = """
from pathlib import Path
from semiseg.methods import Supervised
from semiseg.networks import UNet
from torch.nn import SiLU

Path("imported").touch()

class Mine(Supervised):
    class Inner(Supervised):
        pass

class Net(UNet):
    pass

def run(*args, **kwargs):
    Path("called").touch()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of one's own and a package with an empty __init__."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    (tmp_path / "mine_trusted.py").write_text(OWN)
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package/__init__.py").write_text("")
    (tmp_path / "mine_package/methods.py").write_text(OWN)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


@pytest.mark.parametrize("path", ["semiseg.methods.Supervised", "semiseg.methods.supervised.Supervised", "Supervised"])
def test_a_class_of_the_package_is_found_by_its_paths_and_its_name(path: str) -> None:
    assert named_class(path, Method, (), "x.ckpt") is Supervised
    assert named_class("UNet", Network, (), "x.ckpt") is UNet


@pytest.mark.parametrize(
    "path",
    [
        "os.system", "torch.hub.load", "torch.utils.collect_env.run", "builtins.exec", "functools.partial",
        "torch.nn.ReLU", "semiseg.files.os.system", "semiseg.methods.base.partial", "semiseg.networks.UNet",
        "semiseg.cli.main", "Method", "semiseg.methods", "nowhere.Net",
        "", ".", "semiseg..UNet", "a\x1b[2J.b", "x" * 999, None, 3, ["a"], {"a": 1},
    ],
)  # fmt: skip
def test_what_is_no_method_is_refused(path: Any) -> None:
    with pytest.raises(UserError, match=r"^x\.ckpt: n") as error:
        named_class(path, Method, (), "x.ckpt")
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_a_module_of_ones_own_is_imported_only_when_the_user_names_it(own: Path) -> None:
    for path in ("mine_trusted.Mine", "mine_trusted.run", "mine_package.methods.Mine"):
        with pytest.raises(UserError, match=rf"--trust {path.rpartition('.')[0]}$"):
            named_class(path, Method, (), "x.ckpt")
    assert not Path("imported").exists()
    import_trusted(["mine_trusted"], "x.ckpt")
    with pytest.raises(UserError, match="--trust mine_trusted"):  # imported, but not trusted here
        named_class("mine_trusted.Mine", Method, (), "x.ckpt")
    trusted = ["mine_trusted"]
    for path in ("mine_trusted.Mine", "Mine", "mine_trusted.Mine.Inner"):
        assert named_class(path, Method, trusted, "x.ckpt").__module__ == "mine_trusted"
    assert named_class("mine_trusted.UNet", Network, trusted, "x.ckpt") is UNet
    with pytest.raises(UserError, match="mine_trusted has no such Method"):
        named_class("mine_trusted.run", Method, trusted, "x.ckpt")
    assert not Path("called").exists()


def test_modules_below_a_trusted_one_are_trusted_once_imported(own: Path) -> None:
    import_trusted(["mine_package"], "x.ckpt")
    with pytest.raises(UserError, match=r"add --trust mine_package\.methods$"):
        named_class("mine_package.methods.Mine", Method, ["mine_package"], "x.ckpt")
    assert not Path("imported").exists()
    import_trusted(["mine_package.methods"], "x.ckpt")
    assert named_class("mine_package.methods.Mine", Method, ["mine_package"], "x.ckpt").__name__ == "Mine"


def test_the_option_takes_modules_and_asks_for_one(own: Path) -> None:
    parser = OneLineParser("semiseg predict")
    add_trust_option(parser, "the checkpoint")
    assert parser.parse_args([]).trust == []
    assert parser.parse_args(["--trust", "a", "--trust", "b.c"]).trust == ["a", "b.c"]
    for given, words in (
        ("", "--trust: name the module"),
        ("../x.py", "--trust mine"),
        ("nowhere_at_all", "cannot be"),
    ):
        with pytest.raises(UserError, match=words):
            import_trusted([given], "x.ckpt")
    (own / "mine_broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"--trust mine_broken: cannot be imported \(ZeroDivisionError"):
        import_trusted(["mine_broken"], "x.ckpt")


@pytest.mark.parametrize(
    ("value", "modules"),
    [
        ({"model": {"class_path": "mine_trusted.Net"}}, ["mine_trusted"]),
        ({"_class_path": "nowhere.sub.M", "_instantiator": "lightning.pytorch.cli.instantiate"}, ["nowhere.sub"]),
        ({"network": "mine_trusted.Net"}, ["mine_trusted"]),
        ({"a": [[({"b": ["mine_package.methods.Net"]},)]]}, ["mine_package.methods"]),
        ({"optimizer": {"class_path": "torch.optim.AdamW"}, "network": {"class_path": "UNet"}}, []),
        ({"optimizer": {"class_path": "torch.hub.load"}}, ["torch.hub"]),
        ({"optimizer": "torch.optim.lr_scheduler.LambdaLR", "lr_lambda": "os.system"}, ["os"]),
        ({"optimizer": {"class_path": "torch.optim.lr_scheduler.partial"}}, ["torch.optim.lr_scheduler"]),
        ({"optimizer": {"class_path": "torch.optim.optimizer.warnings.warn"}}, ["torch.optim.optimizer.warnings"]),
        ({"x": {"class_path": "semiseg.files.os.system"}}, ["semiseg.files.os"]),
        ({"x": {"class_path": "semiseg.cli.main"}}, ["semiseg.cli"]),
        ({"x": {"class_path": "semiseg.__main__.main"}}, ["semiseg.__main__"]),
        ({"schedule": {"class_path": "semiseg.components.WarmupPoly"}}, []),
        ({"root": "test.csv", "manifest": "os.path", "weights": "stage1.ckpt", "name": "cases.csv", "v": "1.2"}, []),
    ],
)  # fmt: skip
def test_foreign_modules_are_found_wherever_a_class_can_stand(own: Path, value: Any, modules: list[str]) -> None:
    assert foreign_modules(value) == modules
    assert not Path("imported").exists()


def test_foreign_modules_of_shared_deep_and_circular_values() -> None:
    shared: list[Any] = [{"class_path": "nowhere.X"}]
    for _ in range(100):
        shared = [shared, shared]
    assert foreign_modules(shared) == ["nowhere"]
    deep: Any = {"class_path": "nowhere.X"}
    for _ in range(100_000):
        deep = [deep]
    assert foreign_modules(deep) == ["nowhere"]
    circular: dict[str, Any] = {"class_path": "nowhere.X"}
    circular["again"] = circular
    assert foreign_modules(circular) == ["nowhere"]


def test_the_configurations_of_the_package_name_nothing_foreign() -> None:
    files = list(Path("configs").rglob("*.yaml"))
    assert len(files) > 20
    for file in files:
        assert foreign_modules(yaml.safe_load(file.read_text())) == [], file


def test_looking_classes_up_imports_no_heavy_module() -> None:
    code = "import sys, semiseg.trust; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
