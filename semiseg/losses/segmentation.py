"""Supervised segmentation losses, in 2D and 3D: logits (B, K, *S) float, mask (B, *S) long, result a scalar.

Pixels whose mask equals `ignore_index` (default -1) count nowhere: neither in a numerator nor in a denominator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg import whole_batch


def cross_entropy(logits: Tensor, mask: Tensor, ignore_index: int = -1) -> Tensor:
    """Return the cross entropy, averaged over the valid pixels; without any it is 0 and its gradient too.

    PyTorch's own mean is NaN without valid pixels, and its sum over an image is not deterministic on a GPU
    (https://github.com/pytorch/pytorch/issues/17350), hence the sum outside. In several processes the average runs over
    the pixels of all, see `semiseg.whole_batch.ratio`.
    """
    loss = F.cross_entropy(logits, mask, ignore_index=ignore_index, reduction="none")
    return whole_batch.ratio(loss.sum(), (mask != ignore_index).sum())


def soft_dice(logits: Tensor, mask: Tensor, ignore_index: int = -1, smooth: float = 1.0) -> Tensor:
    """Return 1 - (2 Σ p g + smooth) / (Σ p² + Σ g² + smooth), averaged over the batch and all classes.

    p is the softmax of the logits, at least in single precision, and g the one-hot mask. The sums run over the pixels
    of one sample and class, so a small object weighs as much as a large one; the background is a class like any other.
    Squares in the denominator follow V-Net (https://arxiv.org/abs/1606.04797). `smooth` makes the loss of a class that
    is absent from mask and prediction 0, and that of a sample without valid pixels. At 1 it drives an absent class
    out of the prediction, which is right for true masks; near 0 it leaves that class alone, which pseudo-labels need.
    """
    valid = mask != ignore_index
    p = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    p = p * valid.unsqueeze(1)
    g = F.one_hot(mask * valid, num_classes=logits.shape[1]).movedim(-1, 1) * valid.unsqueeze(1)
    overlap = (p * g).flatten(2).sum(-1)
    total = (p.square() + g).flatten(2).sum(-1)  # g² = g
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def dice_ce(logits: Tensor, mask: Tensor, ignore_index: int = -1, smooth: float = 1.0) -> Tensor:
    """Return the mean of cross entropy and soft Dice, the supervised loss of SSL4MIS and the papers built on it."""
    return 0.5 * (cross_entropy(logits, mask, ignore_index) + soft_dice(logits, mask, ignore_index, smooth))
