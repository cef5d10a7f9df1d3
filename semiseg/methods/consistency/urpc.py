"""URPC: predictions at several scales should agree, less so where they are far apart."""

from __future__ import annotations

from itertools import cycle
from typing import Any, Literal

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional as F

from semiseg import whole_batch
from semiseg.components.branches import MeanOf
from semiseg.components.perturbations import FeatureDrop, FeatureDropout, FeatureNoise
from semiseg.errors import UserError, check_number
from semiseg.losses import probabilities
from semiseg.losses.consistency import EPSILON
from semiseg.methods.semi_supervised import SemiSupervisedMethod
from semiseg.networks.base import Stages
from semiseg.networks.layers import initialise


class URPC(SemiSupervisedMethod):
    """Uncertainty-rectified pyramid consistency: a head on each of the decoder's last stages, drawn to their mean.

    Luo et al., "Efficient semi-supervised gross target volume of nasopharyngeal carcinoma segmentation via uncertainty
    rectified pyramid consistency", MICCAI 2021, https://arxiv.org/abs/2012.07042; Medical Image Analysis 2022. With p_s
    the prediction of scale s, m their mean and U_s = KL(m || p_s) per pixel, the loss of a scale is
    `mean((m - p_s)^2 exp(-U_s)) / mean(exp(-U_s)) + mean(U_s)`. KL as in the paper and SSL4MIS; the 2025 papers' 2D
    code has it the other way round. In training the coarser stages' features are perturbed, as in SSL4MIS. Deviation:
    coarse predictions are enlarged linearly, not by the nearest.

    Args:
        scales: predictions in all, the network's own included (the paper: 4); fewer if the decoder has fewer stages.
        score: what validation, test and predict use: the network's own prediction, or the mean of all scales.
        **kwargs: as `SemiSupervisedMethod`.

    Raises:
        UserError: the network's decoder does not work in stages, or in one only.
    """

    def __init__(self, scales: int = 4, score: Literal["main", "mean"] = "main", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("--model.scales", scales, 2, 16)
        decoder = self.network.decoder
        channels = decoder.channels[-scales:-1] if isinstance(decoder, Stages) else ()
        if not channels:
            raise UserError("--model URPC needs a network whose decoder has two stages or more")
        conv = Conv[Conv.CONV, self.spatial_dims]
        self.heads = nn.ModuleList(conv(width, self.hparams["num_classes"], 3, padding=1) for width in channels)
        initialise(self.heads)
        coarse_to_fine = [FeatureDropout(nn.Dropout(0.5)), FeatureDrop(), FeatureNoise()]
        self.perturbations = nn.ModuleList(coarse_to_fine)
        self.score = score

    @property
    def scored_network(self) -> nn.Module:
        """The network alone, or the mean of all scales."""
        return self.network if self.score == "main" else MeanOf(self.predictions)

    def predictions(self, image: Tensor) -> list[Tensor]:
        """Logits (B, K, *S) of the network and of each coarser scale."""
        decoder: Any = self.network.decoder
        *stages, finest = decoder.pyramid(self.network.encode(image))
        logits = [self.network.head(finest)]
        mode = {2: "bilinear", 3: "trilinear"}[self.spatial_dims]
        for head, stage, perturb in zip(
            self.heads, stages[-len(self.heads) :], cycle(self.perturbations), strict=False
        ):
            logits.append(F.interpolate(head(perturb(stage)), image.shape[2:], mode=mode))
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean supervised loss of all scales + weight x mean pyramid consistency."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        scales, unlabeled_scales = self.on_both(self.predictions, labeled["image"], unlabeled["image"])
        supervised = torch.stack([self.supervised_loss(logits, labeled["mask"]) for logits in scales]).mean()
        ps = [probabilities(logits) for logits in unlabeled_scales]
        mean = torch.stack(ps).mean(0)
        of_mean = (mean + EPSILON).log()
        divergences = [(mean * (of_mean - (p + EPSILON).log())).sum(1) for p in ps]
        consistency = torch.stack([rectified(p, mean, u) for p, u in zip(ps, divergences, strict=True)]).mean()
        self.seen = {
            "image": unlabeled["image"],
            "pseudo-label": mean.argmax(1),
            "uncertainty": torch.stack(divergences).mean(0).detach(),
        }
        return self.total(supervised, consistency)


def rectified(p: Tensor, mean: Tensor, divergence: Tensor) -> Tensor:
    """The loss of one scale: squared differences that count less where the divergence is large, and the divergence."""
    trust = torch.exp(-divergence)
    return whole_batch.ratio(((p - mean).square().mean(1) * trust).mean(), trust.mean()) + divergence.mean()
