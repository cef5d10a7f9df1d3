"""Cross pseudo supervision: two networks teach each other by their decisions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from semiseg import losses
from semiseg.components.branches import MeanOf, WeightsFor, another
from semiseg.methods.semi_supervised import SemiSupervisedMethod


class CPS(SemiSupervisedMethod):
    """Train two networks of the same kind; the decisions of each are the labels of the other, on all images.

    Chen et al., "Semi-supervised semantic segmentation with cross pseudo supervision", CVPR 2021,
    https://arxiv.org/abs/2106.01226. No threshold: every pixel's decision counts. Cross-entropy as there and in
    SSL4MIS; the 2025 papers' code takes soft Dice (`pseudo_loss: dice`) and unlabeled images only, one optimiser for
    each network, and then scores the better of the two.

    Args:
        pseudo_loss: loss on the other network's decisions.
        on_labeled: teach each other on labeled images too, as the paper does.
        weights_for: which networks start from `network.weights`, if given: all, or the first only. Never a mixture.
        score: what validation, test and predict use: the first network (the paper), or the mean of both.
        **kwargs: as `SemiSupervisedMethod`.
    """

    def __init__(
        self,
        pseudo_loss: Literal["ce", "dice"] = "ce",
        on_labeled: bool = True,
        weights_for: WeightsFor = "all",
        score: Literal["first", "mean"] = "first",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.second = another(self.make_network, weights_for)
        self.pseudo_loss = {"ce": losses.cross_entropy, "dice": losses.soft_dice}[pseudo_loss]
        self.on_labeled = on_labeled
        self.score = score

    @property
    def scored_network(self) -> nn.Module:
        """The first network, or the mean of both."""
        return self.network if self.score == "first" else MeanOf(lambda x: [self.network(x), self.second(x)])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised losses of both networks + weight x (their losses on each other's decisions)."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        first, second = (
            self.on_both(network, labeled["image"], unlabeled["image"]) for network in (self.network, self.second)
        )
        supervised = torch.stack([self.supervised_loss(logits, labeled["mask"]) for logits, _ in (first, second)]).sum()
        one, other = (torch.cat(parts) if self.on_labeled else parts[1] for parts in (first, second))
        crossed = self.pseudo_loss(one, other.argmax(1)) + self.pseudo_loss(other, one.argmax(1))
        decisions = first[1].argmax(1), second[1].argmax(1)
        self.seen = {"image": unlabeled["image"], "pseudo-label": decisions[0], "used": decisions[0] == decisions[1]}
        return self.total(supervised, crossed)
