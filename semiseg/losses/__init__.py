"""Losses as pure functions of logits (B, K, *S) and a mask (B, *S)."""

from semiseg.losses.segmentation import cross_entropy, dice_ce, soft_dice

__all__ = ["cross_entropy", "dice_ce", "soft_dice"]
