"""What every run does beside learning: reseed, stop at NaN, show pictures, report progress."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from semiseg import whole_batch
from semiseg.data.preprocessing import Preprocessing, resize
from semiseg.errors import UserError
from semiseg.evaluation.panels import case_panel, contact_sheet, show, step_panel
from semiseg.running.folder import RunFolder
from semiseg.running.processes import Watch


class SeedEachStep(Callback):
    """Seed torch from (seed, step, rank) before every step, so that dropout and noise are functions of the step.

    A run that is resumed then needs no generator state to go on exactly as if it had never stopped. The step is the
    number of the batch: with accumulated gradients every batch of a step has its own. Draws for the whole batch
    (`semiseg.whole_batch`) are the same in all processes, and those that one process makes.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed before the step."""
        shared, own = (
            int(np.random.SeedSequence([self.seed, batch_idx, number]).generate_state(1, np.uint64)[0])
            for number in (0, 1 + trainer.global_rank)
        )
        whole_batch.seed(shared, own)


class HandleSignals(Callback):
    """Take signals back from Lightning, whose own handler waits for the other processes, which may have ended.

    Args:
        watch: handles the signals.

    Attributes:
        has_started: whether training has begun, so that all of a checkpoint has been taken over.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.has_started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers again; tell the watch about the other processes on this machine."""
        self.has_started = True
        self.watch.handle_signals()
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, (socket.gethostname(), os.getpid()))
            here = {rank: pid for rank, (host, pid) in enumerate(everyone) if host == socket.gethostname()}
            self.watch.others = {rank: pid for rank, pid in here.items() if pid != os.getpid()}


class StopAtNaN(Callback):
    """Stop when a loss is not a number, before a checkpoint of the spoilt network is written.

    On an accelerator the losses are looked at every `log_every_n_steps` and before each validation, so that no step
    waits for the device; the step that is named is the first bad one all the same.

    Args:
        folder: the run's folder, for the name of the last good checkpoint.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.first_bad: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether this step's loss is a number."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        step = torch.where(torch.isfinite(loss.detach()).all(), torch.inf, float(trainer.global_step))
        self.first_bad = step if self.first_bad is None else torch.minimum(self.first_bad, step)
        if loss.device.type == "cpu" or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before a checkpoint can follow."""
        self._check()

    def _check(self) -> None:
        if self.first_bad is None or torch.isinf(self.first_bad):
            return
        last = self.folder.checkpoint("last")
        good, anew = "there is no checkpoint yet", ""
        if last.exists():  # this folder then keeps to its options
            good, anew = f"the last good checkpoint is {last}", ", as a new run (--experiment NAME)"
        raise UserError(
            f"loss is not a number at step {int(self.first_bad)}; {good}; lower the learning rate "
            f"(--model.optimizer.lr) or clip gradients (--trainer.gradient_clip_val 1){anew}"
        )


class ValidationPanels(Callback):
    """Image, mask and prediction of a few validation cases, in `figures/` and on W&B, at the first and best steps.

    Args:
        folder: the run's folder.
        cases: number of cases shown.
    """

    def __init__(self, folder: RunFolder, cases: int = 4) -> None:
        self.folder = folder
        self.cases = cases
        self.panels: list[np.ndarray] = []
        self.best = -1.0

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = state_dict["best"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an empty sheet."""
        self.panels = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the first cases."""
        if trainer.is_global_zero and not trainer.sanity_checking and outputs is not None:
            for i, prediction in enumerate(outputs[: self.cases - len(self.panels)]):
                self.panels.append(panel(batch, i, prediction, pl_module.preprocessing))  # type: ignore[arg-type]

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet where the network has become better than on the last one."""
        dice = float(trainer.callback_metrics.get("val/dice", 0.0))
        if trainer.state.fn != "fit" or not self.panels or dice <= self.best:
            return
        self.best = dice
        show(trainer, contact_sheet(self.panels, 1), self.folder.figures, "validation")


class StepPanels(Callback):
    """What a method makes of its unlabeled images: pseudo-labels, uncertainty, pixels that count, images found again.

    Drawn before each validation from the last step, in `figures/pseudo-labels.png` and on W&B.

    Args:
        folder: the run's folder.
        cases: number of images shown.
    """

    def __init__(self, folder: RunFolder, cases: int = 4) -> None:
        self.folder = folder
        self.cases = cases

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the method has noted, if it notes anything."""
        seen = {name: values[: self.cases].cpu() for name, values in getattr(pl_module, "seen", {}).items()}
        if trainer.state.fn != "fit" or not seen:
            return
        preprocessing: Preprocessing = pl_module.preprocessing  # type: ignore[assignment]
        images, title = seen.pop("image"), f"step {trainer.global_step}"

        def shown(value: torch.Tensor) -> np.ndarray:
            return preprocessing.picture(value) if value.ndim == images.ndim - 1 else _array(value)

        panels = [
            step_panel(shown(image), {name: shown(values[i]) for name, values in seen.items()}, title)
            for i, image in enumerate(images)
        ]
        show(trainer, contact_sheet(panels, 1), self.folder.figures, "pseudo-labels")


def _array(value: torch.Tensor) -> np.ndarray:
    """A tensor as an array, which knows no bfloat16."""
    return (value.float() if value.is_floating_point() else value).numpy()


def panel(
    batch: dict[str, Any], i: int, prediction: torch.Tensor, preprocessing: Preprocessing, note: str = ""
) -> np.ndarray:
    """Image, target and prediction of one case of an evaluation batch, side by side."""
    target = batch["target"][i].cpu().numpy()
    image = resize(preprocessing.picture(batch["image"][i]), target.shape)
    return case_panel(image, target, prediction.cpu().numpy(), f"{batch['case'][i]} {note}".strip())


class QuietProgress(Callback):
    """One line per validation, where there is no terminal for a progress bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when and where the run starts."""
        self.start = (time.monotonic(), trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the step, the loss, `val/dice` and the speed."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        seconds, steps = time.monotonic() - self.start[0], trainer.global_step - self.start[1]
        metrics = trainer.callback_metrics
        names = {"loss": "train/loss", "change": "train/change", "val/dice": "val/dice"}
        news = "  ".join(f"{word} {float(metrics[name]):.4g}" for word, name in names.items() if name in metrics)
        left = (trainer.max_steps - trainer.global_step) * seconds / max(steps, 1)
        print(
            f"step {trainer.global_step}/{trainer.max_steps}  {news}  "
            f"{steps / max(seconds, 1e-9):.1f} steps/s  {left / 60:.1f} min left",
            flush=True,
        )
