"""The teacher of a student network: a frozen copy whose weights are a running mean of the student's."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from semiseg.errors import UserError, check_number
from semiseg.networks import Network


class Teacher(nn.Module):
    """Exponential moving average of a network (Tarvainen and Valpola, 2017, https://arxiv.org/abs/1703.01780).

    At step t the teacher becomes `a teacher + (1 - a) student` with `a = min(1 - 1 / (t + 1), decay)`: the first steps
    are a plain mean, and at step 0 the teacher is the student. Nothing of it has a gradient.

    Args:
        student: network to follow.
        decay: share of the teacher that stays, once t is large.
        mode: "train": dropout and batch normalisation as in training, which the papers' code uses as perturbation;
            "eval": as at inference.
        buffers: batch normalisation's statistics: "copy" those of the student, "average" them like the weights, or
            let the teacher keep its "own" from the images it sees (the papers' code, in mode "train").

    Raises:
        UserError: `decay` is not between 0 and 1, or mode "eval" is to keep statistics that nothing updates.
    """

    def __init__(
        self,
        student: Network,
        decay: float = 0.99,
        mode: Literal["train", "eval"] = "train",
        buffers: Literal["copy", "average", "own"] = "copy",
    ) -> None:
        super().__init__()
        check_number("--model.decay", decay, 0, 1)
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.mode = mode
        self.buffer_rule = buffers
        if mode == "eval" and buffers == "own":
            raise UserError("--model.teacher_buffers own: in --model.teacher_mode eval nothing updates them; use copy")
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Follow the module around it, but for mode "eval"."""
        return super().train(mode and self.mode == "train")

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Logits of images, without a graph."""
        logits: Tensor = self.network(image)
        return logits

    @torch.no_grad()
    def follow(self, student: Network, step: int) -> None:
        """Move towards the student after the optimiser's step of this number, the first being 0."""
        away = 1 - min(1 - 1 / (step + 1), self.decay)
        weights: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(weights, [weight.data for weight in student.parameters()], away)
        if self.buffer_rule == "own":
            return
        for mine, theirs in zip(self.network.buffers(), student.buffers(), strict=True):
            if self.buffer_rule == "average" and mine.is_floating_point():
                mine.lerp_(theirs, away)
            else:
                mine.copy_(theirs)
