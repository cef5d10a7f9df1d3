"""Methods: one paper, one file, one LightningModule each."""

from semiseg.methods.base import SegmentationMethod
from semiseg.methods.supervised import Supervised

__all__ = ["SegmentationMethod", "Supervised"]
