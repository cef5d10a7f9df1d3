"""MC-Net: decoders of different kinds should agree with each other's confident predictions."""

from __future__ import annotations

from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semiseg.components.branches import Branch, MeanOf, WeightsFor, another
from semiseg.errors import UserError, check_number
from semiseg.losses import probabilities, sharpened, squared_error
from semiseg.methods.semi_supervised import SemiSupervisedMethod
from semiseg.networks.layers import Upsampling


class MCNet(SemiSupervisedMethod):
    """Mutual consistency: one encoder and decoders that upsample differently, each drawn to the others' sharpened maps.

    Wu et al., "Semi-supervised left atrium segmentation with mutual consistency training", MICCAI 2021,
    https://arxiv.org/abs/2103.02911 (two decoders), and "Mutual consistency learning for semi-supervised medical image
    segmentation", Medical Image Analysis 2022, https://arxiv.org/abs/2109.09960 (MC-Net+, three). The mutual loss is
    taken over labeled and unlabeled images. Deviations: the target is detached (`detach_target: false` is the authors'
    code), sharpened maps sum to one for any number of classes, both losses are divided by the number of decoders, and
    the supervised loss is that of all methods (authors: Dice).

    Args:
        decoders: how the further decoders upsample; the first is the network's own. One makes v1, two MC-Net+.
        temperature: of the sharpening.
        detach_target: no gradient into the target.
        weights_for: which decoders start from `network.weights`, if given: all (where a decoder is of another kind,
            its weights differ and this is an error), or the network's own only.
        score: what validation, test and predict use: the first decoder (the authors), or the mean of all.
        **kwargs: as `SemiSupervisedMethod`.
    """

    def __init__(
        self,
        decoders: tuple[Upsampling, ...] = ("bilinear", "nearest"),
        temperature: float = 0.1,
        detach_target: bool = True,
        weights_for: WeightsFor = "first",
        score: Literal["first", "mean"] = "first",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not decoders:
            raise UserError("--model.decoders []: name one further decoder or more, such as [bilinear]")
        self.others = nn.ModuleList(
            Branch(another(self.make_network, weights_for, upsample=upsample)) for upsample in decoders
        )
        check_number("--model.temperature", temperature, 1e-2, 10)
        self.temperature = temperature
        self.detach_target = detach_target
        self.score = score

    @property
    def scored_network(self) -> nn.Module:
        """The network with its own decoder, or the mean of all decoders."""
        return self.network if self.score == "first" else MeanOf(self.predictions)

    def predictions(self, image: Tensor) -> list[Tensor]:
        """Logits (B, K, *S) of each decoder."""
        features = self.network.encode(image)
        return [self.network.decode(features), *(decoder(features) for decoder in self.others)]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean over decoders of the supervised loss + weight x the squared differences to all others."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        outputs, unlabeled_outputs = self.on_both(self.predictions, labeled["image"], unlabeled["image"])
        supervised = torch.stack([self.supervised_loss(logits, labeled["mask"]) for logits in outputs]).mean()
        ps = [probabilities(torch.cat(pair)) for pair in zip(outputs, unlabeled_outputs, strict=True)]
        targets = [sharpened(p.detach() if self.detach_target else p, self.temperature) for p in ps]
        pairs = [squared_error(p, q) for (p, _), (_, q) in permutations(zip(ps, targets, strict=True), 2)]
        error = torch.stack(pairs).sum(0) / len(ps)
        self.seen = {
            "image": unlabeled["image"],
            "pseudo-label": unlabeled_outputs[0].argmax(1),
            "uncertainty": error[len(labeled["image"]) :].detach(),
        }
        return self.total(supervised, error.mean())
