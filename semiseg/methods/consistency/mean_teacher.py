"""Mean teacher: agree with a running mean of oneself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from semiseg.components.perturbations import noisy
from semiseg.errors import check_number
from semiseg.losses import probabilities, squared_error
from semiseg.methods.semi_supervised import TeacherStudentMethod


class MeanTeacher(TeacherStudentMethod):
    """Squared difference between the student and a teacher that sees the unlabeled images with noise.

    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780, with
    the noise and the mean over classes of SSL4MIS.

    Args:
        start: share of the budget before which the unsupervised weight is 0, until the teacher is worth following
            (SSL4MIS: 1000 of 30 000 steps).
        **kwargs: as `TeacherStudentMethod`.
    """

    def __init__(self, start: float = 1 / 30, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("--model.start", start, 0, 1)
        self.start = start

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x squared difference to the teacher."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        logits, unlabeled_logits = self.on_both(self.network, labeled["image"], unlabeled["image"])
        target = probabilities(self.teacher(noisy(unlabeled["image"])))
        error = squared_error(probabilities(unlabeled_logits), target)
        self.seen = {"image": unlabeled["image"], "pseudo-label": target.argmax(1), "uncertainty": error.detach()}
        follows = float(self.progress >= self.start)
        return self.total(self.supervised_loss(logits, labeled["mask"]), follows * error.mean())
