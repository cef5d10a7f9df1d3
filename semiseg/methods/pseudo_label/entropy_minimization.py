"""Entropy minimisation: predictions on unlabeled images should be confident."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from semiseg.losses import entropy, probabilities
from semiseg.methods.semi_supervised import SemiSupervisedMethod


class EntropyMinimization(SemiSupervisedMethod):
    """Add the mean entropy of the predictions on unlabeled images; both 2025 papers call it EM or ADVENT.

    Grandvalet and Bengio, "Semi-supervised learning by entropy minimization", NeurIPS 2004; the direct loss of Vu et
    al., "ADVENT", CVPR 2019, https://arxiv.org/abs/1811.12833. Entropy is divided by log K, so that a weight means the
    same for any number of classes. SSL4MIS also takes it over the labeled images; here, as in the 2025 papers' code,
    over the unlabeled ones.

    Args:
        **kwargs: as `SemiSupervisedMethod`.
    """

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x entropy."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        logits, unlabeled_logits = self.on_both(self.network, labeled["image"], unlabeled["image"])
        p = probabilities(unlabeled_logits)
        uncertainty = entropy(p)
        self.seen = {"image": unlabeled["image"], "pseudo-label": p.argmax(1), "uncertainty": uncertainty.detach()}
        return self.total(self.supervised_loss(logits, labeled["mask"]), uncertainty.mean())
