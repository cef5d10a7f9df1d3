"""Every method's YAML, present and future, through the command line on tiny data of each kind."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from semiseg import methods
from semiseg.cli import main
from semiseg.data import SegmentationDataModule
from semiseg.evaluation.cases import CaseTable
from semiseg.methods import PretrainingMethod, SegmentationMethod, SemiSupervisedMethod
from semiseg.running.configs import config_folder

METHODS = sorted((config_folder() / "method").glob("*.yaml"))
CLASSES = {path: getattr(methods, yaml.safe_load(path.read_text())["model"]["class_path"]) for path in METHODS}
FIRST_STAGES = [path for path in METHODS if issubclass(CLASSES[path], PretrainingMethod)]
SEGMENTING = [path for path in METHODS if issubclass(CLASSES[path], SegmentationMethod)]
DATA = {
    "2d-binary": ("[32,32]", "2"),
    "2d-multiclass": ("[32,48]", "4"),
    "3d": ("[16,16,16]", "3"),
}


def options(root: Path, data: str) -> list[str]:
    size, classes = DATA[data]
    data_options = ["--data", "Synthetic", "--data.root", str(root), "--data.num_cases", "10", "--data.size", size]
    return [*data_options, "--data.num_scene_classes", classes, "--data.labeled_fraction", "0.5"]


def network_of(first_stage: Path) -> list[str]:
    """What a second stage needs to have the first one's network."""
    return ["--config", "configs/method/diffusion_teacher_student.yaml"] if "diffusion" in first_stage.stem else []


def test_every_file_is_of_one_kind() -> None:
    assert sorted(FIRST_STAGES + SEGMENTING) == METHODS


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", SEGMENTING, ids=lambda path: path.stem)
def test_fit_test_and_predict(method: Path, data: str, fit, tmp_path: Path) -> None:
    classes = DATA[data][1]
    root, out = tmp_path / "data", tmp_path / "out"
    run = fit("--config", str(method), *options(root, data))

    assert (run / "figures" / "pseudo-labels.png").exists() == issubclass(CLASSES[method], SemiSupervisedMethod)
    assert main(["test", "--run", str(run)]) == 0
    assert len(CaseTable.read_csv(run / "cases.csv")) == 2
    assert (run / "figures" / "cases-test.png").exists()

    checkpoint = run / "checkpoints" / "best.ckpt"
    preprocessing = torch.load(checkpoint, weights_only=True)["preprocessing"]
    loaded = SegmentationMethod.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    grid = preprocessing["image_size"] or preprocessing["patch_size"]
    assert type(loaded) is CLASSES[method]
    image = torch.randn(1, preprocessing["in_channels"], *grid)
    with torch.no_grad():
        logits = loaded(image)
        assert logits.shape == (1, int(classes), *grid)
        assert torch.equal(logits, loaded(image)), "something is random at inference"
        (classified,) = loaded.class_maps({"image": image, "target": [torch.zeros(grid)]})
        assert torch.equal(classified, logits[0].argmax(0)), "a class is not that of the highest score"

    assert main(["predict", str(checkpoint), str(root / "images"), "--output", str(out), "--device", "cpu"]) == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in (root / "images").iterdir()}


@pytest.mark.parametrize("method", sorted((config_folder() / "method/published").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_settings_of_the_2025_papers_train_with_their_protocol(method: Path, fit, tmp_path: Path) -> None:
    protocol = ("--config", "configs/protocol/published.yaml")
    ours, theirs = (yaml.safe_load(path.read_text()) for path in (method.parents[1] / method.name, method))
    assert (theirs["method_name"], theirs["model"]["class_path"]) == (ours["method_name"], ours["model"]["class_path"])
    data = options(tmp_path / "data", "2d-binary")
    if method.stem in {path.stem for path in FIRST_STAGES}:
        assert theirs["labeled_epochs"] == 200
        run = fit("--config", str(method), *data)
        fit(*protocol, *network_of(method), *data, "--model.network.weights", str(run / "checkpoints/last.ckpt"))
        return
    run = fit(*protocol, "--config", str(method), *data, "--trainer.log_every_n_steps", "1")
    with (run / "metrics.csv").open(newline="") as file:
        weights = [float(row["train/weight"]) for row in csv.DictReader(file) if row["train/weight"]]
    assert weights == [0, 1.25, 2.5, 3.75], "on the way to 5 in four steps"


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", FIRST_STAGES, ids=lambda path: path.stem)
def test_first_stage_trains_without_masks_and_starts_a_second(
    method: Path, data: str, fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationDataModule, "read_classes", lambda *args: pytest.fail("a mask was read"))
        run = fit("--config", str(method), *options(root, data), "--experiment", "first")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    last = run / "checkpoints" / "last.ckpt"

    for command in (["test", "--run", str(run)], ["predict", str(last), str(root / "images"), "--output", "out"]):
        assert main(command) == 2
        assert "--model.network.weights" in capsys.readouterr().err

    second = fit(*network_of(method), *options(root, data), "--model.network.weights", str(last))
    assert "tensors" in capsys.readouterr().out
    assert main(["test", "--run", str(second)]) == 0
