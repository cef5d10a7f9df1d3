"""Options of `semiseg fit` that a run cannot have, refused before anything is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from semiseg.errors import UserError, check_number

# Options of Lightning's trainer that would end or repeat the one long epoch of a run before its budget.
_OTHER_BUDGETS = (
    *("max_epochs", "min_epochs", "min_steps", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run"),
    *("reload_dataloaders_every_n_epochs", "barebones"),
)

# Those that would leave validations out, or cases of them; with the value that does not.
_OTHER_VALIDATIONS = {"limit_val_batches": None, "check_val_every_n_epoch": 1}

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
    if isinstance(interval, str) or not 0 < (interval or 0) <= _MOST_STEPS:
        raise UserError(f"--trainer.val_check_interval {interval}: use 1 step or more, or a share of the budget")
    for option, most in (("accumulate_grad_batches", 10**6), ("log_every_n_steps", _MOST_STEPS)):
        if trainer[option] is not None:
            check_number(f"--trainer.{option}", trainer[option], 1, most)
    if trainer.gradient_clip_val is not None:
        check_number("--trainer.gradient_clip_val", trainer.gradient_clip_val, 0, above=True)
    check_number("--trainer.num_nodes", trainer.num_nodes, 1, 10**4)
    if isinstance(trainer.devices, int):
        check_number("--trainer.devices", trainer.devices, -1, 10**3)
    if trainer.num_nodes > 1 and not any(name in os.environ for name in _LAUNCHERS):
        raise UserError(
            f"--trainer.num_nodes {trainer.num_nodes}: nothing starts the processes of the other machines, which this "
            "one would wait for; start the run by torchrun or srun"
        )
    for option in ("experiment", "method_name"):
        if (name := config[option]) is not None and name in ("", ".", "..", *{name} - {Path(name).name}):
            raise UserError(f"--{option} {name}: becomes the name of one folder; give it none of / and ..")
        if name is not None and (len(name.encode(errors="replace")) > 200 or not name.isprintable()):
            raise UserError(f"--{option}: becomes the name of a folder; use at most 200 printable characters")
