"""The command line. `fit`, `validate` and `test` are LightningCLI's; every mistake of a user becomes one line."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence

from semiseg.errors import UserError
from semiseg.escaping import printable
from semiseg.running.processes import Ended, Stopped, Watch

HELP = """usage: semiseg COMMAND ...

  fit        train a method:    semiseg fit --config configs/data/glas.yaml --data.root DIR --data.labeled_fraction 0.2
  test       score a run:       semiseg test --run RUN [--checkpoint best|last]
  validate   validate a run:    semiseg validate --run RUN
  predict    segment images:    semiseg predict CKPT INPUT... --output DIR [--overlay] [--probabilities]
  benchmark  a grid of runs:    semiseg benchmark configs/benchmark/quick_glas.yaml [--dry-run] [--workers N]
  report     compare runs:      semiseg report runs/quick_glas --output DIR
  data       look at data:      semiseg data check|preview|split|cache --help
  demo       all of this on synthetic images, in a few minutes

semiseg COMMAND --help says more; semiseg fit --data.help GlaS lists the options of one data set.
"""


# What torch and Lightning say about options that do not go together, and what helps.
_TORCH = {
    "more than 1 (value per channel|spatial element) when training": (
        "the coarsest features are one pixel, which cannot be normalised: use a larger --data.image_size or "
        "--data.patch_size, fewer --model.network.widths, or more images per step"
    ),
    "parameters that were not used in producing": (
        "--model.network: this method leaves parts of it untrained, for which several processes wait; give a Denoiser "
        "--model.network.image_pathway false, else use --trainer.strategy ddp_find_unused_parameters_true"
    ),
    r"Exceeds the limit \(4300 digits\)": "a number of the options has more than 4300 digits; correct it",
    "DataLoader worker .* (killed|exited)": (
        "a data loader process was ended, perhaps for want of memory; lower --data.num_workers, or use 0"
    ),
    "does not allow for gradient clipping": (
        "--trainer.gradient_clip_val: not with a fused optimiser; use --model.optimizer.fused false"
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 after one line on stderr that says what to mend."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        with Watch(lambda error: _message(error, args)) as watch:
            try:
                return _dispatch(args, watch)
            except Stopped as stop:
                raise watch.end(stop) from stop
    except Ended as ended:
        return _complain(ended, ended.cause.message, ended.cause.code) if ended.is_first else ended.cause.code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _message(error, args)
        if message is None:
            raise
        return _complain(error, message)


def _message(error: BaseException, args: Sequence[str]) -> str | None:
    """What a user can do about an error, or None where it is a bug."""
    cause: BaseException | None = error
    while cause is not None:  # the parser and loader processes wrap what a constructor or a reader says
        if isinstance(cause, UserError):
            return str(cause).rpartition("UserError: ")[2]
        if isinstance(cause, ArgumentError):
            from semiseg.explain import explain

            return explain(str(cause), args)
        cause = cause.__cause__
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", text, re.IGNORECASE):
        return f"out of memory ({text[:120]}); lower --data.batch_size, --data.image_size or --data.patch_size"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, about the options of its trainer
        return f"--trainer: {text[:300]}"
    if made := re.match("Does not validate against any .*? Errors: - (.*?) - Expected .*?class_path='([^']+)'", text):
        return f"the options of {made[2].split('.')[-1]} do not work: {made[1]}; SEMISEG_TRACEBACK=1 shows where"
    for said, advice in _TORCH.items():
        if re.search(said, text):
            return advice
    if isinstance(error, ImportError):  # of an option, such as a callback that needs a package
        return f"{text[:200]}; install it, or leave the option out that needs it"
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename or 'operating system'}: {error.strerror}"
    return None


def _dispatch(args: list[str], watch: Watch) -> int:
    command = args[0] if args else ""
    if command in ("", "-h", "--help"):
        print(HELP)
    elif command == "data":
        from semiseg.data.command import data_command

        return data_command(args[1:])
    elif command == "predict":
        from semiseg.inference.command import predict_command

        predict_command(args[1:])
    elif command == "benchmark":
        from semiseg.benchmark.command import benchmark_command

        _be_quiet()
        watch.grace = 60.0  # its runs are ended first
        return benchmark_command(args[1:])
    elif command == "report":
        from semiseg.report.command import report_command

        report_command(args[1:])
    elif command == "demo":
        from semiseg.demo import run_demo

        run_demo(main)
    elif command in ("fit", "validate", "test"):
        from semiseg.running.lightning_cli import run_lightning

        _be_quiet()
        run_lightning(args, watch)
    else:
        commands = ("fit", "test", "validate", "predict", "benchmark", "report", "data", "demo")
        near = difflib.get_close_matches(command, commands, n=1)
        raise UserError(f"unknown command {command}; {f'did you mean {near[0]}?' if near else 'see semiseg --help'}")
    return 0


def _be_quiet() -> None:
    """What Lightning and MONAI remark on every run is not news; warnings of semiseg itself stay."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|monai|wandb|jsonargparse|pydantic|litlogger)")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _complain(error: BaseException, message: str, code: int = 2) -> int:
    if os.environ.get("SEMISEG_TRACEBACK"):  # for developers
        raise error
    print(f"semiseg: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code
