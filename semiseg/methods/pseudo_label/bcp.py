"""BCP: labeled images pasted into unlabeled ones and the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.ndimage import label as components
from torch import Tensor

from semiseg import whole_batch
from semiseg.components.mixing import box
from semiseg.errors import check_number
from semiseg.methods.semi_supervised import TeacherStudentMethod


class BCP(TeacherStudentMethod):
    """Bidirectional copy-paste: the student learns from mosaics of true masks and a teacher's decisions.

    Bai et al., "Bidirectional copy-paste for semi-supervised medical image segmentation", CVPR 2023,
    https://arxiv.org/abs/2305.00673. Of a box at a random place one mosaic has the unlabeled image inside and the
    labeled outside, the other mosaic the reverse. Each region of each mosaic has its own loss, normalised by itself.
    The first part of the budget pastes labeled images into each other, both regions with weight 1; the authors train it
    as a run of its own; in a batch of one labeled image there is nothing to paste. Every other image of a batch makes
    the second kind of mosaic; unlabeled images beyond the number of labeled ones are left out. `separate_forward`
    changes nothing: every image is a mosaic.

    Dice is hardly smoothed (authors: 1e-10 in 2D, 1e-5 in 3D), or a class that the teacher does not find yet would be
    driven out for good.
    The loss on labeled regions counts 1, that on pseudo-labeled ones `weight` (authors: 0.5, constant).

    Args:
        pretraining: share of the budget that learns from labeled mosaics alone (authors: 10 000 of 40 000 steps).
        box_share: side of the box as a share of the image's (authors: 2/3).
        largest_component: keep the largest connected component of each class in the teacher's decisions (authors:
            true). Only right where a class is one object.
        **kwargs: as `TeacherStudentMethod`.
    """

    smooth = 1e-5

    def __init__(
        self, pretraining: float = 0.25, box_share: float = 2 / 3, largest_component: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_number("--model.pretraining", pretraining, 0, 1)
        check_number("--model.box_share", box_share, 0, 1)
        self.pretraining = pretraining
        self.box_share = box_share
        self.largest_component = largest_component

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss on the labeled regions + weight x loss on the pseudo-labeled ones."""
        image, mask = batch["labeled"]["image"], batch["labeled"]["mask"]
        pretraining = self.progress < self.pretraining
        if pretraining:
            other, label = whole_batch.rolled(image), whole_batch.rolled(mask)
        else:
            other = batch["unlabeled"]["image"]
            if len(other) != len(image):  # pairs may lie in different processes
                other = whole_batch.gathered(other)[: len(image) * whole_batch.world_size()]
            label = self.decisions(other)
        size = image.shape[2:]
        with whole_batch.drawn_alike():
            inside = box(size, [max(1, int(self.box_share * side)) for side in size], image.device)
            first = int(torch.randint(2, ()))
        slots = whole_batch.slots(image)
        other, label = (tensor[slots % len(tensor)] for tensor in (other, label))
        inverse = (slots + first) % 2 == 1  # every other image, so that a batch of one has both
        taken = inside ^ inverse.view(-1, *[1] * len(size))  # (B, *S): pixels of the other image
        logits = self.network(torch.where(taken.unsqueeze(1), other, image))
        own = self.of_each(logits, mask.masked_fill(taken, -1))
        pasted = self.of_each(logits, label.masked_fill(~taken, -1))
        self.seen = {
            "image": torch.where(taken.unsqueeze(1), other, image), "pseudo-label": torch.where(taken, label, mask),
            "used": taken,
        }  # fmt: skip
        if pretraining:
            return self.total(own + pasted, torch.zeros_like(own))
        return self.total(own, pasted)

    def of_each(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The supervised loss of each image by itself, averaged: a box has fewer pixels than what is around it."""
        pairs = zip(torch.split(logits, 1), torch.split(mask, 1), strict=True)
        with whole_batch.alone():
            return torch.stack([self.supervised_loss(*pair) for pair in pairs]).mean()

    @torch.no_grad()
    def decisions(self, image: Tensor) -> Tensor:
        """The teacher's classes (B, *S) of images."""
        classes = self.teacher(image).argmax(1)
        if self.largest_component:
            kept = [largest_components(sample) for sample in classes.cpu().numpy()]
            classes = torch.from_numpy(np.stack(kept)).to(classes.device)
        return classes


def largest_components(classes: np.ndarray) -> np.ndarray:
    """A class map (*S) in which each foreground class has its largest component only, pixels joined at corners too."""
    kept = np.zeros_like(classes)
    for label in np.unique(classes[classes > 0]):
        parts, _ = components(classes == label, structure=np.ones([3] * classes.ndim))
        kept[parts == np.bincount(parts.ravel())[1:].argmax() + 1] = label
    return kept
