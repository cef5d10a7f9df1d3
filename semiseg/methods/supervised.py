"""Supervised learning on the labeled images: the baseline that every other method is measured against."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from semiseg.methods.base import SegmentationMethod


class Supervised(SegmentationMethod):
    """Train the network on the labeled stream only.

    U-Net: Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015,
    https://arxiv.org/abs/1505.04597. The papers' recipe (soft Dice, SGD) is `configs/protocol/published.yaml`.
    """

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss of the labeled images."""
        labeled = batch["labeled"]
        loss = self.supervised_loss(self.network(labeled["image"]), labeled["mask"])
        self.log_dict({"train/loss": loss, "train/loss_supervised": loss.detach()})
        return loss
