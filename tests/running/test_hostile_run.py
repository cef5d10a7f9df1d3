"""A run folder from elsewhere: `test --run` runs none of its code, follows none of its links, writes nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from semiseg.cli import main

EVIL = """
from pathlib import Path
from semiseg.methods import Supervised
Path("pwned").touch()
class Mine(Supervised):
    pass
"""
HUB = "from pathlib import Path\nPath('pwned').touch()\ndef run(*args, **kwargs):\n    Path('pwned').touch()\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is done."""
    from tests.running.conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TINY, "--data.root", str(folder / "data")]) == 0
    return folder


@pytest.fixture
def here(finished, run, tmp_path, monkeypatch) -> Path:
    """A copy of that run, and modules in the current folder that must not be imported."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "runs", "runs")
    Path("evil.py").write_text(EVIL)
    Path("hubconf.py").write_text(HUB)
    return run


def section(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config.setdefault(key, {}) if isinstance(config, dict) else config[key]
        config[keys[-1]] = value

    return edit


def named(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


HUB_LOAD = named("torch.hub.load", repo_or_dir=".", model="run", source="local", trust_repo=True)
REFUSED = {
    "a method": section("model", "class_path", value="evil.Mine"),
    "a method as text": section("model", value="evil.Mine"),
    "a network": section("model", "init_args", "network", value=named("evil.Net")),
    "a network as text": section("model", "init_args", "network", value="evil.Net"),
    "a function for a network": section("model", "init_args", "network", value=HUB_LOAD),
    "a command for a network": section("model", "init_args", "network", value="semiseg.demo.run_demo"),
    "an optimizer": section("model", "init_args", "optimizer", value=named("evil.Adam")),
    "a function for an optimizer": section("model", "init_args", "optimizer", value=HUB_LOAD),
    "a schedule": section("model", "init_args", "schedule", value=named("evil.Schedule")),
    "a data set": section("data", "class_path", value="evil.Data"),
    "a function for a data set": section("data", value=HUB_LOAD),
    "an augmentation": section("data", "init_args", "augmentation", value=named("evil.Augmentation")),
    "no class": section("model", "class_path", value=["evil.Mine"]),
    "data that are not there": section("data", "init_args", "root", value="nowhere"),
    "data to be written": section("data", "init_args", "root", value="empty"),
    "values that are none": section("model", "init_args", value="x"),
    "a section that is none": section("trainer", value=["x"]),
}
IGNORED = {
    "a callback": section("trainer", "callbacks", value=[named("evil.Callback")]),
    "a callback of a library": section(
        "trainer", "callbacks", value=[named("lightning.pytorch.callbacks.ModelCheckpoint", dirpath="outside")]
    ),
    "a logger": section("trainer", "logger", value=[named("lightning.pytorch.loggers.CSVLogger", save_dir="outside")]),
    "a plugin": section("trainer", "plugins", value=[named("evil.Plugin")]),
    "a profiler": section("trainer", "profiler", value=named("evil.Profiler")),
    "a strategy": section("trainer", "strategy", value=named("evil.Strategy")),
    "a folder of results": section("trainer", "default_root_dir", value="outside"),
    "a cache": section("data", "init_args", "cache_dir", value="outside"),
    "a cache of no size": section("data", "init_args", "cache_gb", value=0),
    "another checkpoint": section("ckpt_path", value="outside/x.ckpt"),
}


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("attack", REFUSED)
def test_what_it_may_not_name_is_refused(here, attack, capsys):
    Path("empty").mkdir()
    edit(here, REFUSED[attack])
    assert main(["test", "--run", str(here)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("pwned").exists()
    assert not list(Path("empty").iterdir())
    assert not (here / "cases.csv").exists()


@pytest.mark.parametrize("attack", IGNORED)
def test_what_a_test_does_not_need_is_not_taken(here, attack):
    edit(here, IGNORED[attack])
    assert main(["test", "--run", str(here)]) == 0
    assert not Path("pwned").exists()
    assert not Path("outside").exists()


@pytest.mark.parametrize("place", ["config.yaml", "cases.csv", "figures", "checkpoints", ".status.lock", "status.json"])
def test_its_links_are_not_followed(here, place, capsys):
    outside = Path("outside").absolute()
    if (here / place).exists():
        shutil.move(here / place, outside)
    else:
        outside.write_text("precious")
    before = outside.read_bytes() if outside.is_file() else sorted(outside.iterdir())
    (here / place).symlink_to(outside)
    assert main(["test", "--run", str(here)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "leads out of the run folder" in error
    assert before == (outside.read_bytes() if outside.is_file() else sorted(outside.iterdir()))


def test_its_files_that_never_end_are_refused(here, capsys):
    (here / "config.yaml").unlink()
    os.mkfifo(here / "config.yaml")
    assert main(["test", "--run", str(here)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_module_that_is_trusted_may_be_named(here, capsys):
    edit(here, REFUSED["a method"])
    assert main(["test", "--run", str(here), "--trust", "evil"]) == 2  # the checkpoint is of another method
    assert "belongs to Supervised" in capsys.readouterr().err
    assert Path("pwned").exists()
