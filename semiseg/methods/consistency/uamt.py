"""UA-MT: follow the teacher where it is sure."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from semiseg.components.perturbations import noisy
from semiseg.components.ramps import SigmoidRamp
from semiseg.components.uncertainty import monte_carlo
from semiseg.errors import check_number
from semiseg.losses import masked_mean, probabilities, squared_error
from semiseg.methods.semi_supervised import TeacherStudentMethod


class UAMT(TeacherStudentMethod):
    """Mean teacher whose target counts only where several noisy passes of the teacher agree.

    Yu et al., "Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium segmentation", MICCAI 2019,
    https://arxiv.org/abs/1907.07034. A pixel counts while the entropy of the passes' mean, in units of log K, is below
    a threshold that rises from 0.75 to 1 over the budget. Deviations: the authors' code divides by 2 whatever K is, and
    takes log 2 for the largest entropy; with two classes the same.

    Args:
        passes: noisy passes of the teacher (the paper: 8).
        **kwargs: as `TeacherStudentMethod`.
    """

    def __init__(self, passes: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("--model.passes", passes, 1, 1000)
        self.passes = passes

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x squared difference to the teacher where it is sure."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        logits, unlabeled_logits = self.on_both(self.network, labeled["image"], unlabeled["image"])
        target = probabilities(self.teacher(noisy(unlabeled["image"])))
        _, uncertainty = monte_carlo(self.teacher, unlabeled["image"], self.passes)
        threshold = 0.75 + SigmoidRamp(self.trainer.max_steps, peak=0.25)(self.trainer.global_step)
        sure = uncertainty < threshold
        error = squared_error(probabilities(unlabeled_logits), target)
        self.seen = {
            "image": unlabeled["image"], "pseudo-label": target.argmax(1), "uncertainty": uncertainty, "used": sure,
        }  # fmt: skip
        self.log("train/used", sure.float().mean())
        return self.total(self.supervised_loss(logits, labeled["mask"]), masked_mean(error, sure))
