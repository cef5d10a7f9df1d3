"""DTC: the mask and the distance to its border, predicted by two heads, should agree."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor

from semiseg.components.distance_maps import signed_distances
from semiseg.errors import check_number
from semiseg.losses import masked_mean, probabilities, squared_error
from semiseg.methods.semi_supervised import SemiSupervisedMethod
from semiseg.networks.layers import initialise


class DTC(SemiSupervisedMethod):
    """Dual-task consistency: a second head predicts the signed distance map of each foreground class.

    Luo et al., "Semi-supervised medical image segmentation through dual-task consistency", AAAI 2021,
    https://arxiv.org/abs/2009.04448. A distance s becomes a soft mask by sigmoid(-k s), which is compared with the
    probability of its class on all images, labeled ones too. One head per foreground class makes it multi-class; the
    2025 papers' code also compares a background map that nothing trains, and probabilities by sigmoid where the mask
    head is trained by softmax. The mask head's loss is the base class's, where the authors have Dice alone.

    Args:
        distance_weight: weight of the supervised distance loss (authors' code: 0.3).
        steepness: k (the authors: 1500, with which gradients exist at the border only).
        **kwargs: as `SemiSupervisedMethod`.
    """

    def __init__(self, distance_weight: float = 0.3, steepness: float = 1500.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("--model.distance_weight", distance_weight, 0, 1e6)
        check_number("--model.steepness", steepness, 0, 1e6, above=True)
        self.distance = Conv[Conv.CONV, self.spatial_dims](self.network.width, self.hparams["num_classes"] - 1, 1)
        initialise(self.distance)
        self.distance_weight = distance_weight
        self.steepness = steepness

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised losses of both heads + weight x squared difference of the heads."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]

        def tasks(image: Tensor) -> list[Tensor]:
            features = self.network.features(image)
            return [self.network.head(features), torch.tanh(self.distance(features))]

        (logits, distance), (unlabeled_logits, unlabeled_distance) = self.on_both(
            tasks, labeled["image"], unlabeled["image"]
        )
        p = probabilities(torch.cat([logits, unlabeled_logits]))
        distance = torch.cat([distance, unlabeled_distance]).to(p.dtype)  # at least single precision
        truth = signed_distances(labeled["mask"], logits.shape[1])
        distances = masked_mean(squared_error(distance[: len(logits)], truth), labeled["mask"] >= 0)
        soft_mask = torch.sigmoid(-self.steepness * distance)
        error = (soft_mask - p[:, 1:]).square().mean(1)
        self.seen = {
            "image": unlabeled["image"],
            "pseudo-label": unlabeled_logits.argmax(1),
            "uncertainty": error[len(logits) :].detach(),
        }
        supervised = self.supervised_loss(logits, labeled["mask"])
        return self.total(supervised, error.mean(), distance=self.distance_weight * distances)
