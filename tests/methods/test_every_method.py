"""Every method's YAML, present and future, through the command line on tiny data of each kind."""

from pathlib import Path

import pytest
import torch

from semiseg.cli import main
from semiseg.evaluation.cases import CaseTable
from semiseg.methods import SegmentationMethod
from semiseg.running.configs import config_folder

METHODS = sorted((config_folder() / "method").glob("*.yaml"))
DATA = {
    "2d-binary": ("[32,32]", "2"),
    "2d-multiclass": ("[32,48]", "4"),
    "3d": ("[16,16,16]", "3"),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_fit_test_and_predict(method: Path, data: str, fit, tmp_path: Path) -> None:
    size, classes = DATA[data]
    root, out = tmp_path / "data", tmp_path / "out"
    options = ["--data", "Synthetic", "--data.root", str(root), "--data.num_cases", "10", "--data.size", size]
    options += ["--data.num_scene_classes", classes, "--data.labeled_fraction", "0.5"]
    run = fit("--config", str(method), *options)

    assert main(["test", "--run", str(run)]) == 0
    assert len(CaseTable.read_csv(run / "cases.csv")) == 2
    assert (run / "figures" / "cases-test.png").exists()

    checkpoint = run / "checkpoints" / "best.ckpt"
    preprocessing = torch.load(checkpoint, weights_only=True)["preprocessing"]
    loaded = SegmentationMethod.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    grid = preprocessing["image_size"] or preprocessing["patch_size"]
    image = torch.randn(1, preprocessing["in_channels"], *grid)
    with torch.no_grad():
        logits = loaded(image)
        assert logits.shape == (1, int(classes), *grid)
        assert torch.equal(logits, loaded(image)), "something is random at inference"

    assert main(["predict", str(checkpoint), str(root / "images"), "--output", str(out), "--device", "cpu"]) == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in (root / "images").iterdir()}
