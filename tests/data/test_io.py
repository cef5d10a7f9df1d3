"""Every format in, masks out with the geometry of their image, and no failure without the file's name."""

import gzip
import os
import random
import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow

from semiseg.data.io import find_images, is_image, read_image, read_mask, stem_of, suffix_of
from semiseg.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
GREY = RGB[..., 0]
CLASSES = (GREY > 127).astype(np.uint8)
VOLUME = np.random.default_rng(1).normal(size=(7, 6, 5)).astype(np.float32)
PATTERN = np.random.default_rng(2).integers(0, 3, (7, 6, 5)).astype(np.uint8)


def oblique(order=(0, 1, 2), signs=(1, 1, 1), spacing=(0.7, 0.9, 2.5)):
    """An affine: axes exchanged and mirrored, then turned by some 15 degrees, with an offset."""
    a, b = 0.2, -0.15
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]) @ np.array(
        [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(signs) @ np.eye(3)[:, list(order)] @ np.diag(spacing)
    affine[:3, 3] = [-11.3, 42.7, 5.1]
    return affine


def orientation(affine):
    return "".join(nib.aff2axcodes(affine))


AFFINES = [
    np.diag([1.0, 1.0, 2.5, 1.0]),
    oblique(),
    oblique((1, 0, 2), (-1, -1, 1)),
    oblique((2, 0, 1), (1, -1, -1)),
    oblique((1, 2, 0), (-1, 1, 1)),
]


def itk(array, spacing=(0.7, 0.9, 2.5), origin=(3.0, -4.5, 11.25), direction=None, is_vector=False):
    volume = sitk.GetImageFromArray(array, isVector=is_vector)
    volume.SetSpacing(spacing)
    volume.SetOrigin(origin)
    if direction is not None:
        volume.SetDirection(direction)
    return volume


def turned_direction(order=(0, 1, 2), signs=(1, 1, 1)):
    return tuple((oblique(order, signs, (1, 1, 1))[:3, :3]).ravel())


# Pictures


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures(tmp_path, suffix, mode):
    stored = GREY if mode == "L" else RGB
    path = tmp_path / f"a{suffix}"
    Pillow.fromarray(stored).save(path)
    image = read_image(path)
    assert image.array.shape == ((1, 9, 13) if mode == "L" else (3, 9, 13))
    assert image.array.dtype == np.uint8
    assert image.spacing == (1.0, 1.0)
    if "jp" not in suffix:
        np.testing.assert_array_equal(image.array[0], stored if mode == "L" else stored[..., 0])
    assert image.suffix == (".tif" if "tif" in suffix else ".png")


def save_as(mode, path):
    """The same content in a Pillow mode."""
    if mode == "I;16":
        Pillow.fromarray(GREY.astype(np.uint16) * 257).save(path)
    elif mode == "F":
        Pillow.fromarray(GREY.astype(np.float32) / 255).save(path)
    elif mode == "P":
        Pillow.fromarray(RGB).quantize(256).save(path)
    else:
        source = Pillow.fromarray(RGB if mode in ("RGBA", "CMYK") else GREY)
        source.convert(mode, dither=Pillow.Dither.NONE).save(path)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels", "dtype"),
    [
        ("1", ".png", 1, np.uint8),
        ("1", ".bmp", 1, np.uint8),
        ("1", ".tif", 1, np.uint8),
        ("LA", ".png", 1, np.uint8),
        ("RGBA", ".png", 3, np.uint8),
        ("RGBA", ".tif", 3, np.uint8),
        ("P", ".png", 3, np.uint8),
        ("P", ".bmp", 3, np.uint8),
        ("CMYK", ".jpg", 3, np.uint8),
        ("CMYK", ".tif", 3, np.uint8),
        ("I;16", ".png", 1, np.uint16),
        ("I;16", ".tif", 1, np.uint16),
        ("F", ".tif", 1, np.float32),
    ],
)
def test_modes(tmp_path, mode, suffix, channels, dtype):
    path = tmp_path / f"a{suffix}"
    save_as(mode, path)
    image = read_image(path)
    assert image.array.shape == (channels, 9, 13)
    assert image.array.dtype == dtype
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(image.array, np.moveaxis(RGB, -1, 0)[:channels])
    elif mode == "1":
        np.testing.assert_array_equal(image.array[0], 255 * CLASSES)
    elif mode == "I;16":
        np.testing.assert_array_equal(image.array[0], GREY.astype(int) * 257)
    elif mode == "P":
        assert np.abs(image.array.astype(int) - np.moveaxis(RGB, -1, 0)).mean() < 12


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_in_every_mode_hold_the_values_they_were_given(tmp_path, mode, suffix):
    path = tmp_path / f"mask{suffix}"
    value = 1 if mode in ("P", "1") else 255
    if mode == "P":  # the index is the class, as in VOC
        picture = Pillow.fromarray(CLASSES)
        picture.putpalette([0, 0, 0, 200, 30, 40])
        picture.save(path)
    elif mode == "I;16":
        Pillow.fromarray(CLASSES.astype(np.uint16) * 255).save(path)
    else:
        Pillow.fromarray(CLASSES * np.uint8(255)).convert(mode).save(path)
    mask = read_mask(path)
    np.testing.assert_array_equal(mask.astype(int), CLASSES.astype(int) * value)


def test_colour_masks_keep_their_colours(tmp_path):
    colours = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[CLASSES]
    for mode in ("RGB", "RGBA"):
        Pillow.fromarray(colours).convert(mode).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), colours)


@pytest.mark.parametrize(
    ("suffix", "written"), [(".png", ".png"), (".jpg", ".png"), (".bmp", ".png"), (".tif", ".tif")]
)
def test_masks_of_pictures_are_written_without_loss(tmp_path, suffix, written):
    Pillow.fromarray(RGB).save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    target = tmp_path / "out" / f"a{image.suffix}"
    for values in (CLASSES, 255 * CLASSES, CLASSES.astype(np.uint16) * 1000, RGB):
        image.write(values, target)
        assert target.suffix == written
        np.testing.assert_array_equal(read_mask(target), values)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", AFFINES, ids=orientation)
def test_nifti_is_turned_to_ras_and_its_mask_back(tmp_path, suffix, affine):
    path = tmp_path / f"a{suffix}"
    nib.save(nib.Nifti1Image(VOLUME, affine), path)
    image = read_image(path)
    canonical = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(image.array[0], canonical.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(image.spacing, nib.affines.voxel_sizes(canonical.affine), rtol=1e-5)
    target = tmp_path / f"mask{image.suffix}"
    image.write((image.array[0] > 0).astype(np.uint8), target)
    mask, stored = nib.load(target), nib.load(path)
    np.testing.assert_array_equal(mask.affine, stored.affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), VOLUME > 0)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(read_mask(target), image.array[0] > 0)
    assert {path.name for path in tmp_path.iterdir()} == {f"a{suffix}", f"mask{suffix}"}


@pytest.mark.parametrize(("sform", "qform"), [(2, 0), (0, 1), (1, 1), (0, 0), (4, 2)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_masks_keep_affines_codes_and_units_to_the_bit(tmp_path, sform, qform, kind):
    volume = kind((100 * VOLUME).astype(">i2"), None)
    volume.header.set_zooms((0.7, 0.9, 2.5))
    volume.header.set_xyzt_units("mm", "sec")
    volume.header.set_slope_inter(2.0, -5.0)
    volume.header["cal_max"] = 1000
    if qform:
        volume.set_qform(oblique(), qform)
    if sform:
        volume.set_sform(oblique((1, 0, 2), (-1, 1, 1)), sform)
    path, target = tmp_path / "a.nii.gz", tmp_path / "mask.nii.gz"
    nib.save(volume, path)
    image = read_image(path)
    assert np.isclose(image.array.min(), np.asarray(nib.load(path).dataobj).min())
    image.write((image.array[0] > 0).astype(np.uint8), target)
    stored, mask = nib.load(path), nib.load(target)
    np.testing.assert_array_equal(mask.affine, stored.affine)
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[field], stored.header[field])
    assert mask.header.get_zooms() == stored.header.get_zooms()
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}
    assert mask.header["cal_max"] == 0
    probabilities = image.array[0].astype(np.float32) / 7
    image.write(probabilities, target)
    np.testing.assert_array_equal(read_image(target).array[0], probabilities)


def test_nifti_channels_are_last_in_the_file_and_first_in_the_array(tmp_path):
    stack = np.stack([VOLUME, 2 * VOLUME], -1)
    nib.save(nib.Nifti1Image(stack, AFFINES[2]), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(VOLUME, AFFINES[2]), tmp_path / "one.nii.gz")
    image, one = read_image(tmp_path / "a.nii.gz"), read_image(tmp_path / "one.nii.gz")
    assert image.array.shape[0] == 2
    np.testing.assert_array_equal(image.array[1], 2 * one.array[0])
    assert image.spacing == one.spacing
    image.write((image.array[0] > 0).astype(np.uint8), tmp_path / "mask.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, nib.load(tmp_path / "a.nii.gz").affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), VOLUME > 0)
    assert mask.header.get_zooms() == nib.load(tmp_path / "one.nii.gz").header.get_zooms()
    with pytest.raises(UserError, match=r"a.nii.gz: a mask has one channel, this file has 2"):
        read_mask(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 5, 2, 2)])
def test_nifti_of_other_axes_is_refused(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UserError, match=rf"a.nii: has {len(shape)} axes"):
        read_image(tmp_path / "a.nii")


# NRRD, MHA


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((1, 0, 2), (-1, 1, 1)), ((2, 0, 1), (1, -1, 1))], ids=str
)
def test_itk_masks_have_the_spacing_origin_and_direction_of_their_image(tmp_path, suffix, order, signs):
    path = tmp_path / "in" / f"a{suffix}"
    path.parent.mkdir()
    sitk.WriteImage(itk(VOLUME.transpose(2, 1, 0), direction=turned_direction(order, signs)), str(path))
    stored, image = sitk.ReadImage(str(path)), read_image(path)
    target = tmp_path / "out" / f"mask{image.suffix}"
    image.write((image.array[0] > 0).astype(np.uint8), target)
    mask = sitk.ReadImage(str(target))
    assert mask.GetOrigin() == stored.GetOrigin()
    # NRRD stores spacing times direction: ITK's spacing may come back with its last bit changed
    np.testing.assert_allclose(mask.GetSpacing(), stored.GetSpacing(), rtol=1e-15 if suffix == ".nrrd" else 0)
    np.testing.assert_allclose(mask.GetDirection(), stored.GetDirection(), atol=1e-15 if suffix == ".nrrd" else 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(stored) > 0)
    np.testing.assert_array_equal(read_mask(target), image.array[0] > 0)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    ("order", "signs"),
    [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, -1, 1)), ((1, 0, 2), (-1, 1, 1)), ((2, 0, 1), (1, -1, 1))],
    ids=str,
)
def test_all_volume_formats_give_the_same_array_and_spacing(tmp_path, order, signs):
    stored = itk(VOLUME.transpose(2, 1, 0), direction=turned_direction(order, signs))
    images = []
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha"):
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(stored, str(path))
        images.append(read_image(path))
    for other in images[1:]:
        np.testing.assert_array_equal(other.array, images[0].array)
        np.testing.assert_allclose(other.spacing, images[0].spacing, rtol=1e-5)
    lengths = {round(s, 4): n for s, n in zip(images[0].spacing, images[0].array.shape[1:], strict=True)}
    assert lengths == {0.7: 7, 0.9: 6, 2.5: 5}


def test_itk_channels(tmp_path):
    vector = np.stack([VOLUME.transpose(2, 1, 0), 2 * VOLUME.transpose(2, 1, 0)], -1)
    sitk.WriteImage(itk(vector, is_vector=True), str(tmp_path / "a.nrrd"))
    image = read_image(tmp_path / "a.nrrd")
    assert image.array.shape == (2, 7, 6, 5)
    np.testing.assert_array_equal(image.array[1], 2 * image.array[0])
    image.write((image.array[0] > 0).astype(np.uint8), tmp_path / "mask.nrrd")
    mask = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), VOLUME.transpose(2, 1, 0) > 0)
    assert mask.GetOrigin() == (3.0, -4.5, 11.25)


def test_flat_itk_files_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(tmp_path / "a.mha"))
    with pytest.raises(UserError, match=r"a.mha: has 2 axes"):
        read_image(tmp_path / "a.mha")


# HDF5


@pytest.mark.parametrize("key", ["label", "mask", "labels"])
def test_h5(tmp_path, key):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["image"], file[key] = VOLUME, PATTERN
    image = read_image(path, h5_spacing=(0.625, 0.625, 0.7))
    np.testing.assert_array_equal(image.array[0], VOLUME)
    np.testing.assert_array_equal(read_mask(path), PATTERN)
    assert image.spacing == (0.625, 0.625, 0.7)
    assert read_image(path).spacing == (1.0, 1.0, 1.0)
    turned = read_image(path, "zyx", (0.5, 0.6, 3.0))
    np.testing.assert_array_equal(turned.array[0], VOLUME.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_mask(path, "zyx"), PATTERN.transpose(2, 1, 0))
    assert turned.spacing == (0.5, 0.6, 3.0)
    turned.write(read_mask(path, "zyx"), tmp_path / "out.h5")
    np.testing.assert_array_equal(read_mask(tmp_path / "out.h5"), PATTERN)


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_h5_own_spacing_counts_first(tmp_path, axes):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = VOLUME
        file["image"].attrs["spacing"] = (3.0, 0.6, 0.5) if axes == "zyx" else (0.5, 0.6, 3.0)
    assert read_image(tmp_path / "a.h5", axes, (1.0, 1.0, 1.0)).spacing == (0.5, 0.6, 3.0)


def test_h5_without_what_is_needed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["picture"] = VOLUME
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=r"a.h5: the file lacks what is needed"):
            read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["image"] = VOLUME[0]
    with pytest.raises(UserError, match=r"b.h5: key 'image' has 2 axes"):
        read_image(tmp_path / "b.h5")


# DICOM


def write_series(folder, uid="1.2.826.0.1.3680043.2.1125.1", direction=None):
    """A CT series of one file per slice, the files in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    direction = direction or (1, 0, 0, 0, 1, 0, 0, 0, 1)
    volume = itk((100 * VOLUME.transpose(2, 1, 0)).astype(np.int16), direction=direction)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(volume.GetDepth()):
        part = volume[:, :, z]
        position = volume.TransformIndexToPhysicalPoint((0, 0, z))
        cosines = [direction[i] for i in (0, 3, 6, 1, 4, 7)]
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{z + 1}",
            "0020|000e": uid,
            "0020|000d": f"{uid}.0",
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0037": "\\".join(f"{c:.8f}" for c in cosines),
            "0020|0013": str(z),
            "0018|0050": "2.5",
        }
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid[-1]}_{(3 * z) % 5}.dcm"))
        writer.Execute(part)
    return volume


@pytest.mark.parametrize("direction", [None, turned_direction((1, 0, 2), (-1, 1, 1))], ids=["straight", "oblique"])
def test_a_folder_with_one_dicom_series(tmp_path, direction):
    stored = write_series(tmp_path / "case", direction=direction)
    sitk.WriteImage(stored, str(tmp_path / "same.nrrd"))
    image, same = read_image(tmp_path / "case"), read_image(tmp_path / "same.nrrd")
    np.testing.assert_array_equal(image.array, same.array)
    np.testing.assert_allclose(image.spacing, same.spacing, rtol=1e-4)
    assert image.suffix == ".nii.gz"
    target = tmp_path / "mask.nii.gz"
    image.write((image.array[0] > 0).astype(np.uint8), target)
    mask = sitk.ReadImage(str(target))
    np.testing.assert_allclose(mask.GetDirection(), stored.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(mask.GetOrigin(), stored.GetOrigin(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(stored) > 0)
    np.testing.assert_array_equal(read_mask(target), image.array[0] > 0)


def test_a_folder_with_two_series_or_none_is_no_case(tmp_path):
    write_series(tmp_path / "two")
    write_series(tmp_path / "two", uid="1.2.826.0.1.3680043.2.1125.2")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"two: holds 2 DICOM series"):
        read_image(tmp_path / "two")
    with pytest.raises(UserError, match=r"none: holds 0 DICOM series"):
        read_image(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "damaged, or no slice"),
        (lambda path: path.write_bytes(bytes(200) + path.read_bytes()[200:]), "damaged, or no slice"),
        (lambda path: path.write_bytes(b""), "damaged, or no slice"),
        (lambda path: path.unlink(), "a slice is missing or damaged"),
        (lambda path: path.write_bytes(path.with_name("1_3.dcm").read_bytes()), "a slice is missing or damaged"),
        (lambda path: path.unlink() or os.mkfifo(path), "is a pipe"),
        (lambda path: path.unlink() or path.symlink_to(path.name), "broken link"),
    ],
    ids=["cut", "zeroed", "empty", "missing", "double", "pipe", "loop"],
)
def test_a_damaged_slice_of_a_series_is_named(change, words, tmp_path):
    write_series(tmp_path / "case")
    change(tmp_path / "case/1_1.dcm")
    with pytest.raises(UserError, match=rf"case/1_\d.dcm: .*{words}"):
        read_image(tmp_path / "case")


def test_slices_of_another_size_or_direction_are_named(tmp_path):
    write_series(tmp_path / "case")
    write_series(tmp_path / "other", direction=(0, 1, 0, 1, 0, 0, 0, 0, -1))
    shutil.copy(tmp_path / "other/1_1.dcm", tmp_path / "case/1_1.dcm")
    with pytest.raises(UserError, match=r"differs from 1_\d.dcm in size, type, spacing or direction"):
        read_image(tmp_path / "case")


# Names


def test_names(tmp_path):
    write_series(tmp_path / "case.with.dots")
    (tmp_path / "plain").mkdir()
    for name in ("b.nii.gz", "a.PNG", "notes.txt", ".hidden.png", "c.mha", "scan.v2.nii"):
        (tmp_path / name).write_text("")
    assert [path.name for path in find_images(tmp_path)] == [
        "a.PNG", "b.nii.gz", "c.mha", "case.with.dots", "scan.v2.nii",
    ]  # fmt: skip
    assert (stem_of(tmp_path / "b.nii.gz"), suffix_of(tmp_path / "B.NII.GZ")) == ("b", ".nii.gz")
    assert (stem_of(tmp_path / "scan.v2.nii"), stem_of(tmp_path / "case.with.dots")) == ("scan.v2", "case.with.dots")
    assert not is_image(tmp_path / "plain")


# Failures


def write_all(folder):
    """One file of each format."""
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        Pillow.fromarray(RGB).save(folder / f"a{suffix}")
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(itk(VOLUME), str(folder / f"a{suffix}"), suffix != ".mha")
    with h5py.File(folder / "a.h5", "w") as file:
        file["image"], file["label"] = VOLUME, PATTERN


SUFFIXES = [".png", ".jpg", ".tif", ".bmp", ".nii", ".nii.gz", ".nrrd", ".mha", ".h5"]


def assert_named(error, path):
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_truncated_empty_foreign_and_missing_files_are_named(tmp_path, suffix, read):
    write_all(tmp_path)
    path = tmp_path / f"a{suffix}"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"This is a text, not an image.\n" * 50):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read(path)
        assert_named(error, path)
    path.unlink()
    with pytest.raises(UserError, match="no such file") as error:
        read(path)
    assert_named(error, path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_are_read_or_named(tmp_path, suffix):
    """Flipped bytes anywhere: whatever the libraries raise, the user sees one line with the file."""
    write_all(tmp_path)
    path = tmp_path / f"a{suffix}"
    whole = path.read_bytes()
    draw = random.Random(suffix)
    first = 56 if suffix == ".nii" else 0  # spares the size, where a wrong one only takes long to be found out
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 5, 50])):
            damaged[draw.randrange(first, min(len(damaged), draw.choice([100, 400, 10**6])))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            assert read_image(path).array.ndim in (3, 4)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_a_damaged_gzip_stream_is_named(tmp_path):
    write_all(tmp_path)
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 9))
    content[40:60] = b"\xff" * 20
    path.write_bytes(bytes(content))
    with pytest.raises(UserError) as error:
        read_image(path)
    assert_named(error, path)


def test_other_formats_are_refused(tmp_path):
    (tmp_path / "a.docx").write_text("text")
    with pytest.raises(UserError, match=r"a.docx: unknown image format"):
        read_image(tmp_path / "a.docx")


def test_a_mask_that_cannot_be_written_leaves_nothing(tmp_path):
    write_all(tmp_path)
    (tmp_path / "file").write_text("")
    for suffix in SUFFIXES:
        image = read_image(tmp_path / f"a{suffix}")
        target = tmp_path / "file" / f"mask{image.suffix}"
        with pytest.raises(UserError) as error:
            image.write(np.zeros(image.array.shape[1:], np.uint8), target)
        assert_named(error, target)
