"""Headers and checksums of image files: what a format can tell is told, and nothing crashes, hangs or fills memory."""

import errno
import gzip
import os
import re
import struct

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow

from semiseg.data import limits
from semiseg.data.io import read_image, read_mask
from semiseg.data.reading import reading
from semiseg.errors import UserError

VOLUME = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def refuses(path, words=""):
    """Read a file; returns its one line, which holds the words."""
    with pytest.raises(UserError, match=words) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


@pytest.fixture
def itk(tmp_path):
    """Write the volume in a text format with its header changed; returns the file."""

    def write(suffix, change=lambda head: head, compress=False, name="a"):
        path = tmp_path / f"{name}{suffix}"
        image = sitk.GetImageFromArray(VOLUME)
        image.SetSpacing((0.7, 0.9, 2.5))
        sitk.WriteImage(image, str(path), compress)
        content = path.read_bytes()
        end = content.index(b"\n\n") if suffix == ".nrrd" else content.index(b"ElementDataFile")
        path.write_bytes(change(content[:end].decode()).encode() + content[end:])
        return path

    return write


def field(key, value):
    """A change of one line of a header; None removes it."""
    line = "" if value is None else f"{key} {value}\n"
    return lambda head: re.sub(rf"(?m)^{re.escape(key)} .*(\n|$)", lambda _: line, head).rstrip("\n") + "\n"


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
def test_whole_files_are_read(suffix, compress, itk):
    image = read_image(itk(suffix, compress=compress))
    assert image.spacing == (0.7, 0.9, 2.5)
    assert np.array_equal(np.sort(image.array, axis=None), np.sort(VOLUME, axis=None))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("NDims =", "2147483648", "NDims 2147483648, not 1 number"),
        ("NDims =", "4294967295", "NDims"),
        ("NDims =", "1e308", "NDims"),
        ("NDims =", "-3", "has -3 axes"),
        ("NDims =", "2", "DimSize"),
        ("NDims =", None, "lacks NDims"),
        ("TransformMatrix =", "1e308 0 0 0 1 0 0 0 1", "out of range"),
        ("TransformMatrix =", "nan 0 0 0 1 0 0 0 1", "not 9 number"),
        ("TransformMatrix =", "1 0 0 0 1 0 0 0 0", "not directions"),
        ("TransformMatrix =", "1 0 0 1 0 0 0 0 1", "not directions"),
        ("TransformMatrix =", "1 0 0", "not 9 number"),
        ("Offset =", "inf 0 0", "not 3 number"),
        ("ElementSpacing =", "0 1 1", "spacing of 0 x 1 x 1"),
        ("ElementSpacing =", "4e9 1 1", "out of range"),
        ("ElementSpacing =", "1e-9 1 1", "spacing of 1e-09"),
        ("ElementSpacing =", "-1 1 1", "spacing of -1"),
        ("ElementSpacing =", None, "lacks ElementSize"),
        ("DimSize =", "7 0 5", "every axis needs one"),
        ("DimSize =", "7 6 4", r"holds 840 bytes of voxels, its header says 672"),
        ("DimSize =", "7 6 6", r"holds 840 bytes of voxels, its header says 1008"),
        ("DimSize =", "100000 100000 100000", "GiB of memory"),
        ("DimSize =", "999999999 999999999 999999999", "GiB of memory"),
        ("ElementType =", "MET_STRING", "not known"),
        ("ElementType =", "MET_DOUBLE", "its header says 1680"),
        ("BinaryData =", "False", "as text"),
        ("CompressedData =", "Maybe", "True or False"),
        ("ElementSpacing =", "1 1 1\nElementSpacing = 2 2 2", "ElementSpacing twice"),
        ("ElementSpacing =", "0.7 0.9 2.5\nTransformMatrjx = 1 0 0 0 1 0 0 0 1", "mean TransformMatrix"),
        ("ElementSpacing =", "0.7 0.9 2.5\nno field", "cannot be read: 'no field'"),
        ("ElementSpacing =", "0.7 0.9 2.5\nComment = " + "x" * 5000, "cannot be read: 'Comment"),
    ],
)
def test_mistakes_in_a_header_of_metaimage_are_named(key, value, words, itk):
    refuses(itk(".mha", field(key, value)), words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dimension:", "2147483648", "dimension 2147483648, not 1 number"),
        ("dimension:", "16", "has 16 axes"),
        ("sizes:", "7 6 4", "bytes of voxels, its header says 672"),
        ("sizes:", "7 0 5", "every axis needs one"),
        ("sizes:", "100000 100000 100000", "GiB of memory"),
        ("space directions:", "(4e9,0,0) (0,1,0) (0,0,1)", "out of range"),
        ("space directions:", "(1e308,0,0) (0,1,0) (0,0,1)", "out of range"),
        ("space directions:", "(nan,0,0) (0,1,0) (0,0,1)", "not 3 number"),
        ("space directions:", "(0,0,0) (0,1,0) (0,0,1)", "spacing of 0"),
        ("space directions:", "(1,0,0) (1,0,0) (0,0,1)", "in one plane"),
        ("space directions:", "(1,0,0) (0,1,0)", "space directions"),
        ("space origin:", "(inf,0,0)", "space origin"),
        ("type:", "block", "not known"),
        ("type:", None, "type None"),
        ("encoding:", "ascii", "save it as raw or gzip"),
        ("encoding:", "raw\nbyte skip: 4", "after a skip"),
        ("encoding:", "raw\nsizes: 7 6 5", "sizes twice"),
    ],
)
def test_mistakes_in_a_header_of_nrrd_are_named(key, value, words, itk):
    refuses(itk(".nrrd", field(key, value)), words)


@pytest.mark.parametrize(
    "name", ["LIST", "LIST 2D", "a%d.raw 1 5 1", "/etc/passwd", "../a.raw", "sub/a.raw", "missing.raw", "pipe", "."]
)
def test_voxels_are_read_from_a_file_beside_the_header_only(name, itk, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = itk(".mhd")
    path.write_bytes(path.read_bytes().replace(b"a.raw", name.encode()))
    refuses(path, "file of its voxels")
    path = itk(".nrrd", lambda head: f"{head}\ndata file: {name}")
    refuses(path, "file of its voxels")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("change", [lambda c: c[:-30], lambda c: c + b"more", lambda c: c[:-40] + b"\xff" + c[-39:]])
def test_damage_in_compressed_voxels_is_noticed(suffix, change, itk):
    path = itk(suffix, compress=True)
    path.write_bytes(change(path.read_bytes()))
    refuses(path, r"cut, damaged|cannot be read|bytes of voxels")


# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("place", "kind", "value", "words"),
    [
        (42, "h", 0, "every axis needs one"),
        (42, "h", -4, ""),
        (42, "h", 4, "holds more than its header says"),
        (42, "h", 6, "holds less than its header says"),
        (42, "hhh", (32767, 32767, 32767), "GiB of memory"),
        (40, "h", 7, "has 7 axes"),
        (70, "hh", (1536, 128), ""),
        (70, "hh", (64, 64), "less than its header"),
        (108, "f", 1e30, ""),
        (108, "f", float("nan"), ""),
        (280, "f", 0.0, "spacing of 0"),
        (280, "f", float("inf"), "spacing of inf"),
        (280, "f", 1e-20, "spacing of 1e-20"),
        (280, "ffffffff", (0.7, 0.9, 0, 0, 0, 0, 0, 0), "one plane"),
    ],
)
def test_mistakes_in_a_header_of_nifti_are_named(suffix, place, kind, value, words, tmp_path):
    path = tmp_path / f"a{suffix}"
    nib.save(nib.Nifti1Image(VOLUME, np.diag([0.7, 0.9, 2.5, 1])), path)
    whole = bytearray(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
    struct.pack_into(f"<{kind}", whole, place, *(value if isinstance(value, tuple) else [value]))
    path.write_bytes(gzip.compress(whole) if suffix == ".nii.gz" else whole)
    refuses(path, words)


def test_a_spacing_of_zero_is_not_mended_in_silence(tmp_path, capfd):
    image = nib.Nifti1Image(VOLUME, None)
    nib.save(image, tmp_path / "a.nii")
    whole = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<f", whole, 88, 0.0)  # pixdim[3], and neither sform nor qform
    struct.pack_into("<hh", whole, 252, 0, 0)
    (tmp_path / "a.nii").write_bytes(whole)
    refuses(tmp_path / "a.nii", "spacing of 1 x 1 x 0")
    assert capfd.readouterr().err == ""


def test_bytes_after_compressed_nifti_and_a_wrong_checksum_are_noticed(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), path)
    whole = path.read_bytes()
    for content in (whole + b"more", whole[:-8] + b"\0" * 4 + whole[-4:], whole[:-4]):
        path.write_bytes(content)
        refuses(path)
    parts = gzip.decompress(whole)
    path.write_bytes(gzip.compress(parts[:500]) + gzip.compress(parts[500:]))  # as bgzip writes it
    assert read_image(path).array.shape == (1, 5, 6, 7)


def test_complex_and_structured_values_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(VOLUME.astype(np.complex64), np.eye(4)), tmp_path / "a.nii")
    refuses(tmp_path / "a.nii", "values of type complex64")


# Pictures


def test_every_checksum_of_a_png_counts(tmp_path):
    path = tmp_path / "a.png"
    Pillow.fromarray(PICTURE).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        refuses(path)
        with pytest.raises(UserError):
            read_mask(path)
    path.write_bytes(whole + b"more")  # nothing of the picture
    assert np.array_equal(read_image(path).array, np.moveaxis(PICTURE, -1, 0))


def test_the_checksum_of_a_deflated_tiff_counts(tmp_path):
    path = tmp_path / "a.tif"
    x, y = np.mgrid[:48, :40]
    smooth = np.stack([x * 5 % 256, y * 6 % 256, (x + y) % 256], -1).astype(np.uint8)
    Pillow.fromarray(smooth).save(path, compression="tiff_adobe_deflate")
    assert np.array_equal(read_image(path).array, np.moveaxis(smooth, -1, 0))
    whole = path.read_bytes()
    for place in range(400, 4000, 90):
        path.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
        refuses(path)


def test_a_picture_of_too_many_pixels_is_called_so(tmp_path, monkeypatch):
    Pillow.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    assert "cut it into tiles" in refuses(tmp_path / "a.png", "more pixels than are read")


def test_a_file_larger_than_half_of_the_memory_is_refused(tmp_path, monkeypatch):
    Pillow.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(limits, "memory_limit", lambda: 1000)
    refuses(tmp_path / "a.png", "GiB of memory; the limit is half")


# HDF5


@pytest.mark.parametrize("kind", ["external", "soft", "storage", "virtual", "text", "group", "axes", "huge", "spacing"])
def test_h5_files_that_hold_no_volume_of_their_own_are_refused(kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        match kind:
            case "external":
                file["image"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/image")
            case "soft":
                file["image"] = h5py.SoftLink("/elsewhere")
            case "storage":
                file.create_dataset("image", (2, 2, 2), "u1", external=[(str(tmp_path / "pipe"), 0, 8)])
            case "virtual":
                layout = h5py.VirtualLayout((2, 2, 2), "u1")
                layout[:] = h5py.VirtualSource(str(tmp_path / "pipe"), "x", (2, 2, 2))
                file.create_virtual_dataset("image", layout)
            case "text":
                file["image"] = ["a"]
            case "group":
                file.create_group("image")
            case "axes":
                file["image"] = np.zeros((2, 2))
            case "huge":
                file.create_dataset("image", (10**5, 10**5, 10**5), "u1", chunks=(1, 1, 1000))
            case "spacing":
                file["image"] = VOLUME
                file["image"].attrs["spacing"] = (1.0, float("nan"), 1.0)
    refuses(path)


# Too little of the machine is not a damaged file


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many files are open"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "too many files are open"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("could not open x, Reason: Too many open files"), "too many files are open"),
        (RuntimeError("Failed to allocate memory for image."), "not enough memory"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_the_machine_lacks_is_not_called_a_damaged_file(error, words, wrapped, tmp_path):
    (tmp_path / "a").write_text("")

    def read():
        with reading(tmp_path / "a"):
            if not wrapped:
                raise error
            try:
                raise error
            except Exception as cause:
                raise ValueError("not an image") from cause

    with pytest.raises(UserError, match=words) as found:
        read()
    assert "damaged" not in str(found.value)
    assert "truncated" not in str(found.value)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii", ".nii.gz", ".nrrd", ".mha", ".h5"])
def test_reading_with_a_full_table_of_open_files(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    if suffix in (".png", ".tif"):
        Pillow.fromarray(PICTURE).save(path)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["image"] = VOLUME
    else:
        sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(path))
    taken = []
    try:
        while True:
            taken.append(os.open(path, os.O_RDONLY))
    except OSError:
        refuses(path, "too many files are open")
    finally:
        for handle in taken:
            os.close(handle)
    read_image(path)
