"""UniMatch: decisions on a weak view are labels for strong views of the image and of its features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semiseg import whole_batch
from semiseg.components.mixing import cutmix_boxes
from semiseg.components.perturbations import FeatureDropout, strong_view
from semiseg.errors import check_number
from semiseg.losses import probabilities, soft_dice
from semiseg.methods.semi_supervised import SemiSupervisedMethod

SMOOTH = 1e-5  # the authors'


class UniMatch(SemiSupervisedMethod):
    """Two strong views with CutMix and one with dropped feature channels learn a weak view's confident decisions.

    Yang et al., "Revisiting weak-to-strong consistency in semi-supervised semantic segmentation", CVPR 2023,
    https://arxiv.org/abs/2208.09910; numbers from the authors' code for medical images. The weak view is what the data
    give (flips, rotations, crops). An image takes its CutMix pixels from the next one of its batch, whose decisions are
    there already, where the authors predict a further batch for it; their decisions come from evaluation mode. Of a
    batch of one image there is nothing to mix. Dice is each image's, theirs the batch's; like theirs it is hardly
    smoothed, or a class of which no pixel is sure yet would be driven out of the whole image.

    Args:
        confidence: of a decision below which a pixel is ignored (authors: 0.95).
        view_weights: of the two strong views together and of the feature view (authors: 0.5 and 0.5).
        **kwargs: as `SemiSupervisedMethod`.
    """

    def __init__(self, confidence: float = 0.95, view_weights: tuple[float, float] = (0.5, 0.5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("--model.confidence", confidence, 0, 1)
        check_number("--model.view_weights", view_weights, 0, 1e6)
        self.confidence = confidence
        self.view_weights = view_weights
        self.drop_channels = FeatureDropout({2: nn.Dropout2d, 3: nn.Dropout3d}[self.spatial_dims](0.5))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised loss + weight x weighted Dice losses of the views."""
        labeled, image = batch["labeled"], batch["unlabeled"]["image"]

        def decoded_and_encoded(image: Tensor) -> list[Tensor]:
            features = self.network.encode(image)
            return [self.network.decode(features), *features]

        (logits, *_), (weak_logits, *features) = self.on_both(decoded_and_encoded, labeled["image"], image)
        confidence, decision = probabilities(weak_logits).detach().max(1)
        label = torch.where(confidence >= self.confidence, decision, -1)
        dropped = self.network.decode([self.drop_channels(level) for level in features])

        views, labels = [], []
        for _ in range(2):
            box = cutmix_boxes(image)
            view = strong_view(image)
            views.append(torch.where(box.unsqueeze(1), whole_batch.rolled(view), view))
            labels.append(torch.where(box, whole_batch.rolled(label), label))
        strong = soft_dice(self.network(torch.cat(views)), torch.cat(labels), smooth=SMOOTH)
        self.seen = {
            "image": image, "pseudo-label": decision, "uncertainty": 1 - confidence, "used": label >= 0,
        }  # fmt: skip
        self.log("train/used", (label >= 0).float().mean())
        of_strong, of_dropped = self.view_weights
        unsupervised = of_strong * strong + of_dropped * soft_dice(dropped, label, smooth=SMOOTH)
        return self.total(self.supervised_loss(logits, labeled["mask"]), unsupervised)
