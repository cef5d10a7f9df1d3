"""From file to network and back."""

import io

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from semiseg.data.io import Image
from semiseg.data.preprocessing import Preprocessing, resize, resize_classes, resize_logits
from semiseg.errors import UserError


def rules(dims=2, channels=1, **options):
    return Preprocessing(dims, channels, ("background", "foreground"), (0, 255), **options)


def image(array, spacing=None):
    return Image(array, spacing or (1.0,) * (array.ndim - 1), ".png", lambda classes, path: None)


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def test_grey_becomes_rgb_by_repetition():
    prepared = rules(channels=3).prepare(image(noise(1, 6, 7)))
    assert (prepared.shape, prepared.dtype) == ((3, 6, 7), np.uint8)
    assert (prepared == noise(1, 6, 7)).all()


def test_rgb_becomes_grey_as_pillow_does_it():
    picture = noise(6, 7, 3)
    prepared = rules().prepare(image(np.moveaxis(picture, -1, 0)))
    expected = np.asarray(Pillow.fromarray(picture).convert("L")).astype(int)
    assert prepared.dtype == np.uint8
    assert np.abs(prepared[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("has", "wants"), [(2, 1), (2, 3), (3, 4), (4, 3)])
def test_other_channels_are_refused(has, wants):
    with pytest.raises(UserError, match=f"{has} channels where {wants}"):
        rules(channels=wants).prepare(image(noise(has, 6, 6)))


@pytest.mark.parametrize("size", [(8, 12), (33, 20), (50, 17), (20, 30)])
def test_pictures_are_resized_as_pillow_does_it(size):
    picture = noise(20, 30)
    prepared = rules(image_size=size).prepare(image(picture[None]))
    expected = np.asarray(Pillow.fromarray(picture).resize(size[::-1], Pillow.Resampling.BILINEAR)).astype(int)
    assert (prepared.shape, prepared.dtype) == ((1, *size), np.uint8)
    assert np.abs(prepared[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32])
def test_deep_pictures_keep_their_range(dtype):
    deep = noise(1, 20, 30, dtype=dtype) * 100
    prepared = rules(image_size=(10, 10)).prepare(image(deep))
    assert prepared.dtype == np.float32
    assert prepared.max() > 10_000
    np.testing.assert_array_equal(rules().prepare(image(deep)), deep)


def test_volumes_are_resampled_as_torch_does_it_and_standardised_per_channel():
    volume = noise(2, 12, 10, 8, dtype=np.float32) * np.array([1, 50], np.float32).reshape(2, 1, 1, 1)
    rule = rules(3, 2, spacing=(2.0, 1.0, 0.5))
    prepared = rule.prepare(image(volume, (1.0, 1.0, 1.0)))
    assert (prepared.shape, prepared.dtype) == ((2, 6, 10, 16), np.float16)
    expected = torch.nn.functional.interpolate(torch.from_numpy(volume)[None], (6, 10, 16), mode="trilinear")[0]
    for channel, reference in zip(prepared, expected, strict=True):
        assert channel.astype(np.float32).mean() == pytest.approx(0, abs=1e-3)
        assert channel.astype(np.float32).std() == pytest.approx(1, abs=1e-3)
        assert np.corrcoef(channel.ravel(), reference.ravel())[0, 1] > 0.9999
    assert (rule.normalise(prepared).numpy() == prepared).all()


def test_volumes_of_any_intensity_scale_look_alike_and_constant_ones_stay_finite():
    volume = noise(1, 8, 8, 8, dtype=np.float32)
    one, other = (rules(3).prepare(image(v)) for v in (volume, 1e4 * volume + 1e5))
    np.testing.assert_allclose(one, other, atol=5e-3)
    assert (rules(3).prepare(image(np.full((1, 4, 4, 4), 7.0))) == 0).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (20, 10, 5)),
        ({"image_size": (8, 8, 8)}, (8, 8, 8)),
        ({"spacing": (1, 1, 1)}, (10, 10, 15)),
        ({"spacing": (100, 1, 3)}, (1, 10, 5)),
        ({"patch_size": (4, 4, 4)}, (20, 10, 5)),
    ],
)
def test_grid(options, expected):
    assert rules(3, **options).grid(image(np.zeros((1, 20, 10, 5)), (0.5, 1.0, 3.0))) == expected


def test_normalisation_with_the_training_sets_mean_and_deviation():
    rule = rules(channels=3, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    picture = noise(3, 6, 7)
    expected = (picture - np.array([10, 20, 30]).reshape(3, 1, 1)) / np.array([2, 4, 5]).reshape(3, 1, 1)
    result = rule.normalise(rule.prepare(image(picture)))
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)


def test_class_maps_are_resized_without_new_classes_as_pillow_does_it():
    classes = np.kron(np.array([[0, 1, 2], [3, 0, 1]], np.uint8), np.ones((8, 8), np.uint8))
    for size in ((8, 12), (32, 48), (11, 19)):
        expected = np.asarray(Pillow.fromarray(classes).resize(size[::-1], Pillow.Resampling.NEAREST))
        assert (resize_classes(classes, size) == expected).mean() > 0.99
    volume = np.zeros((4, 4, 4), np.uint8)
    volume[2:] = 3
    resized = resize_classes(volume, (8, 2, 4))
    assert (resized.shape, resized.dtype) == ((8, 2, 4), np.uint8)
    assert (resized[4:] == 3).all()
    assert (resized[:4] == 0).all()


def test_image_and_mask_stay_aligned_when_resized():
    """A half-plane's border lies at the same place in both: the two conventions of sampling agree."""
    classes = np.zeros((60, 60), np.uint8)
    classes[:, 30:] = 1
    for size in ((24, 24), (90, 90)):
        picture = resize(classes[None].astype(np.float32), size)[0]
        assert ((picture > 0.5) == (resize_classes(classes, size) > 0)).all()


def test_no_resizing_is_no_change():
    logits = torch.randn(1, 2, 5, 6)
    assert resize_logits(logits, (5, 6)) is logits
    assert resize_logits(logits, (10, 12)).shape == (1, 2, 10, 12)
    assert resize_logits(torch.randn(1, 2, 4, 4, 4), (8, 8, 2)).shape == (1, 2, 8, 8, 2)


def test_dict_round_trip_through_a_checkpoint():
    rule = Preprocessing(
        3, 1, ("background", "a", "b"), ((0, 0, 0), (255, 0, 0), (0, 9, 0)), patch_size=(8, 8, 8),
        spacing=(1.0, 1.0, 2.5), mean=(1.5,), std=(2.0,), h5_axes="zyx", h5_spacing=(0.625,) * 3,
    )  # fmt: skip
    file = io.BytesIO()
    torch.save(rule.to_dict(), file)
    file.seek(0)
    assert Preprocessing.from_dict(torch.load(file, weights_only=True)) == rule


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_volumes_with_values_that_are_no_numbers_are_refused(tmp_path, value):
    volume = np.ones((5, 5, 5), np.float32)
    volume[1, 2, 3] = value
    path = tmp_path / "volume.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    with pytest.raises(UserError, match=r"volume.nii.gz: .*NaN"):
        rules(3).read(path)


def test_a_picture_is_no_volume_and_the_other_way_round(tmp_path):
    Pillow.fromarray(noise(8, 8)).save(tmp_path / "picture.png")
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.float32), np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(UserError, match=r"picture.png: is a 2D image; 3D"):
        rules(3).read(tmp_path / "picture.png")
    with pytest.raises(UserError, match=r"volume.nii: is a 3D image; 2D"):
        rules(2).read(tmp_path / "volume.nii")


def test_a_picture_is_what_was_normalised() -> None:
    prepared = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    colours = rules(2, 3, mean=(200.0, 100.0, 50.0), std=(10.0, 60.0, 30.0))
    assert np.allclose(colours.picture(colours.normalise(prepared)), prepared, atol=1e-3)
    assert rules(3).picture(torch.full((1, 2, 3, 4), 0.5)).max() == 0.5
