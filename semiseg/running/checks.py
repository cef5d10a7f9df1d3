"""Options of `semiseg fit` that a run cannot have, refused before anything is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, Checkpoint, LearningRateFinder, WeightAveraging

from semiseg.errors import UserError, check_number

# Options of Lightning's trainer that would end or repeat the one long epoch of a run before its budget.
_OTHER_BUDGETS = (
    *("max_epochs", "min_epochs", "min_steps", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run"),
    *("reload_dataloaders_every_n_epochs", "barebones"),
)

# Those that would leave validations out, or cases of them; with the value that does not.
_OTHER_VALIDATIONS = {"limit_val_batches": None, "check_val_every_n_epoch": 1}

# What a run decides itself, or would score some of its cases only; with the value that changes nothing.
_OF_THE_PROGRAM = {
    "limit_test_batches": None, "fast_dev_run": False, "limit_val_batches": None, "enable_checkpointing": True,
    "default_root_dir": None, "model_registry": None,
}  # fmt: skip

# Options that the command line links to the seed and to the data.
_LINKED = ("--data.seed", "--model.in_channels", "--model.num_classes", "--model.spatial_dims")

# Set by what starts the processes of several machines: torchrun, Slurm, LSF, MPI, or a person.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MASTER_ADDR")

_MOST_STEPS = 10**9


def check_fit(config: Any) -> None:
    """Check the options of a run that the parser's types cannot.

    Args:
        config: options of `fit`, parsed.

    Raises:
        UserError: there is no budget, or a second one; validations would be in part; a number is out of its range; a
            name is a path; or processes of other machines would be waited for that nothing starts.
    """
    trainer = config.trainer
    if trainer.max_steps <= 0:
        raise UserError("--trainer.max_steps is not set: the budget of a run is counted in optimizer steps")
    check_number("--trainer.max_steps", trainer.max_steps, 1, _MOST_STEPS)
    if config.labeled_epochs is not None:
        check_number("--labeled_epochs", config.labeled_epochs, 1, 10**6)
    for option in _OTHER_BUDGETS:
        if trainer[option]:
            raise UserError(f"--trainer.{option} is not supported; set the budget with --trainer.max_steps")
    for option, neutral in _OTHER_VALIDATIONS.items():
        if trainer[option] != neutral:
            raise UserError(
                f"--trainer.{option} is not supported: each validation scores all validation cases; say how often by "
                "--trainer.val_check_interval, in steps"
            )
    interval = trainer.val_check_interval
    share = isinstance(interval, float)
    if isinstance(interval, str) or not 0 < (interval or 0) <= (1 if share else _MOST_STEPS):
        raise UserError(f"--trainer.val_check_interval {interval}: use 1 step or more, or a share of the budget")
    for option, most in (("accumulate_grad_batches", 10**6), ("log_every_n_steps", _MOST_STEPS)):
        if trainer[option] is not None:
            check_number(f"--trainer.{option}", trainer[option], 1, most)
    if trainer.gradient_clip_val is not None:
        check_number("--trainer.gradient_clip_val", trainer.gradient_clip_val, 0, 10**6)
    if trainer.num_sanity_val_steps is not None:
        check_number("--trainer.num_sanity_val_steps", trainer.num_sanity_val_steps, 0, 10**3)
    check_number("--trainer.num_nodes", trainer.num_nodes, 1, 10**4)
    if (devices := str(trainer.devices)).isdigit():  # Lightning lists them all
        check_number("--trainer.devices", int(devices), 1, 10**3)
    if trainer.num_nodes > 1 and not any(name in os.environ for name in _LAUNCHERS):
        raise UserError(
            f"--trainer.num_nodes {trainer.num_nodes}: nothing starts the processes of the other machines, which this "
            "one would wait for; start the run by torchrun or srun"
        )
    if config.experiment is None:
        raise UserError("--experiment null: give a name, or leave it out")
    for option in ("experiment", "method_name"):
        if (name := config[option]) is not None and (name.strip() in ("", ".", "..") or name != Path(name).name):
            raise UserError(f"--{option} {name}: becomes the name of one folder; give it none of / and ..")
        if name is not None and (len(name) > 100 or not name.isprintable()):
            raise UserError(f"--{option}: becomes the name of a folder; use at most 100 printable characters")
    if not config.runs_dir or not config.runs_dir.isprintable():
        raise UserError("--runs_dir: give the folder that holds all runs")


def check_options(config: Any) -> None:
    """Check the options that `fit`, `validate` and `test` share.

    Args:
        config: options of the command, parsed.

    Raises:
        UserError: an option would be overridden, ignored, or leave cases out.
    """
    if config.get("ckpt_path") is not None or config.get("weights_only") is not None:
        raise UserError(
            "--ckpt_path and --weights_only are not supported: fit goes on from the run's last checkpoint, test takes "
            "--checkpoint best or last, and --model.network.weights starts from the weights of another run"
        )
    for option, neutral in _OF_THE_PROGRAM.items():
        if config.trainer[option] not in (None, neutral):
            raise UserError(f"--trainer.{option} is not supported: a run decides it; leave it out")


def check_arguments(args: Sequence[str]) -> None:
    """Refuse options that the program sets itself, which would be ignored.

    Raises:
        UserError: one is given.
    """
    for arg in args:
        name = arg.partition("=")[0]
        if name.replace(".init_args", "") in _LINKED:
            source = "--seed_everything" if name.endswith("seed") else "the data"
            raise UserError(f"{name}: follows from {source}; leave it out")


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks that write checkpoints, change the batch, or train by themselves.

    Raises:
        UserError: one is given.
    """
    for callback in callbacks:
        if isinstance(callback, Checkpoint | BatchSizeFinder | LearningRateFinder | WeightAveraging):
            raise UserError(
                f"--trainer.callbacks {type(callback).__name__}: is not supported, as a run writes its own checkpoints "
                "and keeps to its options"
            )
