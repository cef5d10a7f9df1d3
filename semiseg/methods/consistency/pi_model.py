"""Pi-model: two noisy looks at an unlabeled image should agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semiseg.components.orientation import Orientation
from semiseg.components.perturbations import noisy
from semiseg.losses import probabilities, squared_error
from semiseg.methods.semi_supervised import SemiSupervisedMethod


class PiModel(SemiSupervisedMethod):
    """Squared difference to a second pass with other dropout, noise, flips and quarter turns, which are undone.

    Laine and Aila, "Temporal ensembling for semi-supervised learning", ICLR 2017, https://arxiv.org/abs/1610.02242.
    Their images are classified and need no undoing; for segmentation it is that of Li et al.,
    "Transformation-consistent self-ensembling model", 2020, https://arxiv.org/abs/1903.00348. The second pass is the
    target: no gradient.

    Args:
        **kwargs: as `SemiSupervisedMethod`.
    """

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x squared difference of the passes."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        logits, unlabeled_logits = self.on_both(self.network, labeled["image"], unlabeled["image"])
        orientation = Orientation.draw(unlabeled["image"].shape[2:])
        with torch.no_grad():
            target = probabilities(orientation.undo(self.network(orientation.apply(noisy(unlabeled["image"])))))
        error = squared_error(probabilities(unlabeled_logits), target)
        self.seen = {"image": unlabeled["image"], "pseudo-label": target.argmax(1), "uncertainty": error.detach()}
        return self.total(self.supervised_loss(logits, labeled["mask"]), error.mean())
