"""First stages: methods that learn from images alone and give a network to start from."""

from semiseg.methods.pretraining.hebbian import HebbianPretrain

__all__ = ["HebbianPretrain"]
