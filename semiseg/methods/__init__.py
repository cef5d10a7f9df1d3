"""Methods: one paper, one file, one LightningModule each."""

from semiseg.methods.base import Method, PretrainingMethod, SegmentationMethod
from semiseg.methods.linear_probe import LinearProbe
from semiseg.methods.pretraining import HebbianPretrain
from semiseg.methods.supervised import Supervised

__all__ = ["HebbianPretrain", "LinearProbe", "Method", "PretrainingMethod", "SegmentationMethod", "Supervised"]
