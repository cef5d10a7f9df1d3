"""ICT: the prediction of a mixture of two images should be the mixture of their predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semiseg import whole_batch
from semiseg.errors import check_number
from semiseg.losses import probabilities, squared_error
from semiseg.methods.semi_supervised import TeacherStudentMethod


class ICT(TeacherStudentMethod):
    """Interpolation consistency training: the student on mixtures of unlabeled images follows the teacher's mixtures.

    Verma et al., "Interpolation consistency training for semi-supervised learning", IJCAI 2019,
    https://arxiv.org/abs/1903.03825. Each unlabeled image is mixed with the next one of its batch; SSL4MIS mixes one
    half of the batch with the other, each pair with a share of its own, where here, as in the paper, a batch has one
    share. Of a batch of one image the mixture is the image.

    Args:
        alpha: the shares are drawn from Beta(alpha, alpha) (SSL4MIS: 0.2; the paper: 0.1 to 1).
        **kwargs: as `TeacherStudentMethod`.
    """

    def __init__(self, alpha: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("--model.alpha", alpha, 1e-3, 1e3)
        self.alpha = alpha

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x squared difference of the mixtures."""
        labeled, image = batch["labeled"], batch["unlabeled"]["image"]
        alpha = torch.tensor(self.alpha, dtype=torch.float32)  # whatever the precision of the run
        with whole_batch.drawn_alike():
            share = float(torch.distributions.Beta(alpha, alpha).sample())
        mixture = share * image + (1 - share) * whole_batch.rolled(image)
        logits, mixed_logits = self.on_both(self.network, labeled["image"], mixture)
        q = probabilities(self.teacher(image))
        target = share * q + (1 - share) * whole_batch.rolled(q)
        error = squared_error(probabilities(mixed_logits), target)
        self.seen = {"image": mixture, "pseudo-label": target.argmax(1), "uncertainty": error.detach()}
        return self.total(self.supervised_loss(logits, labeled["mask"]), error.mean())
