"""Configuration files: the shipped ones, the user's, and those of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semiseg.errors import UserError
from semiseg.files import read_yaml
from semiseg.running.folder import RunFolder

_NOT_IN_FILES = {"config", "print_config", "__default_config__"}  # what jsonargparse would read, or pass over


def config_folder() -> Path:
    """The shipped configurations: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), package)


def find_configs(args: list[str]) -> list[str]:
    """Let `--config configs/data/glas.yaml` name a shipped file from any folder; check that each file is YAML."""
    found = list(args)
    for i, arg in enumerate(args):
        name, equals, file = arg.partition("=")
        if name in ("-c", "--config") and (equals or i + 1 < len(args)):
            path = Path(file if equals else args[i + 1])
            if not path.exists():
                path = config_folder() / str(path).removeprefix("configs/")
            if not path.exists():
                raise UserError(
                    f"--config {file or args[i + 1]}: no such file, here or among the shipped ones in {config_folder()}"
                )
            read_config(path)
            found[i if equals else i + 1] = f"{name}={path}" if equals else str(path)
    return found


def one_budget(args: Sequence[str]) -> list[str]:
    """Let a number of steps given here replace the `labeled_epochs` of a file, such as a protocol's, before it."""
    given = [arg.partition("=")[0] for arg in args]
    if "--trainer.max_steps" not in given or "--labeled_epochs" in given:
        return list(args)
    place = given.index("--trainer.max_steps")
    return [*args[:place], "--labeled_epochs", "null", *args[place:]]


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        UserError: it cannot be read, is not YAML or holds no options.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a YAML file") from error
    except UserError as error:
        raise UserError(f"--config {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: holds no options; {config_folder()}/data/glas.yaml shows how one looks")
    if odd := next((key for key in content if not isinstance(key, str) or key in _NOT_IN_FILES), None):
        raise UserError(f"--config {path}: {odd} is no option of a file; remove it")
    if not isinstance(content.get("trainer", {}), dict):
        raise UserError(f"--config {path}: trainer needs options below it, such as max_steps")
    return content


def arguments_of(folder: RunFolder) -> list[str]:
    """The options of a finished run, less the file of initial weights, which its checkpoint has replaced."""
    if not folder.config.is_file():
        raise UserError(f"--run {folder.path}: holds no config.yaml; give the folder of a run that `semiseg fit` made")
    arguments = ["--config", str(folder.config)]
    if weights_of(read_config(folder.config).get("model") or {}):
        arguments += ["--model.network.init_args.weights", "null"]
    return arguments


def weights_of(model: Mapping[str, Any]) -> str | None:
    """The file of initial weights that a model's options name."""
    network = (model.get("init_args") or {}).get("network")
    return network.get("init_args", {}).get("weights") if network and not isinstance(network, str) else None
