"""The options of a grid's runs, parsed before the first of them starts: a mistake in one shows at once."""

from __future__ import annotations

import contextlib
import io
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry

from semiseg.data import SegmentationDataModule
from semiseg.errors import UserError
from semiseg.explain import explain
from semiseg.methods import Method
from semiseg.running.configs import config_folder, find_configs, one_budget
from semiseg.running.lightning_cli import SemisegCLI


class _Parsed(Exception):
    """All options are right."""


class _OptionsOnly(SemisegCLI):
    """Parses the options of runs, with one parser as it takes a second to build, and builds nothing from them.

    Args:
        runs: arguments of each run's `semiseg fit`, by its name.
    """

    def __init__(self, runs: Mapping[str, Sequence[str]]) -> None:
        self.runs = runs
        defaults = {"exit_on_error": False, "default_config_files": [str(config_folder() / "base.yaml")]}
        LightningCLI.__init__(
            self, model_class=Method, datamodule_class=SegmentationDataModule, subclass_mode_model=True,
            subclass_mode_data=True, save_config_callback=None, seed_everything_default=0,
            auto_configure_optimizers=False, args=[],
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "fit": defaults},
        )  # fmt: skip

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse each run's options; never returns, so that nothing is built."""
        for name, arguments in self.runs.items():
            given = ["fit", *one_budget(find_configs(list(arguments)))]
            try:
                super().parse_arguments(parser, given)
                self.subcommand = "fit"
                self.before_instantiate_classes()
                _check_names(self.config["fit"].trainer)
            except SystemExit as error:  # an option such as help, which prints and exits
                raise UserError(f"{name}: an option such as help or print_config is not for runs of a grid") from error
            except ArgumentError as error:
                raise UserError(f"{name}: {explain(str(error), given)}") from error
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        raise _Parsed


def _check_names(trainer: Any) -> None:
    """Complain about names that Lightning looks up only when it makes a trainer."""
    strategies, accelerators = StrategyRegistry.available_strategies(), AcceleratorRegistry.available_accelerators()
    for option, known in {"strategy": strategies, "accelerator": [*accelerators, "gpu"]}.items():
        name = trainer[option]
        if isinstance(name, str) and name not in (*known, "auto"):
            raise UserError(f"--trainer.{option} {name}: unknown; use auto or one of {', '.join(sorted(known))}")


def check_options(runs: Mapping[str, Sequence[str]]) -> None:
    """Parse the options of runs.

    Args:
        runs: arguments of each run's `semiseg fit`, by its name.

    Raises:
        UserError: an option is unknown, or its value has another type or is out of range.
    """
    with contextlib.suppress(_Parsed), contextlib.redirect_stdout(io.StringIO()):
        _OptionsOnly(runs)
