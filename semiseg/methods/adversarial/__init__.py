"""Methods with a discriminator."""

from semiseg.methods.adversarial.advent import ADVENT

__all__ = ["ADVENT"]
