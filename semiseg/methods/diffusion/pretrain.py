"""Diffusion pretraining: an image should be found again from a mask that was made of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from semiseg.components.diffusion import Diffusion
from semiseg.errors import UserError
from semiseg.losses import entropy, probabilities
from semiseg.methods.base import NetworkFactory, PretrainingMethod
from semiseg.networks.denoiser import Denoiser


class DiffusionPretrain(PretrainingMethod):
    """The unsupervised teacher of the diffusion teacher-student: mask from noise given an image, image from that mask.

    Ciampi et al., "Semi-supervised biomedical image segmentation via diffusion models and teacher-student
    co-training", 2025, https://arxiv.org/abs/2504.01547, section 3.1, equations 5 to 7. With noises v and v', times t
    and t' drawn for each image: m = softmax f_m(i, v, t); i' from v' and the noise f_i(v', m, t'); loss (i - i')^2.

    Nothing in the loss makes the mask a segmentation: it is a code of K channels that helps to find the image again.
    `collapse/...` in the log tells what becomes of it: the mean probability of each class (`share`), the entropy of the
    pixels (0 sure, 1 not), the error with the masks of other images over that with the own (`shuffled`, 1: the mask
    tells nothing; of a batch of one, with its own mirrored), and the largest correlation of a class with the image's
    brightness (`brightness`, 1: the mask is a copy of the image; the glands of GlaS have 0.38). There it becomes a
    copy, of 0.9, for which the features of full resolution suffice. Channels need not be the classes in their order;
    stage 2 has labels.

    Deviation: the error is weighted by A_t', which bounds its gradient. The paper's is up to 25 000 times larger at the
    last times than at the first and then drowns the others (`weighting: paper`). The authors' code departs further: a
    sigmoid schedule, the true image under the noise, and the error of the noise instead of the image.

    Args:
        network: a `Denoiser`.
        diffusion_steps: number of times T.
        weighting: of the squared error over the times: `balanced` by A_t', or `paper`, all alike.
        **kwargs: as `Method`.

    Raises:
        UserError: the network has no image pathway.
    """

    network: Denoiser

    def __init__(
        self,
        network: NetworkFactory = Denoiser,
        diffusion_steps: int = 1000,
        weighting: Literal["balanced", "paper"] = "balanced",
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, **kwargs)
        if getattr(self.network, "image_pathway", None) is None:
            raise UserError("--model.network: the pretraining needs a Denoiser with its image pathway; leave it out")
        self.diffusion = Diffusion(diffusion_steps)
        self.weighting = weighting
        self.seen: dict[str, Tensor] = {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Error of the image that is found again."""
        image = batch["unlabeled"]["image"]
        mask = probabilities(self.network.mask(image, *self.diffusion.pure_masks(image, self.network.num_classes)))
        s = self.diffusion.times(image)
        start = self.diffusion.pure_noise(self.diffusion.noise(image), s)
        found = self.diffusion.clean(start, self.network.noise(start, mask, s), s)
        loss = self.errors(image, found, s).mean()
        self.log("train/loss", loss)
        self.seen = {"image": image, "mask": mask.argmax(1), "found again": found.detach()}
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.watch(image, start, mask.detach(), s, float(loss.detach()))
        return loss

    def errors(self, image: Tensor, found: Tensor, s: Tensor) -> Tensor:
        """Weighted squared errors (B, C, *S) of images that were found from noise of times s (B,)."""
        squared = (image - found).square()
        return squared * self.diffusion.kept(s, image) if self.weighting == "balanced" else squared

    @torch.no_grad()
    def watch(self, image: Tensor, start: Tensor, mask: Tensor, s: Tensor, loss: float) -> None:
        """Log whether the mask is one class everywhere, undecided everywhere, of no use, or a copy of the image."""
        self.log("collapse/entropy", entropy(mask).mean())
        self.log_dict({f"collapse/share_{k}": share for k, share in enumerate(mask.mean((0, *range(2, mask.ndim))))})
        pixels = image.mean(1, keepdim=True).flatten(2), mask.flatten(2)
        gray, classes = (values - values.mean(2, keepdim=True) for values in pixels)
        self.log("collapse/brightness", F.cosine_similarity(gray, classes, dim=2).abs().amax(1).mean())
        wrong = mask.roll(1, 0) if len(image) > 1 else mask.flip(-1)
        pathway: Any = self.network.image_pathway
        untouched = {
            name: buffer.clone() for name, buffer in pathway.named_buffers()
        }  # running statistics: just a look
        found = self.diffusion.clean(start, functional_call(pathway, untouched, (start, wrong, s)), s)
        self.log("collapse/shuffled", self.errors(image, found, s).mean() / max(loss, 1e-12))
