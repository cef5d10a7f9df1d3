"""A folder of the user's own: how classes are found in masks, which pairs and manifests are refused."""

import json

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow

from semiseg.data import Folder, layouts
from semiseg.data.scenes import scene_3d
from semiseg.errors import UserError


def write_pairs(root, masks, size=(16, 16), channels=3):
    """Images of noise with given masks, as `images/<name>.png` and `masks/<name>.png`."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number, mask in enumerate(masks):
        Pillow.fromarray(random.integers(0, 256, (*size, channels)).astype(np.uint8)).save(
            root / f"images/{number}.png"
        )
        if mask is not None:
            Pillow.fromarray(mask).save(root / f"masks/{number}.png")
    return root


def halves(low, high, dtype=np.uint8):
    mask = np.full((16, 16), low, dtype)
    mask[8:] = high
    return mask


@pytest.mark.parametrize(
    ("values", "expected", "names"),
    [
        ([(0, 255)] * 4, (0, 255), ("background", "foreground")),
        ([(0, 1)] * 4, (0, 1), ("background", "foreground")),
        ([(0, 1), (0, 2), (1, 2), (0, 3)], (0, 1, 2, 3), ("background", "class_1", "class_2", "class_3")),
        ([(0, 128)] * 4, (0, 128), ("background", "foreground")),
    ],
)
def test_classes_are_found(values, expected, names, tmp_path):
    root = write_pairs(tmp_path, [halves(*pair) for pair in values])
    data = Folder(str(root), num_folds=3)
    assert (data.class_values, data.class_names) == (expected, names)
    for case, pair in zip(data.cases, values, strict=True):
        np.testing.assert_array_equal(data.native_mask(case)[[0, -1], 0], [expected.index(v) for v in pair])


@pytest.mark.parametrize("values", [(0, 0), (7, 9), (0, 100, 200), (255, 255)])
def test_values_that_do_not_tell_the_classes_are_refused(values, tmp_path):
    masks = [halves(*values[:2]) for _ in range(4)]
    masks[0][0, 0] = values[-1]
    root = write_pairs(tmp_path, masks)
    with pytest.raises(UserError, match=r"do not tell the classes \(.*masks/0\.png has .*set --data\.mask_values"):
        Folder(str(root), num_folds=3).prepare_data()


def test_mask_values_names_and_unexpected_values(tmp_path):
    masks = [halves(10, 200) for _ in range(4)]
    root = write_pairs(tmp_path, masks)
    options = {"num_folds": 3, "mask_values": [10, 200], "class_names": ["tissue", "gland"]}
    data = Folder(str(root), **options)
    assert (data.class_names, data.class_values) == (("tissue", "gland"), (10, 200))
    np.testing.assert_array_equal(data.native_mask(data.cases[0]), halves(0, 1))
    masks[2][3, 4] = 77
    write_pairs(tmp_path, masks)
    with pytest.raises(UserError, match=r"masks/2.png: unexpected values \[77\] in 1 pixels"):
        Folder(str(root), **options).prepare_data()
    with pytest.raises(UserError, match="3 names for 2 classes"):
        _ = Folder(str(root), num_folds=3, mask_values=[10, 200], class_names=["a", "b", "c"]).class_names


def test_colour_masks(tmp_path):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    index = halves(0, 1)
    index[0] = 2
    empty = np.zeros((16, 16, 3), np.uint8)
    root = write_pairs(tmp_path, [colours[index], colours[index], empty, empty[..., 0]])
    data = Folder(str(root), num_folds=3, mask_values=colours.tolist())
    assert data.num_classes == 3
    np.testing.assert_array_equal(data.native_mask(data.cases[0]), index)
    for case in data.cases[2:]:
        assert not data.native_mask(case).any()
    with pytest.raises(UserError, match="a colour mask; give the colours"):
        _ = Folder(str(root), num_folds=3).class_names
    with pytest.raises(UserError, match="a colour mask"):
        Folder(str(root), num_folds=3, mask_values=[0, 255]).prepare_data()
    strange = colours[index]
    strange[5, 5] = (1, 2, 3)
    write_pairs(tmp_path, [strange] * 4)
    with pytest.raises(UserError, match=r"unexpected values \[\[1, 2, 3\]\] in 1 pixels"):
        Folder(str(root), num_folds=3, mask_values=colours.tolist()).prepare_data()


def test_instance_ids_are_foreground_in_any_colour(tmp_path):
    ids = np.zeros((16, 16), np.uint16)
    ids[2:5], ids[8:10] = 3, 700
    coloured = np.zeros((16, 16, 3), np.uint8)
    coloured[2:5, :, 1], coloured[8:10, :, 0] = 90, 20
    root = write_pairs(tmp_path, [ids, coloured, ids, ids])
    data = Folder(str(root), num_folds=3, mask_values="foreground")
    assert data.class_values == (0, 255)
    for case in data.cases:
        np.testing.assert_array_equal(data.native_mask(case), ids > 0)


def test_the_way_masks_are_read_is_part_of_the_cache_entry(tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 4)
    one = Folder(str(root), num_folds=3, mask_values=[0, 255])
    other = Folder(str(root), num_folds=3, mask_values=[255, 0])
    assert one.native_mask(one.cases[0])[0, 0] == 0
    assert other.native_mask(other.cases[0])[0, 0] == 1


def test_pairs_that_do_not_match(tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 4)
    (root / "images/2.png").rename(root / "elsewhere.png")
    with pytest.raises(UserError, match=r"masks/2.png: mask without image; add"):
        _ = Folder(str(root)).cases
    (root / "elsewhere.png").rename(root / "images/2.png")
    Pillow.open(root / "images/2.png").save(root / "images/2.jpg")
    with pytest.raises(UserError, match=r"images/2.png: has the same stem as 2.jpg"):
        _ = Folder(str(root)).cases
    (root / "images/2.jpg").unlink()
    Pillow.fromarray(np.zeros((16, 20), np.uint8)).save(root / "masks/2.png")
    with pytest.raises(UserError, match=r"masks/2.png: mask is 16 x 20 but its image 2.png is 16 x 16"):
        Folder(str(root), num_folds=3).prepare_data()


def test_an_image_that_is_replaced_by_one_of_another_size_is_noticed(tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 4)
    Folder(str(root), num_folds=3).prepare_data()
    Pillow.new("RGB", (20, 16)).save(root / "images/1.png")
    with pytest.raises(UserError, match=r"mask is 16 x 16 but its image 1\.png is 16 x 20"):
        Folder(str(root), num_folds=3).prepare_data()


def test_images_of_other_channels_are_converted_or_named(tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 4)
    Pillow.open(root / "images/1.png").convert("L").save(root / "images/1.png")
    Pillow.open(root / "images/2.png").convert("RGBA").save(root / "images/2.png")
    data = Folder(str(root), num_folds=3)
    assert {data.prepared_image(case).shape for case in data.cases} == {(3, 256, 256)}
    volumes = tmp_path / "volumes"
    layouts.write_folder(volumes, 4, 3, (8, 8, 8))
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.float32), np.eye(4)), volumes / "images/case_002.nii.gz")
    with pytest.raises(UserError, match=r"case_002.nii.gz: image with 2 channels where 1"):
        Folder(str(volumes), num_folds=3, patch_size=(8, 8, 8)).prepare_data()


def test_pictures_among_volumes_are_named(tmp_path):
    layouts.write_folder(tmp_path, 4, 3, (8, 8, 8))
    Pillow.fromarray(halves(0, 255)).save(tmp_path / "images/x.png")
    with pytest.raises(UserError, match=r"x.png: is a 2D image; 3D"):
        Folder(str(tmp_path), num_folds=3, patch_size=(8, 8, 8)).prepare_data()


def test_formats_can_be_mixed(tmp_path):
    """Image and mask of one case in different formats and orientations, an h5 volume and a DICOM-free folder."""
    layouts.write_folder(tmp_path, 4, 3, (8, 7, 6))
    mask = nib.load(tmp_path / "masks/case_001.nii.gz")
    expected = np.asarray(mask.dataobj)
    (tmp_path / "masks/case_001.nii.gz").unlink()
    volume = sitk.GetImageFromArray(np.ascontiguousarray(expected[::-1, ::-1].transpose()))
    volume.SetSpacing((1, 1, 2.5))  # ITK's axes point left and posterior
    sitk.WriteImage(volume, str(tmp_path / "masks/case_001.nrrd"))
    data = Folder(str(tmp_path), num_folds=3, patch_size=(4, 4, 4))
    (tmp_path / "images/notes.txt").write_text("")
    np.testing.assert_array_equal(data.native_mask(data.cases[1]), np.flip(expected[::-1, ::-1], (0, 1)))


def write_manifest(root, rows, header="case,patient,image,mask"):
    (root / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return {"root": str(root), "manifest": "list.csv", "num_folds": 3}


def test_manifest(tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 6)
    rows = [f"c{n}, p{n // 2}, images/{n}.png, masks/{n}.png" for n in range(6)]
    rows[1] = "c1, p0, images/1.png,"
    data = Folder(**write_manifest(root, rows))
    assert [(case.case, case.patient) for case in data.cases] == [(f"c{n}", f"p{n // 2}") for n in range(6)]
    assert data.cases[1].mask is None
    assert Folder(str(root), manifest=str(root / "list.csv")).cases == data.cases
    (root / "list.csv").write_bytes(b"\xef\xbb\xbf" + (root / "list.csv").read_bytes())  # as Excel writes it
    assert Folder(str(root), manifest="list.csv").cases == data.cases
    rows[0] = "c0,, images/0.png, masks/0.png"
    assert Folder(**write_manifest(root, rows)).cases[0].patient == "c0"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("c9,p9,images/99.png,", r"list.csv, line 5: .*99.png does not exist"),
        (",p9,images/0.png,", "line 5: case and image must not be empty"),
        ("c9,p9,,", "line 5: case and image must not be empty"),
        ("c0,p9,images/3.png,", "case c0 is listed more than once"),
        ("c9,p9,list.csv,", "line 5: .*list.csv is of an unknown format"),
        ("c9,p9,images/3.png,list.csv", "line 5: .*list.csv is of an unknown format"),
        ("c9", "line 5: has 1 fields for 4 columns"),
    ],
)
def test_manifest_mistakes(row, words, tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 4)
    rows = [f"c{n},p{n},images/{n}.png,masks/{n}.png" for n in range(3)]
    with pytest.raises(UserError, match=words):
        _ = Folder(**write_manifest(root, [*rows, row])).cases


def test_manifest_without_columns_or_file(tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 4)
    with pytest.raises(UserError, match=r"lacks the column\(s\) patient, mask"):
        _ = Folder(**write_manifest(root, [], "case;image,image,case")).cases
    with pytest.raises(UserError, match="no such file"):
        _ = Folder(str(root), manifest="other.csv").cases


def test_masks_of_unlabeled_cases_in_a_manifest_are_not_needed(fit, tmp_path):
    root = write_pairs(tmp_path, [halves(0, 255)] * 6)
    options = write_manifest(root, [f"c{n},p{n},images/{n}.png,masks/{n}.png" for n in range(6)])
    options |= {"labeled_count": 1, "image_size": [16, 16], "batch_size": 1}
    data = Folder(**options)
    for case in data.part("unlabeled"):
        case.mask.unlink()
    given = [word for name, value in options.items() for word in (f"--data.{name}", str(value))]
    run = fit("--config", "configs/data/folder.yaml", *given, "--config", "configs/method/entropy_minimization.yaml")
    assert json.loads((run / "split.json").read_text())["unlabeled"] == [case.case for case in data.part("unlabeled")]
    data.part("labeled")[0].mask.unlink()
    with pytest.raises(UserError, match=r"mask not found"):
        Folder(**options, mask_values=[0, 255]).prepare_data()


def test_defaults_of_folders(tmp_path):
    layouts.write_folder(tmp_path / "My data (2)", 4, size=(16, 16))
    layouts.write_folder(tmp_path / "vol", 4, 3, (8, 8, 8))
    flat, solid = Folder(str(tmp_path / "My data (2)")), Folder(str(tmp_path / "vol"))
    assert (flat.spatial_dims, flat.image_size, flat.patch_size) == (2, (256, 256), None)
    assert (solid.spatial_dims, solid.image_size, solid.patch_size) == (3, None, (96, 96, 64))
    assert flat.dataset_name == "my-data--2-"


def test_spacing_of_a_folder_of_pictures_and_of_h5_volumes(tmp_path):
    write_pairs(tmp_path, [halves(0, 255)] * 4)
    data = Folder(str(tmp_path), default_spacing=(0.5, 0.25))
    assert data.spacing_of(data.cases[0]) == (0.5, 0.25)
    volumes = tmp_path / "h5"
    (volumes / "images").mkdir(parents=True)
    (volumes / "masks").mkdir()
    volume, mask = scene_3d(0, 0, (8, 7, 6))
    for n in range(4):
        with h5py.File(volumes / f"images/{n}.h5", "w") as file:
            file["image"] = volume.transpose(2, 1, 0)
        with h5py.File(volumes / f"masks/{n}.h5", "w") as file:
            file["label"] = mask.transpose(2, 1, 0)
    data = Folder(str(volumes), h5_axes="zyx", default_spacing=(1, 1, 3), patch_size=(4, 4, 4), num_folds=3)
    assert data.spacing_of(data.cases[0]) == (1, 1, 3)
    np.testing.assert_array_equal(data.native_mask(data.cases[0]), mask)
