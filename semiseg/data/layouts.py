"""Writers of synthetic scenes in the file layouts of published data sets, for tests and demonstrations.

Every function takes the folder that a user would name as the root of that data set. Names, formats and pixel values
follow the releases; the content comes from :mod:`semiseg.data.scenes`.
"""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from semiseg.data.scenes import scene_2d, scene_3d


def write_folder(
    root: Path,
    num_cases: int = 6,
    spatial_dims: int = 2,
    size: tuple[int, ...] = (64, 64),
    num_classes: int = 2,
    unlabeled: int = 0,
    seed: int = 0,
) -> None:
    """Write ``images/case_000.*`` and ``masks/case_000.*``; the last ``unlabeled`` cases get no mask.

    2D cases are PNG (binary masks hold 0 and 255, others class indices), 3D cases NIfTI with anisotropic spacing.
    """
    for index in range(num_cases):
        labeled = index < num_cases - unlabeled
        if spatial_dims == 2:
            height, width = size
            image, mask = scene_2d(seed, index, (height, width), num_classes)
            _save(root / f"images/case_{index:03d}.png", image)
            if labeled:
                _save(root / f"masks/case_{index:03d}.png", mask * np.uint8(255) if num_classes == 2 else mask)
        else:
            x, y, z = size
            volume, labels = scene_3d(seed, index, (x, y, z), num_classes)
            _save_nifti(root / f"images/case_{index:03d}.nii.gz", volume)
            if labeled:
                _save_nifti(root / f"masks/case_{index:03d}.nii.gz", labels)


def write_glas(
    root: Path, train: int = 8, test_a: int = 3, test_b: int = 2, size: tuple[int, int] = (64, 96), seed: int = 0
) -> None:
    """Write the GlaS challenge: BMP images, masks of gland instances, and ``Grade.csv`` with two images a patient."""
    folder = root / "Warwick QU Dataset (Released 2016_07_08)"
    names = [
        f"{part}_{n}"
        for part, count in (("testA", test_a), ("testB", test_b), ("train", train))
        for n in range(1, count + 1)
    ]
    grades = ("benign, healthy", "benign, adenomatous", "malignant, moderately differentiated")
    rows = ["name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for index, name in enumerate(names):
        image, mask = scene_2d(seed, index, size)
        instances, _ = ndimage.label(mask)
        _save(folder / f"{name}.bmp", image)
        _save(folder / f"{name}_anno.bmp", instances.astype(np.uint8))
        patient = index // 2
        rows.append(f"{name}, {patient + 1}, {grades[patient % len(grades)]}")
    (folder / "Grade.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_ph2(root: Path, num_cases: int = 6, size: tuple[int, int] = (64, 80), seed: int = 0) -> None:
    """Write PH2: a folder per lesion and ``PH2_dataset.txt``; masks have one bit, but that of IMD002 is RGB."""
    header = (
        "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | Dots/Globules | "
        "Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||"
    )
    rows = [header]
    for index in range(num_cases):
        name, diagnosis = f"IMD{index + 2:03d}", index % 3
        histology = "Melanoma" if diagnosis == 2 else ""
        image, mask = scene_2d(seed, index, size)
        folder = root / "PH2Dataset" / "PH2 Dataset images" / name
        _save(folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp", image)
        lesion = Image.fromarray(mask * np.uint8(255)).convert("RGB" if name == "IMD002" else "1")
        path = folder / f"{name}_lesion" / f"{name}_lesion.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        lesion.save(path)
        rows.append(
            f"|| {name} || {histology:>22} || {diagnosis:>18} || {diagnosis:>9} | {'T':>15} | {'A':>13} | "
            f"{'A':>7} | {'A':>16} | {'A':>17} || {'3  4':>16} ||"
        )
    legend = (
        "Legends:",
        "Histological Diagnosis: free text, left empty where no biopsy was taken",
        "Clinical Diagnosis: 0 - Common Nevus; 1 - Atypical Nevus; 2 - Melanoma.",
        "Asymmetry: 0 - Fully Symmetric; 1 - Symmetric in 1 axis; 2 - Fully Asymmetric.",
        "Pigment Network: AT - Atypical; T - Typical.",
        "Dots/Globules, Streaks: A - Absent; AT - Atypical; T - Typical.",
        "Regression Areas, Blue-Whitish Veil: A - Absent; P - Present.",
        "Colors: 1 - White; 2 - Red; 3 - Light-Brown; 4 - Dark-Brown; 5 - Blue-Gray; 6 - Black.",
    )
    (root / "PH2Dataset" / "PH2_dataset.txt").write_text("\n".join([*rows, "", *legend]) + "\n", encoding="utf-8")


def write_hmeps(
    root: Path, subjects: int = 4, frames: int = 2, size: tuple[int, int] = (64, 64), seed: int = 0
) -> None:
    """Write HMEPS: grey JPEG frames of either eye and RGB masks where red is the pupil, green the iris."""
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    names = [
        f"{subject}_{side}_{frame}"
        for subject in range(1, subjects + 1)
        for side in ("Left", "Right")
        for frame in range(1, frames + 1)
    ]
    for index, name in enumerate(names):
        image, mask = scene_2d(seed, index, size, num_classes=3)
        _save(root / f"fullFrames/{name}.jpeg", _grey(image))
        _save(root / f"pngs/{name}.png", colours[mask])


def write_la(
    root: Path, train: int = 4, test: int = 2, size: tuple[int, int, int] = (40, 36, 24), seed: int = 0
) -> None:
    """Write the left atrium set as HDF5, z-scored, with ``train.list`` and ``test.list``."""
    names = _la_names(train + test, seed)
    for index, name in enumerate(names):
        volume, mask = scene_3d(seed, index, size)
        image = (volume - volume.mean()) / volume.std()
        _save_h5(root / "2018LA_Seg_Training Set" / name / "mri_norm2.h5", image=image, label=mask)
    (root / "train.list").write_text("\n".join(names[:train]) + "\n", encoding="utf-8")
    (root / "test.list").write_text("\n".join(names[train:]) + "\n", encoding="utf-8")


def write_la_nrrd(root: Path, num_cases: int = 3, size: tuple[int, int, int] = (40, 36, 24), seed: int = 0) -> None:
    """Write the left atrium set as the challenge released it: NRRD of 0.625 mm, masks of 0 and 255."""
    for index, name in enumerate(_la_names(num_cases, seed)):
        volume, mask = scene_3d(seed, index, size)
        (root / name).mkdir(parents=True, exist_ok=True)
        for stem, array in (("lgemri", 255 * volume / volume.max()), ("laendo", mask * 255)):
            image = sitk.GetImageFromArray(array.astype(np.uint8).transpose())  # SimpleITK arrays are z, y, x
            image.SetSpacing((0.625,) * 3)  # type: ignore[no-untyped-call]
            sitk.WriteImage(image, str(root / name / f"{stem}.nrrd"), True)


def write_oct_cme(root: Path, num_cases: int = 6, size: tuple[int, int] = (64, 96), seed: int = 0) -> None:
    """Write OCT-CME: a folder per scan, a grey JPEG in ``images`` and a mask of another name in ``masks``."""
    for index in range(num_cases):
        image, mask = scene_2d(seed, index, size)
        scan = root / "Intraretinal Cystoid Fluid" / str(index + 1)
        _save(scan / "images" / f"CME-{index + 1}.jpeg", _grey(image))
        _save(scan / "masks" / f"mask_{index + 1}.png", mask * np.uint8(255))


def write_qata(root: Path, train: int = 6, test: int = 3, size: tuple[int, int] = (64, 64), seed: int = 0) -> None:
    """Write QaTa-COV19-v2: grey PNG radiographs and masks of 0 and 255 in a train and a test folder."""
    for index in range(train + test):
        image, mask = scene_2d(seed, index, size)
        part = root / "QaTa-COV19-v2" / ("Train Set" if index < train else "Test Set")
        _save(part / "Images" / f"covid_{index + 1}.png", _grey(image))
        _save(part / "Ground-truths" / f"mask_covid_{index + 1}.png", mask * np.uint8(255))


def write_acdc(root: Path, patients: int = 4, size: tuple[int, int, int] = (6, 64, 56), seed: int = 0) -> None:
    """Write ACDC with scribbles: two frames a patient as HDF5 of axes slice, row, column; label 4 = not annotated."""
    for patient in range(patients):
        for phase, frame in enumerate((1, 9 + patient % 4)):
            volume, mask = scene_3d(seed, 2 * patient + phase, size, num_classes=4)
            image = (volume - volume.min()) / np.ptp(volume)
            path = root / "volumes" / f"patient{patient + 1:03d}_frame{frame:02d}.h5"
            _save_h5(path, image=image, label=mask, scribble=_scribble(mask, num_classes=4))


def _scribble(mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """Keep a short stroke of every class in every slice, where the class is thickest; the rest is not annotated."""
    scribble = np.full_like(mask, num_classes)
    for part, stroke in zip(mask, scribble, strict=True):
        for label in np.unique(part):
            thickness = ndimage.distance_transform_edt(np.pad(part == label, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(thickness.argmax(), part.shape)
            half = max(int(thickness[row, column]) - 1, 0)
            stroke[row, max(column - half, 0) : column + half + 1] = label
    return scribble


def _la_names(count: int, seed: int) -> list[str]:
    """Return case names of 20 letters and digits."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"), 20)) for _ in range(count)]


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).convert("L"))


def _save(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _save_nifti(path: Path, array: NDArray[np.float32] | NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.5, 1.0]))  # type: ignore[no-untyped-call]
    nib.save(image, path)


def _save_h5(path: Path, **arrays: NDArray[np.float32] | NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip")
