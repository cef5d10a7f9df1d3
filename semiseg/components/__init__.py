"""Pieces that two methods or more share, each with a test of its own."""

from semiseg.components.ramps import ConstantWeight, LinearRamp, SigmoidRamp
from semiseg.components.schedules import Constant, WarmupHalving, WarmupPoly

__all__ = ["Constant", "ConstantWeight", "LinearRamp", "SigmoidRamp", "WarmupHalving", "WarmupPoly"]
