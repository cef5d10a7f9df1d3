"""The written layouts carry the names, formats and pixel values of the published sets."""

import csv

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from semiseg.data import layouts


def read(path):
    image = Image.open(path)
    return image.mode, np.asarray(image)


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(("num_classes", "values"), [(2, {0, 255}), (3, {0, 1, 2})])
def test_folder_2d(tmp_path, num_classes, values):
    layouts.write_folder(tmp_path, num_cases=3, size=(32, 40), num_classes=num_classes, unlabeled=1)
    cases = ["images/case_000.png", "images/case_001.png", "images/case_002.png"]
    assert files(tmp_path) == [*cases, "masks/case_000.png", "masks/case_001.png"]
    assert read(tmp_path / cases[0])[1].shape == (32, 40, 3)
    mode, mask = read(tmp_path / "masks/case_000.png")
    assert mode == "L"
    assert set(np.unique(mask)) == values


def test_folder_3d(tmp_path):
    layouts.write_folder(tmp_path, num_cases=2, spatial_dims=3, size=(20, 18, 12), num_classes=3, unlabeled=1)
    assert files(tmp_path) == ["images/case_000.nii.gz", "images/case_001.nii.gz", "masks/case_000.nii.gz"]
    image, mask = nib.load(tmp_path / "images/case_000.nii.gz"), nib.load(tmp_path / "masks/case_000.nii.gz")
    assert image.shape == mask.shape == (20, 18, 12)
    assert image.header.get_zooms() == (1.0, 1.0, 2.5)
    assert (image.get_data_dtype(), mask.get_data_dtype()) == (np.float32, np.uint8)
    assert set(np.unique(mask.dataobj)) == {0, 1, 2}


def test_folder_seed_changes_the_images(tmp_path):
    for seed in (0, 1):
        layouts.write_folder(tmp_path / str(seed), num_cases=1, size=(32, 32), seed=seed)
    first, second = (tmp_path / f"{seed}/images/case_000.png" for seed in (0, 1))
    assert first.read_bytes() != second.read_bytes()


def test_glas(tmp_path):
    layouts.write_glas(tmp_path, train=3, test_a=2, test_b=1, size=(32, 48))
    folder = tmp_path / "Warwick QU Dataset (Released 2016_07_08)"
    names = ["testA_1", "testA_2", "testB_1", "train_1", "train_2", "train_3"]
    assert files(folder) == sorted(["Grade.csv", *(f"{name}{end}.bmp" for name in names for end in ("", "_anno"))])
    assert read(folder / "train_1.bmp")[0] == "RGB"
    mode, instances = read(folder / "train_1_anno.bmp")
    assert mode == "L"
    assert set(np.unique(instances)) == set(range(instances.max() + 1))
    lines = (folder / "Grade.csv").read_text().splitlines()
    assert lines[0] == "name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
    rows = list(csv.DictReader(lines, skipinitialspace=True))
    assert [row["name"] for row in rows] == names
    assert len({row["patient ID"] for row in rows}) < len(rows)
    assert {row["grade (GlaS)"] for row in rows} == {"benign", "malignant"}


def test_ph2(tmp_path):
    layouts.write_ph2(tmp_path, num_cases=4, size=(32, 40))
    folder = tmp_path / "PH2Dataset"
    for number, expected in ((2, "RGB"), (3, "1")):
        name = f"IMD{number:03d}"
        case = folder / "PH2 Dataset images" / name
        assert read(case / f"{name}_Dermoscopic_Image/{name}.bmp")[1].shape == (32, 40, 3)
        mode, mask = read(case / f"{name}_lesion/{name}_lesion.bmp")
        assert mode == expected
        assert len(np.unique(mask)) == 2
    lines = (folder / "PH2_dataset.txt").read_text().splitlines()
    assert lines[0].startswith("||   Name ||")
    table = [[field.strip() for field in line.split("||")] for line in lines[1:] if line.startswith("||")]
    assert [(row[1], row[3]) for row in table] == [("IMD002", "0"), ("IMD003", "1"), ("IMD004", "2"), ("IMD005", "0")]
    assert not lines[-1].startswith("||")


def test_hmeps(tmp_path):
    layouts.write_hmeps(tmp_path, subjects=2, frames=1, size=(32, 32))
    names = ["1_Left_1", "1_Right_1", "2_Left_1", "2_Right_1"]
    assert files(tmp_path) == [f"fullFrames/{name}.jpeg" for name in names] + [f"pngs/{name}.png" for name in names]
    assert read(tmp_path / "fullFrames/1_Left_1.jpeg")[0] == "L"
    mode, mask = read(tmp_path / "pngs/1_Left_1.png")
    assert mode == "RGB"
    assert {tuple(colour) for colour in mask.reshape(-1, 3).tolist()} == {(0, 0, 0), (255, 0, 0), (0, 255, 0)}


def test_la(tmp_path):
    layouts.write_la(tmp_path, train=2, test=1, size=(20, 18, 12))
    train, test = ((tmp_path / f"{part}.list").read_text().split() for part in ("train", "test"))
    assert (len(train), len(test), len({*train, *test})) == (2, 1, 3)
    for name in (*train, *test):
        with h5py.File(tmp_path / "2018LA_Seg_Training Set" / name / "mri_norm2.h5") as file:
            image, label = file["image"][()], file["label"][()]
        assert (image.shape, image.dtype, label.dtype) == ((20, 18, 12), np.float32, np.uint8)
        assert abs(image.mean()) < 1e-3
        assert set(np.unique(label)) == {0, 1}


def test_la_nrrd(tmp_path):
    layouts.write_la_nrrd(tmp_path, num_cases=1, size=(20, 18, 12))
    (case,) = tmp_path.iterdir()
    image, mask = (sitk.ReadImage(str(case / f"{stem}.nrrd")) for stem in ("lgemri", "laendo"))
    assert image.GetSize() == mask.GetSize() == (20, 18, 12)
    assert mask.GetSpacing() == (0.625,) * 3
    assert set(np.unique(sitk.GetArrayFromImage(mask))) == {0, 255}
    assert len(np.unique(sitk.GetArrayFromImage(image))) > 20


def test_oct_cme(tmp_path):
    layouts.write_oct_cme(tmp_path, num_cases=2, size=(32, 40))
    for number in (1, 2):
        (scan,) = tmp_path.glob(f"*/{number}")
        (image,), (mask,) = (scan / "images").glob("*.jpeg"), (scan / "masks").iterdir()
        assert read(image)[0] == "L"
        assert set(np.unique(read(mask)[1])) == {0, 255}


def test_qata(tmp_path):
    layouts.write_qata(tmp_path, train=2, test=1, size=(32, 32))
    for part, number in (("Train Set", 1), ("Train Set", 2), ("Test Set", 3)):
        folder = tmp_path / "QaTa-COV19-v2" / part
        assert read(folder / f"Images/covid_{number}.png")[0] == "L"
        mode, mask = read(folder / f"Ground-truths/mask_covid_{number}.png")
        assert mode == "L"
        assert set(np.unique(mask)) == {0, 255}


def test_acdc(tmp_path):
    layouts.write_acdc(tmp_path, patients=2, size=(4, 32, 28))
    names = ["patient001_frame01", "patient001_frame09", "patient002_frame01", "patient002_frame10"]
    assert files(tmp_path) == [f"volumes/{name}.h5" for name in names]
    with h5py.File(tmp_path / f"volumes/{names[0]}.h5") as file:
        image, label, scribble = (file[key][()] for key in ("image", "label", "scribble"))
    assert image.shape == label.shape == scribble.shape == (4, 32, 28)
    assert (image.min(), image.max()) == (0, 1)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    drawn = scribble != 4
    assert set(np.unique(scribble)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(scribble[drawn], label[drawn])
    assert drawn.mean() < 0.3
