"""Panels: shapes, scaling, and that the colours of the classes are where they belong."""

import numpy as np
import pytest
from PIL import Image

from semiseg.evaluation.panels import COLOURS, MIN_HEIGHT, case_panel, contact_sheet, overlay, save_png, step_panel


def has_colour(picture, label):
    return bool((picture == COLOURS[label - 1]).all(axis=-1).any())


@pytest.fixture
def mask():
    mask = np.zeros((32, 40), dtype=np.int64)
    mask[4:14, 4:14] = 1
    mask[20:30, 20:36] = 2
    return mask


def test_contour_and_fill(mask):
    image = np.full((32, 40), 100, dtype=np.uint8)
    picture = overlay(image, mask, alpha=0.25)
    assert picture.shape == (32, 40, 3)
    assert picture.dtype == np.uint8
    assert (picture[mask == 0] == 100).all()
    assert (picture[4, 4:14] == COLOURS[0]).all()
    assert (picture[20:30, 35] == COLOURS[1]).all()
    assert picture[8, 8] == pytest.approx(100 + 0.25 * (COLOURS[0] - 100.0), abs=0.5)
    assert not has_colour(overlay(image, mask, alpha=0.25, contour=False), 1)


def test_border_and_touching_classes_are_outlined():
    mask = np.ones((6, 6), dtype=np.uint8)
    mask[:, 3:] = 2
    picture = overlay(np.zeros((6, 6), dtype=np.uint8), mask, alpha=0)
    outlined = picture.any(axis=-1)
    assert outlined[0].all()
    assert outlined[:, 2:4].all()
    assert not outlined[1:-1, 1].any()


def test_scaling_is_robust():
    image = np.random.default_rng(0).normal(1000, 50, (64, 64))
    image[0, 0] = 1e9
    image[1, 1] = np.nan
    picture = overlay(image, np.zeros((64, 64), dtype=int))
    assert picture.std() > 40
    assert (overlay(np.full((8, 8), 3.0), np.zeros((8, 8), dtype=int)) == 0).all()
    rgb = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert (overlay(rgb, np.zeros((8, 8), dtype=int)) == rgb).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_case_panel_2d(mask, channels):
    image = np.random.default_rng(0).random((channels, *mask.shape)).astype(np.float32)
    both = case_panel(image, mask, mask * (mask == 1), "case")
    alone = case_panel(image, None, None, "case")
    assert both.dtype == np.uint8
    assert both.shape[2] == 3
    assert both.shape[0] >= MIN_HEIGHT
    third = both.shape[1] // 3
    tiles = [both[:, position * third : (position + 1) * third] for position in range(3)]
    assert [has_colour(tile, 1) for tile in tiles] == [False, True, True]
    assert [has_colour(tile, 2) for tile in tiles] == [False, True, False]
    assert alone.shape[1] < both.shape[1]
    assert not has_colour(alone, 1)


def test_case_panel_3d_shows_the_largest_slice():
    target = np.zeros((16, 16, 6), dtype=np.int64)
    target[4:6, 4:6, 1] = 1
    prediction = np.zeros_like(target)
    prediction[2:12, 2:12, 4] = 2
    panel = case_panel(np.zeros((1, 16, 16, 6)), target, prediction, "volume")
    assert has_colour(panel, 2)
    assert not has_colour(panel, 1)
    assert not has_colour(case_panel(np.zeros((1, 16, 16, 6)), None, None, "volume"), 1)


def test_long_title_is_not_cut():
    image = np.zeros((1, 200, 20))
    assert (
        case_panel(image, None, None, "a very long title " * 4).shape[1] > case_panel(image, None, None, "x").shape[1]
    )


def test_contact_sheet():
    panels = [np.full((10 + index, 20, 3), 50 * index + 40, dtype=np.uint8) for index in range(5)]
    sheet = contact_sheet(panels, columns=2)
    assert sheet.shape[0] > 3 * 14
    assert 2 * 20 < sheet.shape[1] < 3 * 20
    for panel in panels:
        assert (sheet == panel[0, 0]).all(axis=-1).sum() == panel.shape[0] * panel.shape[1]
    assert contact_sheet(panels[:1], columns=4).shape[1] < 40


def test_save_png(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    save_png(picture, tmp_path / "panel.png")
    assert (np.array(Image.open(tmp_path / "panel.png")) == picture).all()
    assert [file.name for file in tmp_path.iterdir()] == ["panel.png"]


@pytest.mark.parametrize("shape", [(3, 32, 40), (1, 32, 40, 6)])
def test_a_step_shows_classes_masks_and_grey_maps(shape):
    rng = np.random.default_rng(0)
    label, sure, uncertainty = (np.zeros(shape[1:], kind) for kind in (np.int64, bool, np.float32))
    label[4:14, 4:14], sure[:, :20] = 2, True
    uncertainty[:] = np.linspace(0, 3, 40).reshape(40, *[1] * (len(shape) - 3))
    image = rng.normal(size=shape).astype(np.float32)
    maps = {"pseudo-label": label, "used": sure, "uncertainty": uncertainty}
    picture = step_panel(image, maps, "step 7")
    alone = step_panel(image, {}, "step 7")
    tile = alone.shape[1] - 12  # two gaps around it
    assert picture.shape == (alone.shape[0], 6 + 4 * (tile + 6), 3)
    header = alone.shape[0] - MIN_HEIGHT - 12
    tiles = [picture[header + 6 : -6, 6 + i * (tile + 6) :][:, :tile].astype(int) for i in range(4)]
    background, classes, used, grey = tiles
    factor = MIN_HEIGHT // 32
    for drawn, mask in ((classes, label), (used, sure)):
        flat = (mask if mask.ndim == 2 else mask[..., 3]).astype(bool).repeat(factor, 0).repeat(factor, 1)
        assert (drawn[~flat] == background[~flat]).all()
        assert (drawn[flat] != background[flat]).any(-1).mean() > 0.9
    assert (grey[:, :factor] == 0).all()
    assert (grey[:, -factor:] == 255).all()
