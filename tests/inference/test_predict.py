"""`semiseg predict`: what comes out has the geometry, size, format and values that it should."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from semiseg.cli import main
from semiseg.data.preprocessing import Preprocessing
from semiseg.inference.predictor import Predictor
from semiseg.inference.window import whole_image

OBLIQUE = np.array(  # rotated, anisotropic, left-handed, axes in the order z, x, y
    [[0.1, -1.18, 0.25, 14.0], [0.2, 0.2, 1.46, -73.5], [-2.49, -0.03, 0.19, 1002.25], [0, 0, 0, 1]]
)

MAPS = ("--overlay", "--probabilities", "--uncertainty")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints of a 2D run with masks of 0 and 255, and of a 3D run with three classes."""
    checkpoints = {}
    for size, classes in (("[32,32]", "2"), ("[16,16,16]", "3")):
        folder = tmp_path_factory.mktemp("runs")
        options = ["--data", "Synthetic", "--data.num_cases", "10", "--data.size", size]
        options += ["--data.num_scene_classes", classes, "--trainer.max_steps", "2", "--runs_dir", str(folder)]
        options += ["--model.network.widths", "[4,8]", "--model.network.dropout", "[0,0]"]
        assert main(["fit", *options, "--trainer.accelerator", "cpu"]) == 0
        (checkpoint,) = folder.rglob("best.ckpt")
        checkpoints[size.count(",") + 1] = checkpoint
    return checkpoints


def predict(checkpoint: Path, *arguments: object) -> int:
    return main(["predict", str(checkpoint), *map(str, arguments), "--device", "cpu"])


def random(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(45, 70, 3), (45, 70)])
def test_pictures(runs: dict[int, Path], tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    Image.fromarray(random(shape)).save(tmp_path / f"a{suffix}")
    assert predict(runs[2], tmp_path / f"a{suffix}", "--output", tmp_path / "out", *MAPS) == 0
    expected = "a.tif" if suffix == ".tif" else "a.png"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    maps = {f"a_{name}{Path(expected).suffix}" for name in ("probability_foreground", "uncertainty")}
    assert names == {expected, "a_overlay.png", *maps}
    mask = np.asarray(Image.open(tmp_path / "out" / expected))
    assert mask.shape == (45, 70)
    assert set(np.unique(mask)) <= {0, 255}
    probability = np.asarray(Image.open(tmp_path / "out" / f"a_probability_foreground{Path(expected).suffix}"))
    assert ((probability > 128) <= (mask == 255)).all()
    assert ((probability < 127) <= (mask == 0)).all()
    uncertainty = np.asarray(Image.open(tmp_path / "out" / f"a_uncertainty{Path(expected).suffix}"))
    p = np.clip(probability / 255, 1e-9, 1 - 1e-9)
    assert np.abs(uncertainty / 255 + p * np.log2(p) + (1 - p) * np.log2(1 - p)).max() < 0.03


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_oblique_volume_keeps_its_affine(runs: dict[int, Path], tmp_path: Path, suffix: str) -> None:
    nib.save(nib.Nifti1Image(random((10, 20, 24), np.int16), OBLIQUE), tmp_path / f"a{suffix}")
    assert predict(runs[3], tmp_path / f"a{suffix}", "--output", tmp_path / "out", "--overlay") == 0
    image, mask = nib.load(tmp_path / f"a{suffix}"), nib.load(tmp_path / "out" / f"a{suffix}")
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.shape == image.shape
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_the_mask_lies_where_the_object_lies(runs: dict[int, Path], tmp_path: Path) -> None:
    """The same volume stored in two orientations gives the same mask in space."""
    data = random((16, 16, 16), np.int16)
    straight = nib.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]))
    turned = straight.as_reoriented(nib.orientations.axcodes2ornt("PIL"))
    nib.save(straight, tmp_path / "straight.nii.gz")
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert predict(runs[3], tmp_path, "--output", tmp_path / "out") == 0
    masks = [nib.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("straight", "turned")]
    back = nib.as_closest_canonical(masks[1])
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(masks[0].dataobj))
    np.testing.assert_allclose(back.affine, masks[0].affine)
    np.testing.assert_array_equal(masks[1].affine, turned.affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_formats_keep_spacing_origin_and_direction(runs: dict[int, Path], tmp_path: Path, suffix: str) -> None:
    volume = sitk.GetImageFromArray(random((10, 20, 24), np.int16))
    volume.SetSpacing((0.7, 0.8, 2.5))
    volume.SetOrigin((-12.5, 3.25, 99.0))
    volume.SetDirection((0.0, 0.8, -0.6, 1.0, 0.0, 0.0, 0.0, -0.6, -0.8))
    sitk.WriteImage(volume, str(tmp_path / f"a{suffix}"))
    assert predict(runs[3], tmp_path / f"a{suffix}", "--output", tmp_path / "out") == 0
    image, mask = (sitk.ReadImage(str(path / f"a{suffix}")) for path in (tmp_path, tmp_path / "out"))
    assert mask.GetSize() == image.GetSize()
    for fact in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, fact)() == getattr(image, fact)()


def test_h5(runs: dict[int, Path], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = random((10, 20, 24), np.float32)
    assert predict(runs[3], tmp_path / "a.h5", "--output", tmp_path / "out") == 0
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert file["label"].shape == (10, 20, 24)


def test_what_fails_does_not_stop_the_others(runs: dict[int, Path], tmp_path: Path, capsys) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"no picture")
    Image.fromarray(random((32, 32, 3))).save(images / "b.png")
    assert predict(runs[2], images, "--output", tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]
    assert "a.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dims", "hint"),
    [
        (2, "give pictures such as PNG, or a checkpoint trained on 3D images"),
        (3, "give volumes such as NIfTI, or a checkpoint trained on 2D images"),
    ],
)
def test_images_of_the_other_kind(runs: dict[int, Path], tmp_path: Path, capsys, dims: int, hint: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(random((32, 32, 3))).save(images / "a.png")
    nib.save(nib.Nifti1Image(random((8, 8, 8), np.int16), OBLIQUE), images / "v.nii.gz")
    odd = images / ("v.nii.gz" if dims == 2 else "a.png")
    assert predict(runs[dims], odd, "--output", tmp_path / "new" / "out") == 2
    assert hint in capsys.readouterr().err
    assert not (tmp_path / "new").exists(), "an empty folder is left behind"
    (tmp_path / "mine").mkdir()
    assert predict(runs[dims], odd, "--output", tmp_path / "mine") == 2
    assert (tmp_path / "mine").exists(), "a folder that was there is gone"
    assert predict(runs[dims], images, "--output", tmp_path / "new" / "out") == 2
    assert len(list((tmp_path / "new" / "out").iterdir())) == 1


def test_the_predictor_predicts_what_was_scored(runs: dict[int, Path], tmp_path: Path) -> None:
    """Preprocessing by hand, from the formulas, gives the same classes."""
    picture = random((64, 64, 3))
    Image.fromarray(picture).save(tmp_path / "a.png")
    predictor = Predictor(runs[2], "cpu")
    facts = predictor.preprocessing
    assert facts.image_size == (32, 32)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None].float(), size=(32, 32), mode="bilinear", antialias=True
    ).round()
    image = (small - torch.tensor(facts.mean).view(3, 1, 1)) / torch.tensor(facts.std).view(3, 1, 1)
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(predictor.method.network(image), size=(64, 64), mode="bilinear")
    np.testing.assert_array_equal(predictor(tmp_path / "a.png").classes, logits.argmax(1)[0].numpy())


def test_a_threshold_moves_the_border_between_two_classes(
    runs: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(random((40, 40, 3))).save(tmp_path / "a.png")
    probability = Predictor(runs[2], "cpu")(tmp_path / "a.png").probabilities[1]
    middle = float(np.median(probability))
    assert predict(runs[2], tmp_path / "a.png", "--output", tmp_path / "out", "--threshold", middle) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")) == 255, probability > middle)
    assert "searches a threshold" not in capsys.readouterr().out
    for checkpoint, threshold, words in ((runs[2], 1.5, "use 0 to 1"), (runs[3], 0.5, "3 classes apart")):
        assert predict(checkpoint, tmp_path / "a.png", "--output", tmp_path / "no", "--threshold", threshold) == 2
        assert words in capsys.readouterr().err


def test_a_searched_threshold_is_asked_for(fit, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.fromarray(random((40, 40, 3))).save(tmp_path / "a.png")
    options = ["--data", "Synthetic", "--data.num_cases", "10", "--data.size", "[32,32]"]
    options += ["--data.image_size", "[32,32]"]
    checkpoint = fit(*options, "--model.threshold", "validation") / "checkpoints/best.ckpt"
    for given in ((), ("--threshold", "0.3")):
        assert predict(checkpoint, tmp_path / "a.png", "--output", tmp_path / "out", *given) == 0
        assert ("searches a threshold" in capsys.readouterr().out) == (not given)


def test_windows_cover_a_volume_of_any_size() -> None:
    """A network that acts voxel by voxel gives the same scores through windows, smaller and larger than the volume."""
    facts = Preprocessing(3, 1, ("a", "b"), (0, 1), patch_size=(8, 8, 8))
    for shape in ((8, 8, 8), (11, 9, 30), (5, 8, 20)):
        volume = torch.randn(1, 1, *shape)
        scores = whole_image(lambda x: torch.cat([x, -x], 1), volume, facts)
        torch.testing.assert_close(scores, torch.cat([volume, -volume], 1))
