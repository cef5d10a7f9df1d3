"""Synthetic biomedical scenes in 2D and 3D, each a pure function of ``(seed, index)``.

A scene holds deformed blobs of every foreground class on a textured background, and *distractors*: blobs of the same
shape and colour as a class but without its texture, which count as background. Colour and contrast of a class change
from scene to scene while its texture stays, so that a few scenes do not tell what a class looks like, and many do.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.95, 0.30]])  # optical density per unit: nuclear and plasma stain


def scene_2d(
    seed: int, index: int, size: tuple[int, int] = (128, 128), num_classes: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a stained-tissue scene.

    Args:
        seed: Seed of the set; different seeds give unrelated sets.
        index: Number of the scene in its set.
        size: Height and width.
        num_classes: Number of classes, background included; at least 2.

    Returns:
        The RGB image ``(H, W, 3)`` and the mask ``(H, W)`` of class indices.
    """
    rng = np.random.default_rng([seed, index, 2, num_classes, *size])
    kind, depth = _arrange(rng, size, num_classes)
    hue = 0.6 + 2 * np.pi * np.arange(num_classes - 1) / (num_classes - 1) + rng.normal(0, 0.8, num_classes - 1)
    shifts = rng.uniform(0.18, 0.45, num_classes - 1) * np.stack([np.cos(hue), np.sin(hue)])
    density = _paint(rng, kind, depth, shifts)
    stains = np.abs(STAINS + rng.normal(0, 0.15, STAINS.shape))
    light = rng.uniform(0.85, 1.0) * (1 + 0.12 * _noise(rng, size, max(size) / 3))
    image = light[..., None] * np.exp(-np.einsum("chw,cr->hwr", density.clip(0), stains))
    image = ndimage.gaussian_filter(image, (*[rng.uniform(0.3, 0.8)] * 2, 0))
    image += rng.normal(0, rng.uniform(0.01, 0.035), image.shape)
    return (255 * image.clip(0, 1)).round().astype(np.uint8), kind.clip(0).astype(np.uint8)


def scene_3d(
    seed: int, index: int, size: tuple[int, int, int] = (48, 48, 32), num_classes: int = 2
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw an MR-like scene: one channel, a bias field, an arbitrary intensity scale.

    Args:
        seed: Seed of the set; different seeds give unrelated sets.
        index: Number of the scene in its set.
        size: Extent along x, y and z.
        num_classes: Number of classes, background included; at least 2.

    Returns:
        The volume ``(X, Y, Z)`` and the mask ``(X, Y, Z)`` of class indices.
    """
    rng = np.random.default_rng([seed, index, 3, num_classes, *size])
    kind, depth = _arrange(rng, size, num_classes)
    step = np.arange(num_classes - 1)  # brighter, darker, much brighter, much darker, ...
    shifts = (0.32 + 0.25 * (step // 2)) * np.where(step % 2, -1, 1) * rng.uniform(0.6, 1.4, num_classes - 1)
    signal = _paint(rng, kind, depth, shifts[None])[0] * (1 + 0.15 * _noise(rng, size, max(size) / 3))
    signal = ndimage.gaussian_filter(signal, rng.uniform(0.3, 0.6))
    noise = rng.normal(0, rng.uniform(0.03, 0.08), (2, *size))
    volume = rng.uniform(200, 600) * np.hypot(signal.clip(0) + noise[0], noise[1])  # magnitude image: Rician noise
    return volume.astype(np.float32), kind.clip(0).astype(np.uint8)


def _arrange(rng: np.random.Generator, shape: tuple[int, ...], num_classes: int) -> tuple[NDArray[np.int64], Array]:
    """Place the blobs.

    Returns:
        The kind of every pixel (0 background, k class k, -k distractor of class k) and its depth, which is 0 on the
        border of its blob and 1 in the middle.
    """
    classes = np.arange(1, num_classes)
    copies = max(1, 4 // num_classes)
    wanted = np.concatenate([np.repeat(classes, rng.integers(copies, copies + 2)), rng.permutation(classes)[:2]])
    decoys = -rng.choice(classes, rng.integers(2, 5))
    blobs = np.concatenate([decoys, rng.permutation(wanted)])  # classes lie over distractors
    extent = np.array(shape)
    radius = 0.42 * (extent.prod() / len(blobs)) ** (1 / len(shape))
    grid, kind, depth = np.indices(shape), np.zeros(shape, np.int64), np.zeros(shape)
    centres = np.empty((0, len(shape)))
    for blob in blobs:
        options = extent * rng.uniform(0.1, 0.9, (rng.choice([2, 12]), len(shape)))  # few options: blobs may touch
        gaps = np.linalg.norm(options[:, None] - centres, axis=-1).min(axis=1, initial=extent.max())
        centre = options[gaps.argmax()]
        centres = np.vstack([centres, centre])
        size = radius * rng.uniform(0.75, 1.25)
        window = tuple(slice(max(int(c - 1.75 * size), 0), int(c + 1.75 * size) + 2) for c in centre)
        inside = _blob(rng, grid[(slice(None), *window)], centre, size)
        kind[window][inside > 0] = blob
        depth[window][inside > 0] = inside[inside > 0]
    return kind, depth


def _blob(rng: np.random.Generator, grid: NDArray[np.int64], centre: Array, radius: float) -> Array:
    """Return how deep the pixels of a grid lie in a randomly turned ellipsoid with a wavy surface; negative outside."""
    dims = len(grid)
    turn, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    axes = radius * rng.uniform(0.75, 1.3, dims)
    offset = grid.reshape(dims, -1) - centre[:, None]
    local = turn @ offset / axes[:, None]
    distance = np.linalg.norm(local, axis=0)
    waves = rng.normal(0, 2.2, (3, dims)) @ (local / (distance + 1e-6))
    surface = 1 + 0.11 * np.cos(waves + rng.uniform(0, 2 * np.pi, (3, 1))).sum(axis=0)
    return np.asarray((surface - distance).reshape(grid.shape[1:]))


def _paint(rng: np.random.Generator, kind: NDArray[np.int64], depth: Array, shifts: Array) -> Array:
    """Colour the channels: class ``k`` and its distractors lie ``shifts[:, k - 1]`` above the background."""
    shape, channels = kind.shape, len(shifts)
    column = (channels, *[1] * len(shape))
    cloud = np.stack([sum(0.05 * _noise(rng, shape, scale) for scale in (0.8, 2.0, 6.0)) for _ in shifts])
    colour = np.zeros((channels, *shape))
    for label, shift in enumerate(shifts.T, start=1):
        contrast = rng.uniform(0.1, 0.2, column)
        surface = np.where(kind > 0, _texture(rng, shape, label), _noise(rng, shape, 5.0))
        colour = np.where(np.abs(kind) == label, shift.reshape(column) + contrast * surface, colour)
    rim = rng.uniform(-0.1, 0.3, column) * np.where(kind, np.exp(-((depth / 0.12) ** 2)), 0)
    return np.asarray(rng.uniform(0.55, 0.85, column) + cloud + colour + rim)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], label: int) -> Array:
    """Return the texture of a class: grains for odd classes, fibres for even ones, coarser as the index grows."""
    coarser = 1.5 ** ((label - 1) // 2)
    if label % 2:
        return np.asarray(np.tanh(3 * _noise(rng, shape, 1.1 * coarser) - 1))
    direction = rng.normal(size=len(shape))
    along = np.tensordot(direction / np.linalg.norm(direction), np.indices(shape), axes=1)
    return np.asarray(np.sin(2 * np.pi * along / (4.5 * coarser) + 1.5 * _noise(rng, shape, 6.0)))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Array:
    """Return Gaussian noise of unit variance, smooth over ``scale`` pixels (any scale costs the same)."""
    spectrum = ndimage.fourier_gaussian(np.fft.rfftn(rng.normal(size=shape)), scale, n=shape[-1])
    spectrum.flat[0] = 0
    field = np.fft.irfftn(spectrum, s=shape, axes=range(len(shape)))
    return np.asarray(field / field.std())
