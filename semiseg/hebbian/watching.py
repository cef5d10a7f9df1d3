"""See Hebbian pretraining learn: what every layer is like, recorded in passes that training makes anyway."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn import functional as F

from semiseg.evaluation.panels import show
from semiseg.hebbian import rules
from semiseg.hebbian.figures import QUANTITIES, filters_figure, latent_figure, learning_figure
from semiseg.hebbian.units import HebbianUnits

PATCHES = 500  # shown at most


class WatchLearning(Callback):
    """Record at the first step, before each validation, at 10 % and at the end of the budget what the layers learn.

    All is seen in a pass that the training makes anyway and with the weights of that pass, which step s of
    `metrics.csv` has after s updates, so that training is the same without it. The record of a layer is, over its
    neurons' raw weights, their mean `norm`, mean `cosine` to the start and mean absolute cosine between two of them,
    `similarity`; and for rule `swta`, over the positions of the batch (process 0's), the mean `entropy` of the gate
    over the log of the number of units, and `usage`, the exponential of the entropy of the mean gate over the number
    of units: 1 if all win alike, 1 / units if one wins all. They are logged as `cosine/LAYER` ..., their means over
    the layers as `hebbian/cosine` ... A validation by the clock cannot be foreseen and has no record.

    `figures/` has `filters.png`, `learning.png` and `latent.png`, the paper's figure A.8 (appendix B): patches that the
    next layer after the encoder sees, and its raw weights, at the start, at 10 % of the budget and now. Patches are
    500 at random of the step's batch, without outliers, see `without_outliers`. The weight vectors are the same in all
    panels, 10 of them with their path, as in the paper; the others, which it does not show, are dots.
    """

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}
        self.curves: list[dict[str, float]] = []
        self.stages: list[dict[str, Any]] = []
        self.undrawn = False

    def state_dict(self) -> dict[str, Any]:
        """Raw weights at the start, records and stages of the latent space."""
        return {"start": self.start, "curves": self.curves, "stages": self.stages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.start, self.curves, self.stages = (state_dict[name] for name in ("start", "curves", "stages"))

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the raw weights, unless the run goes on."""
        weights = pl_module.units.named_weights()
        self.start = self.start or {name: weight.detach().clone().cpu() for name, weight in weights}

    @rank_zero_only
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Decide whether this step is seen."""
        step, budget = trainer.global_step, trainer.max_steps
        validates = (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        if step == 0 or step + 1 in (budget // 10, budget) or validates:
            self.curves.append({"step": step})
            now: dict[str, Any] = {"step": step}
            self.stages = [stage for stage in self.stages if stage["step"] in (0, budget // 10 - 1)] + [now]
            pl_module.observers = [partial(self._see, pl_module)]

    def _see(self, pl_module: Any, name: str, input: Tensor, output: Tensor) -> None:
        """Add a layer to the last record and, if it is the next one after the encoder, to the last stage."""
        units: HebbianUnits = pl_module.units
        with torch.autocast(input.device.type, enabled=False):
            for quantity, value in record(units, name, self.start[name], input, output).items():
                self.curves[-1][f"{quantity}/{name}"] = float(value)
            if "patches" not in self.stages[-1] and units.layers[name] not in set(pl_module.network.encoder.modules()):
                patches, vectors = latent_vectors(units, name, input, output)
                patches = without_outliers(patches.float())
                self.stages[-1]["patches"] = patches[choose(PATCHES, len(patches))].cpu()
                self.stages[-1]["vectors"] = vectors[choose(PATCHES, len(vectors))].cpu()

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Log the record of this step, if there is one, by loggers, which need no other process."""
        if not pl_module.observers:
            return
        pl_module.observers, self.undrawn = [], True
        now = self.curves[-1]
        for quantity in QUANTITIES:
            if values := [value for name, value in now.items() if name.startswith(f"{quantity}/")]:
                now[f"hebbian/{quantity}"] = sum(values) / len(values)
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in now.items() if name != "step"}, int(now["step"]))

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw what is new: here, so that a run that has become NaN has been stopped."""
        if not self.undrawn:
            return
        self.undrawn = False
        folder = Path(trainer.default_root_dir) / "figures"
        name, weight = next(pl_module.units.named_weights())
        axis = pl_module.units.unit_axis[name]
        pair = {f"{name} at the start": self.start[name], f"now, step {trainer.global_step}": weight.detach().cpu()}
        show(trainer, filters_figure({title: w.movedim(axis, 0) for title, w in pair.items()}), folder, "filters")
        show(trainer, learning_figure(self.curves), folder, "learning")
        if "patches" in self.stages[-1]:
            show(trainer, latent_figure(self.stages), folder, "latent")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the end, where no validation fell on it."""
        self.on_validation_end(trainer, pl_module)


@torch.no_grad()
def record(units: HebbianUnits, name: str, start: Tensor, input: Tensor, output: Tensor) -> dict[str, Tensor]:
    """The quantities of one layer, from its raw weight at the start, its input (B, Ci, *N) and output (B, Co, *M)."""
    weight = dict(units.named_weights())[name]
    now, before = (w.movedim(units.unit_axis[name], 0).flatten(1) for w in (weight, start.to(weight.device)))
    cosines = F.normalize(now) @ F.normalize(now).T
    pairs = max(1, len(now) * (len(now) - 1))
    values = {
        "cosine": F.cosine_similarity(now, before).mean(),
        "norm": torch.linalg.vector_norm(now, dim=1).mean(),
        "similarity": cosines.abs().fill_diagonal_(0).sum() / pairs,
    }
    if units.rule == "swta":
        gate = units.gate(name, input, output)
        flat = math.log(max(2, gate.shape[1]))
        entropies = [torch.special.entr(sample).sum(0).mean() for sample in gate]  # one by one: as large as the map
        values["entropy"] = torch.stack(entropies).mean() / flat
        values["usage"] = torch.special.entr(gate.mean((0, *range(2, gate.ndim)))).sum().exp() / gate.shape[1]
    return values


@torch.no_grad()
def latent_vectors(units: HebbianUnits, name: str, input: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer's raw weights move to, (positions, D), and these weights, (vectors, D).

    Convolution: patches of its input, and its filters. Transposed, S: patches of its output, and each input channel's
    weights. TSA: positions of its input, and the weights of each offset of each unit. Centred if the rule centres.
    """
    weight, geometry = dict(units.named_weights())[name], units.geometries[name]
    aware = units.unit_axis[name] == 1
    target, other = (output, input) if geometry.transposed and not aware else (input, output)
    target = rules.less_mean(target) if units.center else target
    if aware:
        return target.movedim(1, -1).flatten(0, -2), weight.flatten(1).T
    views = [view for _, view in rules.offsets(target, weight, geometry, other)]
    return torch.stack(views, -1).movedim(1, -2).flatten(-2).flatten(0, -2), weight.flatten(1)


def without_outliers(patches: Tensor) -> Tensor:
    """Patches (N, D) whose norm is at most 1.5 interquartile ranges outside the quartiles (Tukey's fences)."""
    norms = torch.linalg.vector_norm(patches, dim=1)
    low, high = torch.quantile(norms, norms.new_tensor([0.25, 0.75]))
    reach = 1.5 * (high - low)
    return patches[(norms >= low - reach) & (norms <= high + reach)]


def choose(count: int, total: int) -> Tensor:
    """Up to `count` different indices below `total`, always the same; torch's own generator is left alone."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]
