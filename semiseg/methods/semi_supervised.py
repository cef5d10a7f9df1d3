"""The base of the single-stage methods that learn from labeled and unlabeled images at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semiseg import whole_batch
from semiseg.components.ramps import RampFactory, SigmoidRamp, check_ramp
from semiseg.components.teacher import Teacher
from semiseg.methods.base import SegmentationMethod


class SemiSupervisedMethod(SegmentationMethod):
    """Total loss = supervised loss on the labeled stream + weight(step) x unsupervised loss.

    Subclasses write `training_step`: they compute the two losses and return `self.total(...)`.

    Args:
        weight: weight of the unsupervised loss as a function of the step, such as `SigmoidRamp` (0.1 at its peak, as
            the originals) or `LinearRamp` (5, as both 2025 papers).
        separate_forward: pass labeled and unlabeled images through the network one after the other, so that batch
            normalisation sees them apart, as in the code of both 2025 papers; else in one batch, as in SSL4MIS.
        **kwargs: as `SegmentationMethod`.

    Attributes:
        seen: image, pseudo-label and maps of the last step that a picture should show, by name.
    """

    streams = ("labeled", "unlabeled")

    def __init__(self, weight: RampFactory = SigmoidRamp, separate_forward: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_ramp(weight)
        self.make_ramp = weight
        self.separate_forward = separate_forward
        self.seen: dict[str, Tensor] = {}

    @property
    def progress(self) -> float:
        """Share of the budget that is done."""
        return self.trainer.global_step / self.trainer.max_steps

    def on_both(self, function: Callable[[Tensor], Any], labeled: Tensor, unlabeled: Tensor) -> tuple[Any, Any]:
        """What a network makes of labeled and of unlabeled images; a list of outputs becomes a list for each."""
        if self.separate_forward:
            return function(labeled), function(unlabeled)
        sizes = [len(labeled), len(unlabeled)]
        with whole_batch.of_parts(*sizes):
            outputs = function(torch.cat([labeled, unlabeled]))
        if isinstance(outputs, Tensor):
            first, second = torch.split(outputs, sizes)
            return first, second
        pairs = [torch.split(output, sizes) for output in outputs]
        return [first for first, _ in pairs], [second for _, second in pairs]

    def total(self, supervised: Tensor, unsupervised: Tensor, **others: Tensor) -> Tensor:
        """The loss of a step: supervised + weight x unsupervised + others; all parts are logged by their names."""
        weight = self.make_ramp(self.trainer.max_steps)(self.trainer.global_step)
        loss = supervised + weight * unsupervised
        for other in others.values():
            loss = loss + other
        parts = {"supervised": supervised, "unsupervised": unsupervised, **others}
        self.log_dict({"train/loss": loss, **{f"train/loss_{name}": part.detach() for name, part in parts.items()}})
        self.log("train/weight", weight)
        return loss


class TeacherStudentMethod(SemiSupervisedMethod):
    """A semi-supervised method with an exponential-moving-average teacher, which follows each optimiser step.

    Args:
        decay: share of the teacher that stays at each step.
        teacher_mode: the teacher's mode in training, see `Teacher`.
        teacher_buffers: where its batch normalisation's statistics come from, see `Teacher`.
        score: the network that validation, test and predict use.
        **kwargs: as `SemiSupervisedMethod`.
    """

    def __init__(
        self,
        decay: float = 0.99,
        teacher_mode: Literal["train", "eval"] = "train",
        teacher_buffers: Literal["copy", "average", "own"] = "copy",
        score: Literal["student", "teacher"] = "student",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.teacher = Teacher(self.network, decay, teacher_mode, teacher_buffers)
        self.score = score

    @property
    def scored_network(self) -> nn.Module:
        """The student, or the teacher."""
        return self.teacher.network if self.score == "teacher" else self.network

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let the teacher follow."""
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        self.teacher.follow(self.network, step)
