"""Figures of what Hebbian pretraining learns: filters, curves and the latent space of the paper's figure A.8."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from semiseg.evaluation.panels import COLOURS, Picture
from semiseg.evaluation.plots import figure, pixels

QUANTITIES = {
    "cosine": "cosine of neurons to their start",
    "norm": "norm of raw neurons",
    "similarity": "similarity of neurons (duplicates)",
    "entropy": "entropy of the gate (0 hard, 1 flat)",
    "usage": "share of units in use",
}
TRACKED, FILTERS = 10, 64  # shown at most


def filters_figure(stages: dict[str, Tensor]) -> Picture:
    """Titles and weights (units, C, *K) of one layer, side by side, each filter scaled to its own range.

    Three channels of a 2D layer are RGB, otherwise their mean is grey; of a volume the middle slice is shown.
    """
    drawing = figure(4 * len(stages), 4.3)
    for axes, (title, weight) in zip(drawing.subplots(1, len(stages), squeeze=False)[0], stages.items(), strict=True):
        tiles = weight[:FILTERS].float()
        tiles = tiles[..., tiles.shape[-1] // 2] if tiles.ndim == 5 else tiles
        tiles = tiles if weight.ndim == 4 and tiles.shape[1] == 3 else tiles.mean(1, keepdim=True)
        low, high = tiles.amin((1, 2, 3), keepdim=True), tiles.amax((1, 2, 3), keepdim=True)
        tiles = ((tiles - low) / (high - low).clamp_min(1e-12)).expand(-1, 3, -1, -1)
        rows = math.isqrt(len(tiles))
        columns = -(-len(tiles) // rows)
        tiles = F.pad(F.interpolate(tiles, scale_factor=8.0), (0, 2, 0, 2), value=1.0)  # white lines between them
        tiles = torch.cat([tiles, tiles.new_ones(rows * columns - len(tiles), *tiles.shape[1:])])
        height, width = tiles.shape[2:]
        sheet = tiles.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
        axes.imshow(sheet.reshape(rows * height, columns * width, 3)[:-2, :-2].numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return pixels(drawing)


def learning_figure(curves: list[dict[str, float]]) -> Picture:
    """A panel per quantity over the steps, a line per layer, coloured from the first (dark) to the last."""
    from matplotlib import colormaps

    quantities = [quantity for quantity in QUANTITIES if f"hebbian/{quantity}" in curves[0]]
    layers = [name.partition("/")[2] for name in curves[0] if name.startswith("norm/")]
    columns = (len(quantities) + 2) // 2
    drawing = figure(4.2 * columns, 6.4)
    panels = drawing.subplots(2, columns).flat
    steps = [record["step"] for record in curves]
    for axes, quantity in zip(panels, quantities, strict=False):
        for layer, colour in zip(layers, colormaps["viridis"](np.linspace(0, 0.95, len(layers))), strict=True):
            values = [record.get(f"{quantity}/{layer}", math.nan) for record in curves]
            axes.plot(steps, values, color=colour, linewidth=1.2, marker=".", markersize=3, label=layer)
        axes.plot(steps, [record[f"hebbian/{quantity}"] for record in curves], "k--", linewidth=1.6, label="mean")
        axes.set_title(QUANTITIES[quantity], fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step", fontsize=8)
    handles, names = panels[0].get_legend_handles_labels()
    for axes in panels[len(quantities) :]:
        axes.set_axis_off()
    panels[len(quantities)].legend(handles, names, fontsize=7, ncols=1 + len(layers) // 16, loc="center", frameon=False)
    return pixels(drawing)


def latent_figure(stages: list[dict[str, Any]]) -> Picture:
    """A panel per stage: patches (blue) and weights (orange, with their path) on two principal components of all."""
    blue, orange = (COLOURS[i] / 255 for i in (6, 4))
    patches = np.concatenate([stage["patches"].numpy() for stage in stages])
    centre = patches.mean(0)
    *_, components = np.linalg.svd(patches - centre, full_matrices=False)
    plane = np.concatenate([components, np.zeros((2, len(centre)))])[:2].T  # zeros where there is but one component
    dots, arrows = ([(stage[kind].numpy() - centre) @ plane for stage in stages] for kind in ("patches", "vectors"))
    drawing = figure(4.6 * len(stages), 4.6)
    for i, axes in enumerate(drawing.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0]):
        axes.scatter(*dots[i].T, s=6, color=blue, alpha=0.35, linewidths=0, label="patches")
        for j in range(i):
            path = np.stack([arrows[j], arrows[j + 1]])[:, :TRACKED]
            axes.plot(*path.transpose(2, 0, 1), color=orange, linewidth=0.8, alpha=0.6)
        axes.scatter(*arrows[i][TRACKED:].T, s=6, color=orange, linewidths=0, label="weights")
        axes.scatter(*arrows[i][:TRACKED].T, s=36, color=orange, edgecolors="black", linewidths=0.7, label="tracked")
        axes.set_title(f"step {stages[i]['step']}", fontsize=10)
        axes.tick_params(labelsize=7)
    drawing.axes[0].legend(fontsize=8)
    drawing.axes[0].set_ylabel("component 2", fontsize=8)
    drawing.supxlabel("component 1", fontsize=8)
    return pixels(drawing)
