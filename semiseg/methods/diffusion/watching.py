"""Pictures of what the diffusion teacher-student does: rounds, pseudo-labels over training, what inference hangs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from semiseg.evaluation.metrics import case_metrics
from semiseg.evaluation.panels import contact_sheet, show, step_panel
from semiseg.evaluation.plots import figure, pixels

SAMPLES = (1, 2, 5, 10)  # numbers of noises that are compared
CASES = {2: 8, 3: 1}  # validation images or volumes of that comparison, at most
STAGES = 8  # pseudo-labels shown, at most


class WatchTeaching(Callback):
    """Figures of the diffusion teacher-student, renewed at each validation, in `figures/` and on W&B.

    `rounds.png`: an unlabeled image of the last step, the teacher's mask of it, and of each round the image that was
    found from noise of the time t and the mask of that. `training.png`: one unlabeled image with the decisions of
    teacher and student, from fixed noise, over the training. `inference.png`: validation Dice with noise of each time,
    over the training, and, at its end, with the mean over 1 to 10 noises: eight images or a volume, last network. Of
    volumes the middle slice along the last axis is shown.
    """

    def __init__(self) -> None:
        self.image: torch.Tensor | None = None
        self.stages: list[dict[str, Any]] = []
        self.starts: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The image, what was made of it, and the scores of each start."""
        return {"image": self.image, "stages": self.stages, "starts": self.starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.image, self.stages, self.starts = (state_dict[name] for name in ("image", "stages", "starts"))

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw what the last step and this validation were like."""
        if trainer.state.fn != "fit" or not pl_module.seen:
            return
        picture = pl_module.preprocessing.picture
        image = pl_module.seen["image"][-1]
        found = pl_module.story.items()
        maps = {name: picture(v) if v.is_floating_point() else v.cpu().numpy() for name, v in found}
        panel = step_panel(picture(image), maps, f"step {trainer.global_step}")
        show(trainer, panel, self._folder(trainer), "rounds")

        self.image = image.cpu().clone() if self.image is None else self.image  # not the batch behind it
        given = self.image[None].to(pl_module.device)
        with trainer.precision_plugin.forward_context():
            decisions = {name: maps[0].to("cpu", torch.uint8) for name, maps in pl_module.decide(given).items()}
        if len(self.stages) == 2 * STAGES:
            self.stages = self.stages[::2]  # a checkpoint must not grow with the number of validations
        stage = {name: _middle(classes, 2).clone() for name, classes in decisions.items()}
        self.stages.append({"step": trainer.global_step, **stage})
        self._draw_stages(trainer, picture)
        dice = {f"{start:g}": table.summary()["dice"] for start, table in pl_module.tables.items()}
        self.starts.append({"step": trainer.global_step, **dice})
        self._draw_inference(trainer, {})

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare numbers of noises, when all checkpoints are written."""
        if self.starts:
            self._draw_inference(trainer, self._dice_of_samples(trainer, pl_module))

    def _draw_stages(self, trainer: Trainer, picture: Any) -> None:
        """Some stages, evenly over the training, the first and the last among them."""
        count = len(self.stages)
        shown = [self.stages[i] for i in sorted(set(np.linspace(0, count - 1, STAGES).round().astype(int)))]
        panels = [
            step_panel(
                _middle(picture(self.image), 3),
                {f"step {stage['step']}": stage[name].numpy().astype(int) for stage in shown},
                name,
            )
            for name in ("teacher", "student")
        ]
        show(trainer, contact_sheet(panels, 1), self._folder(trainer), "training")

    def _draw_inference(self, trainer: Trainer, samples: dict[int, float]) -> None:
        drawing = figure(9, 3.6)
        left, right = drawing.subplots(1, 2)
        for start in (name for name in self.starts[0] if name != "step"):
            values = [record[start] for record in self.starts]
            left.plot([record["step"] for record in self.starts], values, marker=".", label=f"t = {start} T")
        left.legend(fontsize=8)
        left.set(title="validation Dice by the time of the noise", xlabel="step")
        right.plot(list(samples), list(samples.values()), marker=".")
        right.set(title="by the number of noises", xlabel="noises" if samples else "drawn at the end")
        show(trainer, pixels(drawing), self._folder(trainer), "inference")

    @torch.no_grad()
    def _dice_of_samples(self, trainer: Trainer, pl_module: Any) -> dict[int, float]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        own, names = pl_module.sampler.samples, pl_module.preprocessing.class_names
        dice: dict[int, list[float]] = {count: [] for count in SAMPLES}
        pl_module.eval()
        for batch in data.evaluation_loader(data.part("validation")[: CASES[pl_module.spatial_dims]]):
            batch = pl_module.brought(batch)
            for pl_module.sampler.samples in SAMPLES:
                with trainer.precision_plugin.forward_context():
                    predictions = pl_module.class_maps(batch)
                dice[pl_module.sampler.samples] += [
                    case_metrics(prediction, target, names, spacing, False)["dice"]
                    for prediction, target, spacing in zip(predictions, batch["target"], batch["spacing"], strict=True)
                ]
        pl_module.sampler.samples = own
        return {count: float(np.nanmean(values)) for count, values in dice.items()}

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "figures"


def _middle(values: Any, ndim: int) -> Any:
    """The middle slice of what has one axis more than `ndim`."""
    return values if values.ndim == ndim else values[..., values.shape[-1] // 2]
