"""LightningCLI with run folders: `fit` starts, goes on or says that it is done; `test` and `validate` take a run."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from semiseg.data import SegmentationDataModule
from semiseg.errors import OneLineParser, UserError
from semiseg.explain import first_null
from semiseg.files import import_from_here
from semiseg.methods import Method, PretrainingMethod
from semiseg.networks.weights import load_weights
from semiseg.running.callbacks import (
    HandleSignals,
    QuietProgress,
    SeedEachStep,
    StepPanels,
    StopAtNaN,
    ValidationPanels,
)
from semiseg.running.checkpoints import AtomicCheckpointIO, KeepBestAndLast, check_complete, restore
from semiseg.running.checks import check_arguments, check_callbacks, check_fit, check_options
from semiseg.running.configs import arguments_of, config_folder, find_configs, one_budget, weights_of
from semiseg.running.folder import RunFolder, provenance
from semiseg.running.launcher import replace_launcher
from semiseg.running.loggers import MetricsCSV, finish_wandb, wandb_logger, wandb_mode
from semiseg.running.processes import Stopped, Watch, of_a_peer
from semiseg.running.results import WriteResults, key_of
from semiseg.trust import add_trust_option, foreign_modules

# Options that each test may have of its own: the resolution is part of its name, the weights are the checkpoint's.
_OF_A_TEST = ("data.evaluation", "model.network.weights")


def run_lightning(args: list[str], watch: Watch) -> None:
    """Carry out `fit`, `validate` or `test`.

    Args:
        args: arguments of the command line.
        watch: stops this process on a signal or with the other processes of its run.
    """
    import_from_here()
    finished = OneLineParser(f"semiseg {args[0] if args else ''}", add_help=False, allow_abbrev=False)
    finished.add_argument("--run", type=Path)
    finished.add_argument("--checkpoint", choices=("best", "last"), default="best")
    add_trust_option(finished, "the run")
    given = argparse.Namespace(run=None, checkpoint="best")
    check_arguments(args)
    options = find_configs(args)
    if args and args[0] in ("test", "validate") and not {"-h", "--help"} & set(args):
        given, rest = finished.parse_known_args(options)
        if given.run is None:
            raise UserError(
                f"semiseg {args[0]}: --run RUN is missing; give the folder of a run that `semiseg fit` made"
            )
        root_is_given = any(argument.partition("=")[0] == "--data.root" for argument in rest)
        options = [rest[0], *arguments_of(RunFolder(given.run), given.trust, root_is_given), *rest[1:]]
    parser_options = {
        name: {"exit_on_error": False, "default_config_files": [str(config_folder() / "base.yaml")]}
        for name in SemisegCLI.subcommands()
    }
    SemisegCLI(
        given.run,
        given.checkpoint,
        args,
        watch,
        model_class=Method,
        datamodule_class=SegmentationDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"exit_on_error": False, "allow_abbrev": False, **parser_options},
        args=one_budget(options),
    )


class SemisegCLI(LightningCLI):
    """One run from its options.

    Args:
        run: folder of the run to test or validate; None for `fit`, whose folder follows from the options.
        checkpoint: `best` or `last`, which is tested.
        command: arguments of the command line, for the other processes of a run.
        watch: stops this process on a signal or with the other processes of its run.
        **kwargs: as LightningCLI.
    """

    def __init__(self, run: Path | None, checkpoint: str, command: list[str], watch: Watch, **kwargs: Any) -> None:
        self.given_run = run
        self.checkpoint = checkpoint
        self.command = command
        self.watch = watch
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
        mode = (
            "W&B: send numbers to its server, keep them in the run folder, or neither; default: WANDB_MODE or offline"
        )
        parser.add_argument("--wandb", type=Literal["online", "offline", "disabled"] | None, default=None, help=mode)
        parser.add_argument("--wandb_images", type=bool, default=False, help="log pictures of cases on W&B too")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        for fact in ("in_channels", "num_classes", "spatial_dims"):
            parser.link_arguments(f"data.{fact}", f"model.init_args.{fact}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Check what the parser cannot; do without initial weights that are gone."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            check_fit(config)
        check_options(config)
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
        check_callbacks(_listed(config.trainer.callbacks))
        quiet = config.trainer.enable_progress_bar is False or not sys.stderr.isatty()
        own: list[Callback] = [SeedEachStep(int(config.seed_everything)), StopAtNaN(self.folder)]
        own += [QuietProgress()] if quiet else [RichProgressBar(leave=True)]
        if self.subcommand == "fit":
            self.csv = MetricsCSV(self.folder.path / "metrics.csv")
            self.keeper = KeepBestAndLast(self.folder, self.csv)
            loggers += [self.csv]
            self.handler = HandleSignals(self.watch)
            own += [self.handler]
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
                self.results = WriteResults(self.folder, key, self.folder.checkpoint(self.checkpoint))
                own += [self.results]
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
        if trainer.precision == "16-true" and isinstance(trainer.accelerator, CPUAccelerator):
            raise UserError("--trainer.precision 16-true needs a GPU; use bf16-true")
        if config.trainer.sync_batchnorm and isinstance(trainer.accelerator, CPUAccelerator):
            raise UserError(
                "--trainer.sync_batchnorm true: PyTorch synchronizes batch statistics on GPUs only; leave it out"
            )
        replace_launcher(trainer, self.command, self.watch)
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
            self.folder.check_split(data.split_text(self.model.streams), advice)
            changed = self.folder.changed(self.config_text)
            self.changed = {name: value for name, (_, value) in changed.items() if name not in _OF_A_TEST}
            return
        parts = (config.experiment, data.dataset_name, method, f"labeled-{labeled}")
        folder = RunFolder(Path(config.runs_dir, *parts, f"fold-{data.fold}-seed-{config.seed_everything}"))
        if _rank() == 0:
            self.at_exit.callback(folder.close)
            folder.open()
            folder.adopt(self.config_text, data.split_text(self.model.streams))
        self.folder = folder
        if folder.status.get("state") == "done":
            check_complete(folder, self.model.monitor is not None)
            rank_zero_only(print)(f"done already: {folder.path}\n{self._next_step}")
            raise SystemExit(0)
        if folder.checkpoint("last").exists():
            self.last_step, self.metrics_digest = restore(self.model, folder.checkpoint("last"))
            if not folder.status:
                rank_zero_only(print)(f"{folder.path}/status.json is missing: results of tests in it are lost")
        elif self.lost_weights:
            load_weights(self.model.network, self.lost_weights)  # says what is wrong
        if _rank() == 0:
            status = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **folder.status, "wandb_id": folder.wandb_id}
            folder.update_status(**{**status, "state": "running", "error": None, **provenance()})

    @property
    def _next_step(self) -> str:
        """What to do with a run that is done."""
        if isinstance(self.model, PretrainingMethod):
            return f"next: semiseg fit ... --model.network.weights {self.folder.checkpoint('last')}"
        options = yaml.safe_load(self.config_text)
        foreign = foreign_modules({part: options[part] for part in ("model", "data")}, ("semiseg", "torch"))
        trust = "".join(f" --trust {module}" for module in dict.fromkeys(foreign))
        return f"next: semiseg test --run {self.folder.path}{trust}"

    def _loggers(self) -> list[Logger]:
        """W&B, unless it is disabled, or the scores are not the run's own."""
        if self.subcommand == "validate" or _rank() != 0 or self.changed:
            return []
        config, names = self.config[self.subcommand], self.names
        mode = "disabled" if config.trainer.logger is False else wandb_mode(config.wandb)
        place = (self.folder.path, self.folder.wandb_id, names["group"], names["method"], names["name"])
        logger, where = wandb_logger(*place, mode, config.wandb_images)
        print(where, flush=True)
        return [logger] if logger is not None else []

    def before_fit(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self.last_step is not None:
            if self.last_step > self.trainer.max_steps:
                raise UserError(f"{self.folder.checkpoint('last')}: step {self.last_step} is beyond the budget")
            if _rank() == 0:
                self.csv.go_on(self.last_step, self.metrics_digest)
            self.config_init["fit"].ckpt_path = str(self.folder.checkpoint("last"))
            rank_zero_only(print)(f"going on from step {self.last_step}: {self.folder.path}", flush=True)
        else:
            counts = {name: len(self.datamodule.part(name)) for name in ("labeled", "unlabeled", "validation", "test")}
            facts = ", ".join(f"{n} {name}" for name, n in counts.items())
            rank_zero_only(print)(f"{self.folder.path}\n{facts}", flush=True)

    def fit(self, **kwargs: Any) -> None:
        """Train, and keep in `status.json` how it ended."""
        facts = {"split_hash": self.datamodule.partition.hash, **provenance(), **self.names}
        for logger in self.trainer.loggers:
            logger.log_hyperparams({**yaml.safe_load(self.config_text), **facts})
        self.watch.note = self.folder.note if self.trainer.world_size > 1 else None
        self.watch.report = lambda cause: self.folder.update_status(state="failed", error=cause.message)
        try:
            self.trainer.fit(**kwargs)
            if self.trainer.is_global_zero:
                self.watch.wait_for_children()
                check_complete(self.folder, self.model.monitor is not None)
        except BaseException as error:
            if self.last_step is not None and not self.handler.has_started and self._is_of_a_damaged_state(error):
                reason = f"training cannot go on from it ({error}); restore it, or use --experiment NAME"
                error = UserError(f"{self.folder.checkpoint('last')}: {reason}")
            ended = self.watch.end(error)
            if isinstance(error, Stopped) or self.trainer.world_size > 1:
                raise ended from error
            raise error
        if self.trainer.is_global_zero:
            size = sum(parameter.numel() for parameter in self.model.network.parameters())
            self.folder.update_status(state="done", parameters=size, **self.keeper.progress(self.trainer))
            print(f"done: {self.folder.path}\n{self._next_step}")

    def _is_of_a_damaged_state(self, error: BaseException) -> bool:
        """Whether the state of an optimizer, a schedule or a loop is not what was saved: Lightning raises anything."""
        return isinstance(error, Exception) and self.watch.describe(error) is None and not of_a_peer(error)

    def before_test(self) -> None:
        """Take the checkpoint that is to be tested."""
        if isinstance(self.model, PretrainingMethod):
            name = type(self.model).__name__
            raise UserError(
                f"--run {self.folder.path}: {name} is a first stage, which segments nothing; {self._next_step}"
            )
        step, _ = restore(self.model, self.folder.checkpoint(self.checkpoint))
        if self.subcommand == "test":
            self.results.step = step
        self.config_init[self.subcommand].ckpt_path = str(self.folder.checkpoint(self.checkpoint))
        self.config_init[self.subcommand].verbose = self.subcommand == "validate"  # a test prints its own table

    before_validate = before_test


def _rank() -> int:
    """This process, before the trainer knows it."""
    return int(getattr(rank_zero_only, "rank", 0))


def _listed(value: Any) -> list[Any]:
    """Trainer options that may be one thing, a list, a switch or nothing, as a list."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
