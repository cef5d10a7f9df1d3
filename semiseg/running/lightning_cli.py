"""LightningCLI with run folders: `fit` starts, goes on or says that it is done; `test` and `validate` take a run."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from semiseg.data import SegmentationDataModule
from semiseg.errors import OneLineParser, UserError, check_number
from semiseg.explain import first_null
from semiseg.files import import_from_here
from semiseg.methods import Method, PretrainingMethod
from semiseg.networks.weights import load_weights
from semiseg.running.callbacks import QuietProgress, SeedEachStep, StepPanels, StopAtNaN, ValidationPanels
from semiseg.running.checkpoints import AtomicCheckpointIO, KeepBestAndLast, load_checkpoint
from semiseg.running.configs import arguments_of, config_folder, find_configs, one_budget, weights_of
from semiseg.running.folder import RunFolder, provenance
from semiseg.running.loggers import MetricsCSV, finish_wandb, wandb_logger
from semiseg.running.results import WriteResults, key_of

# Options of Lightning's trainer that would end or repeat the one long epoch of a run before its budget.
_OTHER_BUDGETS = ("max_epochs", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run")

# Those that would leave validations out, or cases of them; with the value that does not.
_OTHER_VALIDATIONS = {"limit_val_batches": None, "check_val_every_n_epoch": 1}

# Options that each test may have of its own: the resolution is part of its name, the weights are the checkpoint's.
_OF_A_TEST = ("data.evaluation", "model.network.weights")


def run_lightning(args: list[str]) -> None:
    """Carry out `fit`, `validate` or `test`."""
    import_from_here()
    finished = OneLineParser("semiseg test", add_help=False, allow_abbrev=False)
    finished.add_argument("--run", type=Path)
    finished.add_argument("--checkpoint", choices=("best", "last"), default="best")
    given = argparse.Namespace(run=None, checkpoint="best")
    if args and args[0] in ("test", "validate"):
        given, rest = finished.parse_known_args(args)
        if given.run is None:
            raise UserError(
                f"semiseg {args[0]}: --run RUN is missing; give the folder of a run that `semiseg fit` made"
            )
        args = [rest[0], *arguments_of(RunFolder(given.run)), *rest[1:]]
    parser_options = {
        name: {"exit_on_error": False, "default_config_files": [str(config_folder() / "base.yaml")]}
        for name in SemisegCLI.subcommands()
    }
    SemisegCLI(
        given.run,
        given.checkpoint,
        model_class=Method,
        datamodule_class=SegmentationDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"exit_on_error": False, "allow_abbrev": False, **parser_options},
        args=one_budget(find_configs(args)),
    )


class SemisegCLI(LightningCLI):
    """One run from its options.

    Args:
        run: folder of the run to test or validate; None for `fit`, whose folder follows from the options.
        checkpoint: `best` or `last`, which is tested.
        **kwargs: as LightningCLI.
    """

    def __init__(self, run: Path | None, checkpoint: str, **kwargs: Any) -> None:
        self.given_run = run
        self.checkpoint = checkpoint
        self.last_step: int | None = None  # that a run goes on from
        self.changed: dict[str, Any] = {}  # options of a test that are not the run's
        with contextlib.ExitStack() as self.at_exit:
            self.at_exit.push(lambda failure, *_: finish_wandb(failure is not None))
            super().__init__(**kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """`predict` is a command of its own: it needs no data set."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse a list of arguments, without Lightning's warning that there is a command line as well."""
        self.config = parser.parse_args(args)
        seed = self.config[self.config.subcommand].seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UserError(f"--seed_everything {seed}: give a number from 0 to {2**32 - 1}, which seeds the whole run")

    def _parse_ckpt_path(self) -> None:
        """Keep the options as given: Lightning would replace those of the command line by the checkpoint's."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where runs live, and what the model learns from the data."""
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder that holds all runs")
        parser.add_argument("--experiment", type=str, default="default", help="name of this set of runs")
        parser.add_argument("--method_name", type=str | None, default=None, help="default: the method's class, small")
        budget = "budget in passes over the labeled images, instead of a file's trainer.max_steps"
        parser.add_argument("--labeled_epochs", type=PositiveInt | None, default=None, help=budget)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        for fact in ("in_channels", "num_classes", "spatial_dims"):
            parser.link_arguments(f"data.{fact}", f"model.init_args.{fact}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Check what the parser cannot; do without initial weights that are gone."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            _check_fit(config)
        if empty := first_null(config):
            raise UserError(f"--{empty} null: a value is needed; leave the option out to keep the default")
        self.config_text = self._parser(self.subcommand).dump(config, skip_unset=False)
        weights = weights_of(config.model)
        self.lost_weights = weights if weights and not Path(weights).expanduser().exists() else None
        if self.lost_weights:  # _open_folder complains unless the run has a checkpoint already
            config.model.init_args.network.init_args.weights = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The run's trainer: its folder, loggers, callbacks and checkpoint writer."""
        config = self.config_init[self.subcommand]
        self._open_folder()
        loggers: list[Logger] = []
        quiet = config.trainer.enable_progress_bar is False or not sys.stderr.isatty()
        own: list[Callback] = [SeedEachStep(int(config.seed_everything)), StopAtNaN(self.folder)]
        own += [QuietProgress()] if quiet else [RichProgressBar(leave=True)]
        if self.subcommand == "fit":
            self.csv = MetricsCSV(self.folder.path / "metrics.csv")
            self.keeper = KeepBestAndLast(self.folder)
            loggers += [self.csv]
            own += [LearningRateMonitor("step"), ValidationPanels(self.folder), StepPanels(self.folder), self.keeper]
            steps = config.trainer.max_steps
            if config.labeled_epochs:
                data = self.datamodule
                steps = config.labeled_epochs * math.ceil(len(data.part("labeled")) / data.batch_size)
            kwargs.update(max_steps=steps)
            interval = config.trainer.val_check_interval
            if isinstance(interval, float):  # a share of the budget
                interval = max(1, round(interval * steps))
            interval = min(interval, steps) * config.trainer.accumulate_grad_batches  # Lightning counts batches
            kwargs.update(val_check_interval=interval)
        else:
            kwargs.update(devices=1, num_nodes=1, strategy="auto")  # so that every case is scored exactly once
            if self.subcommand == "test":
                searched = getattr(self.model, "search_threshold", False)
                key = key_of(self.checkpoint, self.datamodule.evaluation, searched, self.changed)
                own += [WriteResults(self.folder, key)]
        try:
            trainer = super().instantiate_trainer(
                **kwargs,
                default_root_dir=str(self.folder.path),
                logger=[*loggers, *self._loggers(), *_listed(config.trainer.logger)],
                callbacks=[*_listed(config.trainer.callbacks), *own],
                plugins=[*_listed(config.trainer.plugins), AtomicCheckpointIO()],
                use_distributed_sampler=False,  # the step sampler knows its rank
                enable_progress_bar=not quiet,
                enable_checkpointing=True,
            )
        except (ValueError, TypeError, ImportError) as error:  # Lightning's, about an option of its trainer
            raise UserError(f"--trainer: {error}") from error
        if str(config.trainer.precision).startswith("16") and trainer.precision == "bf16-mixed":
            raise UserError(f"--trainer.precision {config.trainer.precision} needs a GPU; use bf16-mixed")
        return trainer

    def _open_folder(self) -> None:
        """Open the folder of the run, lock it, write configuration and split; a run that is done ends here."""
        config, data = self.config[self.subcommand], self.datamodule
        labeled = f"{data.labeled_fraction:g}" if data.labeled_count is None else f"{data.labeled_count}-patients"
        method = config.method_name or type(self.model).__name__.lower()
        self.names = {"group": f"{data.dataset_name}/labeled-{labeled}", "method": method}
        self.names["name"] = f"{method}-fold-{data.fold}-seed-{config.seed_everything}"
        if self.given_run is not None:
            self.folder = RunFolder(self.given_run)
            advice = (
                "score it with the data and split it was trained on, or apply it to other images by semiseg predict"
            )
            self.folder.check_split(data.split_text(), advice)
            changed = self.folder.changed(self.config_text)
            self.changed = {name: value for name, (_, value) in changed.items() if name not in _OF_A_TEST}
            return
        parts = (config.experiment, data.dataset_name, method, f"labeled-{labeled}")
        folder = RunFolder(Path(config.runs_dir, *parts, f"fold-{data.fold}-seed-{config.seed_everything}"))
        if _rank() == 0:
            self.at_exit.callback(folder.close)
            folder.open()
            folder.adopt_config(self.config_text)
            folder.adopt_split(data.split_text())
        self.folder = folder
        if folder.status.get("state") == "done":
            rank_zero_only(print)(f"done already: {folder.path}\n{self._next_step}")
            raise SystemExit(0)
        if folder.checkpoint("last").exists():
            self.last_step = self._try_checkpoint("last")
        elif self.lost_weights:
            load_weights(self.model.network, self.lost_weights)  # says what is wrong
        if _rank() == 0:
            defaults = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "wandb_id": uuid.uuid4().hex[:8]}
            folder.update_status(**{**defaults, **folder.status, "state": "running", "error": None, **provenance()})

    def _try_checkpoint(self, which: str) -> int:
        """Load a checkpoint of the run, before anything is changed, to see that it is one of its network.

        Returns:
            The step at which it was written.

        Raises:
            UserError: it is missing, corrupt, or of another network.
        """
        path = self.folder.checkpoint(which)
        content = load_checkpoint(path)
        self.model.on_load_checkpoint(content)
        try:
            self.model.load_state_dict(content["state_dict"], strict=self.model.strict_loading)
        except RuntimeError as error:
            name = re.search(r'(?:size mismatch for |")([\w.]+)', str(error))
            raise UserError(
                f"{path}: belongs to another network than this run's{f' ({name[1]} differs)' if name else ''}; put the "
                f"run's own {path.name} back, or use --experiment NAME for a new run"
            ) from error
        return int(content["global_step"])

    @property
    def _next_step(self) -> str:
        """What to do with a run that is done."""
        if isinstance(self.model, PretrainingMethod):
            return f"next: semiseg fit ... --model.network.weights {self.folder.checkpoint('last')}"
        return f"next: semiseg test --run {self.folder.path}"

    def _loggers(self) -> list[Logger]:
        """W&B, unless it is disabled, or the scores are not the run's own."""
        if self.subcommand == "validate" or _rank() != 0 or self.changed:
            return []
        run_id = str(self.folder.status.get("wandb_id", uuid.uuid4().hex[:8]))
        logger = wandb_logger(self.folder.path, run_id, self.names["group"], self.names["method"], self.names["name"])
        return [logger] if logger is not None else []

    def before_fit(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self.last_step is not None:
            self.csv.forget_after(self.last_step)
            self.config_init["fit"].ckpt_path = str(self.folder.checkpoint("last"))
            rank_zero_only(print)(f"going on from step {self.last_step}: {self.folder.path}", flush=True)
        else:
            self.csv.forget_after(0)
            counts = {name: len(self.datamodule.part(name)) for name in ("labeled", "unlabeled", "validation", "test")}
            facts = ", ".join(f"{n} {name}" for name, n in counts.items())
            rank_zero_only(print)(f"{self.folder.path}\n{facts}", flush=True)

    def fit(self, **kwargs: Any) -> None:
        """Train, and keep in `status.json` how it ended."""
        config = yaml.safe_load(self.folder.config.read_text(encoding="utf-8")) if self.folder.config.exists() else {}
        facts = {"split_hash": self.datamodule.partition.hash, **provenance(), **self.names}
        for logger in self.trainer.loggers:
            logger.log_hyperparams({**config, **facts})
        try:
            self.trainer.fit(**kwargs)
        except BaseException as error:
            stopped = isinstance(error, SystemExit)  # Lightning exits at Ctrl-C and SIGTERM
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if _rank() == 0:
                with contextlib.suppress(UserError):  # the disk may be full
                    self.folder.update_status(state="failed", error="interrupted" if stopped else reason)
            if isinstance(error, SIGTERMException):
                raise SystemExit(128 + signal.SIGTERM) from error
            if stopped:
                raise KeyboardInterrupt from error
            raise
        if self.trainer.is_global_zero:
            size = sum(parameter.numel() for parameter in self.model.network.parameters())
            self.folder.update_status(state="done", parameters=size, **self.keeper.progress(self.trainer))
            print(f"done: {self.folder.path}\n{self._next_step}")

    def before_test(self) -> None:
        """Take the checkpoint that is to be tested."""
        if isinstance(self.model, PretrainingMethod):
            name = type(self.model).__name__
            raise UserError(
                f"--run {self.folder.path}: {name} is a first stage, which segments nothing; {self._next_step}"
            )
        self._try_checkpoint(self.checkpoint)
        self.config_init[self.subcommand].ckpt_path = str(self.folder.checkpoint(self.checkpoint))
        self.config_init[self.subcommand].verbose = self.subcommand == "validate"  # a test prints its own table

    before_validate = before_test


def _check_fit(config: Any) -> None:
    """Refuse what a run cannot have: no budget, or a second one; validations in part; names that are paths.

    Raises:
        UserError: an option is so.
    """
    trainer = config.trainer
    if trainer.max_steps <= 0:
        raise UserError("--trainer.max_steps is not set: the budget of a run is counted in optimiser steps")
    for option in _OTHER_BUDGETS:
        if trainer[option]:
            raise UserError(f"--trainer.{option} is not for runs of semiseg; set their budget by --trainer.max_steps")
    for option, neutral in _OTHER_VALIDATIONS.items():
        if trainer[option] != neutral:
            raise UserError(
                f"--trainer.{option} is not for runs of semiseg: each validation scores all validation cases; say how "
                "often by --trainer.val_check_interval, in steps"
            )
    interval = trainer.val_check_interval
    if isinstance(interval, str) or (interval or 0) <= 0:
        raise UserError(f"--trainer.val_check_interval {interval}: use 1 step or more, or a share of the budget")
    for option in ("accumulate_grad_batches", "log_every_n_steps"):
        if trainer[option] is not None:
            check_number(f"--trainer.{option}", trainer[option], 1)
    for option in ("experiment", "method_name"):
        if (name := config[option]) is not None and name in ("", ".", "..", *{name} - {Path(name).name}):
            raise UserError(f"--{option} {name}: becomes the name of one folder; give it none of / and ..")


def _rank() -> int:
    """This process, before the trainer knows it."""
    return int(getattr(rank_zero_only, "rank", 0))


def _listed(value: Any) -> list[Any]:
    """Trainer options that may be one thing, a list, a switch or nothing, as a list."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
