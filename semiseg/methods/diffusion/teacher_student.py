"""Diffusion teacher-student: two denoisers of masks teach each other, over rounds of mask and image."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from semiseg import losses
from semiseg.components.branches import another
from semiseg.components.diffusion import Diffusion, MaskSampler
from semiseg.errors import check_number
from semiseg.losses import probabilities
from semiseg.methods.base import NetworkFactory
from semiseg.methods.semi_supervised import SemiSupervisedMethod
from semiseg.networks.denoiser import Denoiser


class DiffusionTeacherStudent(SemiSupervisedMethod):
    """Cross pseudo-supervision of two denoisers, and rounds of diffusion through the teacher.

    Ciampi et al., "Semi-supervised biomedical image segmentation via diffusion models and teacher-student
    co-training", 2025, https://arxiv.org/abs/2504.01547, sections 3.2 and 3.3, equations 8 to 16. Teacher and student
    segment each image from the same noise; the decisions of each are the labels of the other. Then R times: the
    teacher's image pathway finds the image again from its noised self and the last mask, and its mask pathway segments
    what was found, which should give the label, or the student's decision (alignment), and the image
    (reconstruction). Losses: supervised of both + weight x (crossed + mean alignment + mean reconstruction), on labeled
    and unlabeled images. With `rounds` 0 it is CPS of denoisers.

    Start the teacher from `DiffusionPretrain` by `--model.network.weights`; the student starts afresh.

    Not said by the paper, and chosen here: each round noises the given image, not the one found before; what was found
    is clamped to the image's own range before it is segmented (at late times it is amplified 150 times); its error
    is weighted by A_t, see `DiffusionPretrain`. The authors' code of this part was never published.

    Args:
        network: a `Denoiser`: the teacher's.
        rounds: R (paper: 5).
        truncate: let no gradient pass from a round into the ones before; memory then still grows with R, but the
            gradient's path does not.
        diffusion_steps: number of times T.
        start: time of the noise that is segmented from at inference, as a share of T.
        num_samples: number of noises whose predictions are averaged at inference.
        denoising_steps: passes of each, see `MaskSampler`.
        score: the network that validation, test and predict use.
        **kwargs: as `SemiSupervisedMethod`.
    """

    network: Denoiser

    def __init__(
        self,
        network: NetworkFactory = Denoiser,
        rounds: int = 5,
        truncate: bool = False,
        diffusion_steps: int = 1000,
        start: float = 0.5,
        num_samples: int = 1,
        denoising_steps: int = 1,
        score: Literal["student", "teacher"] = "student",
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, **kwargs)
        check_number("--model.rounds", rounds, 0)
        self.student = another(self.make_network, "first", image_pathway=False)
        self.rounds = rounds
        self.truncate = truncate
        self.diffusion = Diffusion(diffusion_steps)
        scored: Any = self.student if score == "student" else self.network
        self.sampler = MaskSampler(
            scored.mask, self.network.num_classes, diffusion_steps, start, num_samples, denoising_steps
        )
        if not rounds:
            for parameter in self.network.image_only():
                parameter.requires_grad_(False)

    @property
    def scored_network(self) -> nn.Module:
        """The student's mask pathway from fixed noise, or the teacher's."""
        return self.sampler

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised losses + weight x (crossed + alignment + reconstruction)."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        images = torch.cat([labeled["image"], unlabeled["image"]])
        known, index = len(labeled["image"]), torch.arange(len(images), device=images.device)
        noise, t = self.diffusion.pure_masks(images, self.network.num_classes)

        def masks(network: Any) -> Tensor:
            parts = self.on_both(lambda i: network.mask(images[i], noise[i], t[i]), index[:known], index[known:])
            return torch.cat(parts)

        teacher, student = masks(self.network), masks(self.student)
        supervised = torch.stack([self.supervised_loss(m[:known], labeled["mask"]) for m in (teacher, student)]).sum()
        crossed = losses.cross_entropy(student, teacher.argmax(1)) + losses.cross_entropy(teacher, student.argmax(1))
        target = torch.cat([labeled["mask"], student[known:].argmax(1)])
        aligned, found, mask = self.go_round(images, teacher, target)
        decisions = teacher[known:].argmax(1), student[known:].argmax(1)
        self.seen = {
            "image": unlabeled["image"],
            "pseudo-label": decisions[0],
            "used": decisions[0] == decisions[1],
            "last round": mask[known:].argmax(1),
        }
        return self.total(supervised, crossed + aligned + found)

    def go_round(self, images: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean alignment and reconstruction losses of all rounds, and the last mask's logits (B, K, *S)."""
        axes = tuple(range(1, images.ndim))
        least, most = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
        aligned = found = images.new_zeros(())
        for _ in range(self.rounds):
            s = self.diffusion.times(images)
            noised = self.diffusion.noised(images, torch.randn_like(images), s)
            given = probabilities(mask.detach() if self.truncate else mask)
            again = self.diffusion.clean(noised, self.network.noise(noised, given, s), s)
            found = found + (self.diffusion.kept(s, images) * (images - again).square()).mean() / self.rounds
            mask = self.network.mask(
                again.clamp(least, most), *self.diffusion.pure_masks(images, self.network.num_classes)
            )
            aligned = aligned + losses.cross_entropy(mask, target) / self.rounds
        return aligned, found, mask
