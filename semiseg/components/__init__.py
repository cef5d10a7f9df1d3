"""Pieces that two methods or more share, each with a test of its own."""

from semiseg.components.schedules import Constant, WarmupHalving, WarmupPoly

__all__ = ["Constant", "WarmupHalving", "WarmupPoly"]
