"""Configuration files: the shipped ones, the user's, and those of finished runs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from semiseg.errors import UserError
from semiseg.files import OPTIONS, check_yaml, read_yaml
from semiseg.running.folder import BOUND_TRAINER, RunFolder
from semiseg.trust import foreign_modules, import_trusted, named_class

_OF_A_TEST = (*BOUND_TRAINER, "accelerator", "deterministic", "benchmark", "enable_progress_bar")
_OF_THE_MACHINE = ("cache_dir", "cache_gb")

_MOST_CHARACTERS = 20_000
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
        else:
            _check_argument(arg)
    return found


def _check_argument(arg: str) -> None:
    """Bound a value of the command line, which the parser may read as YAML or as the name of a YAML file."""
    if len(arg) > _MOST_CHARACTERS:
        raise UserError(f"{arg[:60]}...: an argument of {len(arg)} characters; {_MOST_CHARACTERS} are the most")
    value = arg.partition("=")[2] if arg.startswith("--") else arg
    if value.endswith((".yaml", ".yml")) and Path(value).exists():
        read_config(Path(value))
    elif any(sign in value for sign in "[{&*\n"):
        with contextlib.suppress(yaml.YAMLError):  # then it is a text
            check_yaml(value, arg.partition("=")[0][:60], OPTIONS)


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
        content = read_yaml(path, OPTIONS)
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


def arguments_of(folder: RunFolder, trusted: Collection[str], root_is_given: bool) -> list[str]:
    """The options of a run that a test of it needs, from its `config.yaml`, which is not trusted as a command line is.

    Of the trainer only plain values that change results are taken; callbacks, loggers and plugins are not, nor is where
    images are cached. The file of initial weights is left out, as the checkpoint has replaced them.

    Args:
        folder: the run.
        trusted: modules outside of semiseg whose classes the run may name.
        root_is_given: the command line says where the data are.

    Raises:
        UserError: `config.yaml` is missing or damaged, names a class that is not trusted, or data that are not there.
    """
    if not folder.path.is_dir():
        raise UserError(f"--run {folder.path}: no such folder; give the folder of a run that `semiseg fit` made")
    folder.refuse_links()
    config = folder.read_config()
    where = str(folder.config)
    options: dict[str, Any] = {
        "seed_everything": config.get("seed_everything", 0),
        "labeled_epochs": config.get("labeled_epochs"),
        "trainer": {key: value for key, value in config["trainer"].items() if key in _OF_A_TEST and _is_plain(value)},
    }
    from semiseg.data import SegmentationDataModule
    from semiseg.methods import Method
    from semiseg.networks import Network

    import_trusted(trusted, where)
    for part, base in (("data", SegmentationDataModule), ("model", Method)):
        section = config[part]
        if not isinstance(section.get("class_path"), str) or not isinstance(section.get("init_args", {}), dict):
            raise UserError(f"{where}: {part} names no class; restore the file")
        named_class(section["class_path"], base, trusted, where)
        options[part] = {**section, "init_args": dict(section.get("init_args", {}))}
    network = options["model"]["init_args"].get("network")
    if network is not None:
        named_class(network if isinstance(network, str) else network.get("class_path"), Network, trusted, where)
        if not isinstance(network, str) and (network.get("init_args") or {}).get("weights"):
            options["model"]["init_args"]["network"] = {
                **network,
                "init_args": {**network["init_args"], "weights": None},
            }
    allowed = ("semiseg", "torch.optim", *trusted)
    if foreign := foreign_modules({part: options[part] for part in ("data", "model")}, allowed):
        raise UserError(
            f"{where}: names {foreign[0]}, which is not part of semiseg; importing it runs its code: if you trust this "
            f"run, add --trust {foreign[0]}"
        )
    for option in _OF_THE_MACHINE:
        options["data"]["init_args"].pop(option, None)
    root = options["data"]["init_args"].get("root")
    if not root_is_given and root is not None and not (Path(root).is_dir() and any(Path(root).iterdir())):
        raise UserError(f"{where}: there are no data in {root}; say where they are by --data.root DIR")
    return ["--config", yaml.safe_dump(options, sort_keys=False)]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def weights_of(model: Mapping[str, Any]) -> str | None:
    """The file of initial weights that a model's options name."""
    network = (model.get("init_args") or {}).get("network")
    return network.get("init_args", {}).get("weights") if network and not isinstance(network, str) else None
