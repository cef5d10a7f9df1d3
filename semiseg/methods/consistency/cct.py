"""CCT: decoders of perturbed features should agree with the decoder of the clean ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semiseg.components.branches import Branch, WeightsFor, another
from semiseg.components.perturbations import FeatureDrop, FeatureDropout, FeatureNoise
from semiseg.losses import probabilities, squared_error
from semiseg.methods.semi_supervised import SemiSupervisedMethod


class CCT(SemiSupervisedMethod):
    """Cross-consistency training: one auxiliary decoder for each perturbation of the encoder's features.

    Ouali, Hudelot, Tami, "Semi-supervised semantic segmentation with cross-consistency training", CVPR 2020,
    https://arxiv.org/abs/2003.09005. The perturbations are the three of SSL4MIS's U-Net version: noise, dropout
    (0.3) and dropping the most active places, on all levels' features. Auxiliary decoders learn on unlabeled images
    only, as in the paper; the main prediction is their target. In the 2025 papers' code they share one decoder
    (`shared_decoder`), gradients flow into the target (`detach_target: false`), and the supervised loss is the mean
    over all decoders.

    Args:
        shared_decoder: the main decoder also reads the perturbed features.
        detach_target: no gradient into the main prediction from the unsupervised loss.
        weights_for: which decoders start from `network.weights`, if given: all, or the main one only.
        **kwargs: as `SemiSupervisedMethod`.
    """

    def __init__(
        self,
        shared_decoder: bool = False,
        detach_target: bool = True,
        weights_for: WeightsFor = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.perturbations = nn.ModuleList([FeatureNoise(), FeatureDropout(nn.Dropout(0.3)), FeatureDrop()])
        self.detach_target = detach_target
        self.auxiliary = nn.ModuleList(
            [] if shared_decoder else [Branch(another(self.make_network, weights_for)) for _ in self.perturbations]
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x mean squared difference of the auxiliary predictions to the main one."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]

        def decoded_and_encoded(image: Tensor) -> list[Tensor]:
            features = self.network.encode(image)
            return [self.network.decode(features), *features]

        (logits, *_), (unlabeled_logits, *features) = self.on_both(
            decoded_and_encoded, labeled["image"], unlabeled["image"]
        )
        target = probabilities(unlabeled_logits)
        target = target.detach() if self.detach_target else target
        decoders: Sequence[Any] = list(self.auxiliary) or [self.network.decode] * len(self.perturbations)
        errors = [
            squared_error(probabilities(decode([perturb(level) for level in features])), target)
            for perturb, decode in zip(self.perturbations, decoders, strict=True)
        ]
        error = torch.stack(errors).mean(0)
        self.seen = {"image": unlabeled["image"], "pseudo-label": target.argmax(1), "uncertainty": error.detach()}
        return self.total(self.supervised_loss(logits, labeled["mask"]), error.mean())
