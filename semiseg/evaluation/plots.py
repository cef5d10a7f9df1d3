"""Figures of matplotlib as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semiseg.evaluation.panels import Picture

if TYPE_CHECKING:  # importing matplotlib takes half a second: it is done where a figure is drawn
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> Figure:
    """A figure that pyplot, and with it a screen, knows nothing of; in inches."""
    from matplotlib.figure import Figure

    empty = Figure((width, height), dpi=96)
    empty.set_layout_engine("constrained", wspace=0.05)
    return empty


def pixels(figure: Figure) -> Picture:
    """The drawn figure (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
