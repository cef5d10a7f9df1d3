"""Losses as pure functions of logits (B, K, *S) or probabilities and a mask (B, *S)."""

from semiseg.losses.consistency import entropy, masked_mean, probabilities, sharpened, squared_error
from semiseg.losses.segmentation import cross_entropy, dice_ce, soft_dice

__all__ = [
    "cross_entropy",
    "dice_ce",
    "entropy",
    "masked_mean",
    "probabilities",
    "sharpened",
    "soft_dice",
    "squared_error",
]
