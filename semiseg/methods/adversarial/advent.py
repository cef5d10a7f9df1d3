"""ADVENT: predictions on unlabeled images should look like those on labeled ones to a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from semiseg.errors import check_number
from semiseg.losses import entropy, probabilities
from semiseg.losses.consistency import EPSILON
from semiseg.methods.semi_supervised import SemiSupervisedMethod


class ADVENT(SemiSupervisedMethod):
    """Adversarial entropy minimisation: a discriminator tells labeled from unlabeled images by their self-information.

    Vu et al., "ADVENT: adversarial entropy minimization for domain adaptation in semantic segmentation", CVPR 2019,
    https://arxiv.org/abs/1811.12833. The self-information map of a prediction p is -p log p for each class. The network
    is trained to have unlabeled images taken for labeled ones, the discriminator to tell them apart. Deviations: source
    and target domain are the labeled and the unlabeled images, as in semi-supervised learning; both parts learn in one
    backward pass and by one optimiser, in which the discriminator has its own learning rate, where the authors take
    SGD and Adam.

    Args:
        direct: weight of the mean entropy beside the adversarial loss (the paper trains either; 0: adversarial alone).
        discriminator_lr: learning rate of the discriminator (the authors: 0.0001).
        **kwargs: as `SemiSupervisedMethod`.
    """

    def __init__(self, direct: float = 0.0, discriminator_lr: float = 0.0001, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("--model.direct", direct, 0, 1e6)
        check_number("--model.discriminator_lr", discriminator_lr, 0, 10)
        self.discriminator = discriminator(self.hparams["num_classes"], self.spatial_dims)
        self.direct = direct
        self.discriminator_lr = discriminator_lr

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's and the discriminator's, each with its learning rate."""
        return [
            {"params": list(self.network.parameters())},
            {"params": list(self.discriminator.parameters()), "lr": self.discriminator_lr},
        ]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x adversarial loss of the network + the discriminator's loss."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        logits, unlabeled_logits = self.on_both(self.network, labeled["image"], unlabeled["image"])
        p = probabilities(unlabeled_logits)
        dtype = next(self.discriminator.parameters()).dtype  # not single in bf16-true
        source, target = (self_information(q).to(dtype) for q in (probabilities(logits), p))
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, frozen, (target,)).to(p.dtype)
        fooling = F.softplus(-fooled).mean()  # cross-entropy of taking them for labeled ones
        judged = self.discriminator(torch.cat([source, target]).detach()).to(p.dtype)
        telling = (F.softplus(-judged[: len(source)]).mean() + F.softplus(judged[len(source) :]).mean()) / 2
        uncertainty = entropy(p)
        self.seen = {"image": unlabeled["image"], "pseudo-label": p.argmax(1), "uncertainty": uncertainty.detach()}
        return self.total(
            self.supervised_loss(logits, labeled["mask"]),
            fooling + self.direct * uncertainty.mean(),
            discriminator=telling,
        )


def self_information(p: Tensor) -> Tensor:
    """-p log p of each class, in units of log K."""
    return -p * (p + EPSILON).log() / torch.tensor(p.shape[1], device=p.device).log()


def discriminator(num_classes: int, spatial_dims: int) -> nn.Module:
    """Four strided convolutions of 64 to 512 channels, as the authors', and one logit per place.

    Kernels are 3 wide instead of 4, so that a thin volume can be halved as often as a large image, and the last
    convolution does not halve: images have the network's size here, not that of a street scene.
    """
    conv = Conv[Conv.CONV, spatial_dims]
    layers: list[nn.Module] = []
    before = num_classes
    for width in (64, 128, 256, 512):
        layers += [conv(before, width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
    return nn.Sequential(*layers, conv(before, 1, 3, padding=1))
