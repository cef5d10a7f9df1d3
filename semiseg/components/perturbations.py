"""Random changes of images and features that a segmentation should survive.

All draw from torch's global generator, for the whole batch or for each image's place in it (`semiseg.whole_batch`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semiseg import whole_batch


def noisy(image: Tensor, std: float = 0.1, limit: float = 0.2) -> Tensor:
    """Image (B, C, *S) plus normal noise, cut at `limit`: the perturbation of UA-MT and SSL4MIS."""
    return image + (whole_batch.each(torch.randn_like, image) * std).clamp_(-limit, limit)


def strong_view(image: Tensor, strength: float = 0.5, probability: float = 0.8, blur: float = 0.5) -> Tensor:
    """Strongly changed intensities of images (B, C, *S); every pixel stays where it is.

    Contrast and brightness (in standard deviations of the image) of each image change by up to `strength` with
    `probability`, and with probability `blur` it is smoothed by a Gaussian with a standard deviation of 0.1 to 2
    pixels. These are UniMatch's numbers (colour jitter 0.5, p 0.8; blur p 0.5) for images that need not have colours.
    """
    samples, axes = len(image), tuple(range(1, image.ndim))
    one_each = image.new_empty(samples, *[1] * len(axes))

    def uniform(low: float, high: float) -> Tensor:
        return whole_batch.each(lambda empty: torch.empty_like(empty).uniform_(low, high), one_each)

    mean, std = image.mean(axes, keepdim=True), image.std(axes, keepdim=True)
    jittered = mean + (image - mean) * (1 + uniform(-strength, strength)) + std * uniform(-strength, strength)
    image = torch.where(uniform(0, 1) < probability, jittered, image)
    return torch.where(uniform(0, 1) < blur, smoothed(image, uniform(0.1, 2.0).flatten()), image)


def smoothed(image: Tensor, sigma: Tensor, radius: int = 4) -> Tensor:
    """Images (B, C, *S) under a Gaussian of standard deviation `sigma` (B,) in pixels; the border is repeated."""
    samples, channels = image.shape[:2]
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    dims = image.ndim - 2
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    rows = image.reshape(1, samples * channels, *image.shape[2:])
    with torch.autocast(image.device.type, enabled=False):  # half precision would round the image
        for axis in range(dims):
            pad = [0, 0] * dims
            pad[2 * (dims - 1 - axis)] = pad[2 * (dims - 1 - axis) + 1] = radius
            along = kernel.view(-1, 1, *[2 * radius + 1 if other == axis else 1 for other in range(dims)])
            rows = convolve(F.pad(rows, pad, mode="replicate"), along, groups=samples * channels)
    return rows.view_as(image)


class FeatureNoise(nn.Module):
    """Multiply features (B, C, *S) by 1 + U(-limit, limit), the same for all of a batch (CCT: 0.3)."""

    def __init__(self, limit: float = 0.3) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, features: Tensor) -> Tensor:
        """Perturbed features; in evaluation mode the features."""
        if not self.training:
            return features
        with whole_batch.drawn_alike():
            noise = torch.empty_like(features[0]).uniform_(-self.limit, self.limit)
        return features * (1 + noise)


class FeatureDrop(nn.Module):
    """Set features (B, C, *S) to zero where their mean over channels is highest: above U(low, high) of its maximum.

    CCT's numbers: 0.7 and 0.9.
    """

    def __init__(self, low: float = 0.7, high: float = 0.9) -> None:
        super().__init__()
        self.low = low
        self.high = high

    def forward(self, features: Tensor) -> Tensor:
        """Perturbed features; in evaluation mode the features."""
        if not self.training:
            return features
        attention = features.mean(1, keepdim=True)
        threshold = attention.flatten(1).amax(1).view(-1, *[1] * (features.ndim - 1))
        with whole_batch.drawn_alike():
            share = torch.empty((), device=features.device).uniform_(self.low, self.high)
        return features * (attention < threshold * share)


class FeatureDropout(nn.Module):
    """Dropout of features (B, C, *S) as a perturbation: like noise, it depends on an image's place in the whole batch.

    Dropout inside a network is each process's own, which needs no draws for the images of others.

    Args:
        dropout: `nn.Dropout`, or `nn.Dropout2d` and `nn.Dropout3d`, which drop whole channels.
    """

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Perturbed features; in evaluation mode the features."""
        if not self.training or whole_batch.world_size() == 1:
            dropped: Tensor = self.dropout(features)
            return dropped
        return features * whole_batch.each(self.dropout, torch.ones_like(features))
