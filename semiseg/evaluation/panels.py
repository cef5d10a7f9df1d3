"""Pictures a person can look at: masks drawn over images, side by side."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from semiseg.files import atomic_path

Array = NDArray[Any]
Picture = NDArray[np.uint8]

# Okabe and Ito's colours, told apart with any common colour blindness; classes beyond the seventh start over.
COLOURS: Picture = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178)],
    dtype=np.uint8,
)
PAPER, INK = 24, 235
MIN_HEIGHT = 192
GAP = 6


def overlay(image: Array, mask: Array, alpha: float = 0.2, contour: bool = True) -> Picture:
    """Draw the classes of ``mask`` (H, W) over a grey (H, W) or RGB (H, W, 3) image.

    Args:
        image: uint8, shown as it is, or any other type, scaled from its 1st to its 99th percentile.
        mask: Integer class map; 0 is the background and stays clear.
        alpha: Opacity of the fill.
        contour: Whether to draw the outermost pixels of every region opaquely.
    """
    picture = _to_rgb(image).astype(np.float32)
    mask = np.asarray(mask).astype(np.int64)
    opacity = np.where(mask > 0, alpha, 0.0)
    if contour:
        height, width = mask.shape
        around = np.pad(mask, 1)
        moved = [around[y : y + height, x : x + width] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))]
        opacity[(mask > 0) & np.any([neighbour != mask for neighbour in moved], axis=0)] = 1.0
    colour = COLOURS[(mask - 1) % len(COLOURS)]
    picture += opacity[..., None] * (colour - picture)
    return picture.round().astype(np.uint8)


def case_panel(image: Array, target: Array | None, prediction: Array | None, title: str) -> Picture:
    """Show image, target and prediction of one case side by side under a title.

    A volume is shown by one slice along its last axis: the one where target or prediction cover the largest area.

    Args:
        image: (C, H, W) or (C, H, W, D); three channels of a 2D image are RGB, otherwise the first channel is shown.
        target: Class map (H, W) or (H, W, D), if there is one.
        prediction: Class map of the same shape, if there is one.
        title: Text on top.
    """
    masks = {name: mask for name, mask in (("target", target), ("prediction", prediction)) if mask is not None}
    if image.ndim == 4:
        covered = sum(((mask > 0).astype(np.int64) for mask in masks.values()), np.zeros(image.shape[1:], np.int64)) > 0
        index = int(covered.sum((0, 1)).argmax()) if covered.any() else image.shape[-1] // 2
        image, masks = image[:1, ..., index], {name: mask[..., index] for name, mask in masks.items()}
    background = _background(image)
    tiles = {"image": background} | {name: overlay(background, _enlarge(mask)) for name, mask in masks.items()}
    return _titled(tiles, title)


def step_panel(image: Array, maps: Mapping[str, Array], title: str) -> Picture:
    """Show an image of a training step and what the method made of it side by side under a title.

    A volume is shown by its middle slice along the last axis.

    Args:
        image: (C, H, W) or (C, H, W, D).
        maps: by name, each of the image's spatial size: class maps (integer) and masks (boolean) are laid over the
            image, others are shown in grey, white being their maximum, which stands beside the name. What has channels
            like the image is shown as one, in its grey levels or colours.
        title: Text on top.
    """
    if image.ndim == 4:
        middle = image.shape[-1] // 2
        image, maps = image[:1, ..., middle], {name: values[..., middle] for name, values in maps.items()}
    background = _background(image)
    tiles = {"image": background}
    for name, values in maps.items():
        if values.ndim == image.ndim:
            tiles[name] = _background(values[: len(image)], image)
        elif np.issubdtype(values.dtype, np.floating):
            top = float(values.max())
            grey = (np.clip(values / max(top, 1e-12), 0, 1) * 255).astype(np.uint8)
            tiles[f"{name}, 0 to {top:.2g}"] = _to_rgb(_enlarge(grey))
        else:
            tiles[name] = overlay(background, _enlarge(values), alpha=0.4, contour=False)
    return _titled(tiles, title)


def _background(image: Array, like: Array | None = None) -> Picture:
    """A 2D image (C, H, W), RGB if it has three channels, else its first one, large enough to look at."""
    return _enlarge(_to_rgb(np.moveaxis(image, 0, -1) if len(image) == 3 else image[0], like))


def _titled(tiles: Mapping[str, Picture], title: str) -> Picture:
    """Pictures of one size in a row, each under its name, all under a title."""
    width_of_one = next(iter(tiles.values())).shape[1]
    font, small = ImageFont.load_default(16), ImageFont.load_default(12)
    row = contact_sheet(list(tiles.values()), columns=len(tiles))
    header = 44
    width = max(row.shape[1], int(font.getlength(title)) + 2 * GAP)
    canvas = Image.new("RGB", (width, header + row.shape[0]), (PAPER,) * 3)
    canvas.paste(Image.fromarray(row), (0, header))
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 4), title, fill=(INK,) * 3, font=font)
    for position, name in enumerate(tiles):
        draw.text((GAP + position * (width_of_one + GAP), header - 16), name, fill=(INK,) * 3, font=small)
    return np.array(canvas)


def contact_sheet(panels: Sequence[Picture], columns: int) -> Picture:
    """Lay pictures out in a grid, row by row, every cell as large as the largest picture."""
    height, width = (max(panel.shape[axis] for panel in panels) + GAP for axis in (0, 1))
    columns = min(columns, len(panels))
    sheet = np.full((GAP + -(-len(panels) // columns) * height, GAP + columns * width, 3), PAPER, dtype=np.uint8)
    for position, panel in enumerate(panels):
        top, left = GAP + position // columns * height, GAP + position % columns * width
        sheet[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return sheet


def save_png(array: Picture, path: Path | str) -> None:
    """Write a picture; a reader never sees a half-written file."""
    with atomic_path(Path(path)) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def show(trainer: Trainer, picture: Picture, folder: Path, name: str) -> None:
    """Save a picture of a run in `folder` and log it on W&B."""
    folder.mkdir(exist_ok=True)
    save_png(picture, folder / f"{name}.png")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            with contextlib.suppress(Exception):  # a lost connection must not stop a run
                logger.log_image(f"figures/{name}", [picture])


def _to_rgb(image: Array, like: Array | None = None) -> Picture:
    if image.dtype != np.uint8:
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = values if like is None else np.nan_to_num(np.asarray(like, dtype=np.float64))
        low, high = np.percentile(scale, (1, 99))
        if high <= low:  # nearly constant: the few other pixels are the picture
            low, high = scale.min(), scale.max()
        image = (np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _enlarge(picture: Array) -> Array:
    factor = max(1, -(-MIN_HEIGHT // picture.shape[0]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
