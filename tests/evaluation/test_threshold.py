"""The threshold that is best on validation, alone and through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from semiseg.cli import main
from semiseg.evaluation.threshold import best_threshold


def mean_dice(cases: list[tuple[torch.Tensor, torch.Tensor]], threshold: float) -> float:
    scores = []
    for probability, target in cases:
        predicted = probability > threshold
        total = predicted.sum() + target.sum()
        scores.append(1.0 if total == 0 else float(2 * (predicted & (target == 1)).sum() / total))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed: int) -> None:
    torch.manual_seed(seed)
    cases = []
    for size in ((9, 11), (20, 7), (5, 6, 4)):
        target = torch.randint(0, 2, size)
        probability = (0.3 * torch.rand(size) + 0.05 * target + 0.02 * seed).clamp(0, 1)
        cases.append(((probability * 1000).round() / 1000 + 1e-4, target))  # on no threshold, whatever the rounding
    cases.append((torch.full((4, 4), 0.1234), torch.zeros(4, 4, dtype=torch.long)))  # an empty mask
    chosen = best_threshold(cases)
    assert mean_dice(cases, chosen) == pytest.approx(max(mean_dice(cases, k / 100) for k in range(1, 100)))


def test_of_equally_good_ones_the_nearest_to_argmax() -> None:
    target = torch.tensor([0, 1])
    assert best_threshold([(torch.tensor([0.001, 0.999]), target)]) == 0.5
    assert best_threshold([(torch.tensor([0.001, 0.303]), target)]) == pytest.approx(0.3)
    assert best_threshold([(torch.tensor([0.695, 0.999]), target)]) == pytest.approx(0.7)
    assert best_threshold([(torch.tensor([0.0, 1.0]), target)]) == 0.5


def test_a_test_searches_on_validation_only_where_asked(fit, tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = ("--data", "Synthetic", "--data.root", str(root), "--data.num_cases", "10", "--data.size", "[32,32]")
    run = fit(*data)
    assert main(["test", "--run", str(run)]) == 0
    assert main(["test", "--run", str(run), "--model.threshold", "validation"]) == 0
    tests = json.loads((run / "status.json").read_text())["test"]
    assert tests["best-native"]["threshold"] == 0.5
    assert tests["best-native-threshold"]["threshold"] != 0.5, "four steps do not calibrate a network"
    assert (run / "cases-threshold.csv").read_text() != (run / "cases.csv").read_text()

    chosen = tests["best-native-threshold"]["threshold"]
    split = json.loads((run / "split.json").read_text())
    for case in split["test"]:  # what is tested has no say
        path = next((root / "masks").glob(f"{case}.*"))
        path.write_bytes(next(p for p in (root / "masks").iterdir() if p != path).read_bytes())
    del split["content"]  # else the test is refused, as the masks are others
    (run / "split.json").write_text(json.dumps(split))
    assert main(["test", "--run", str(run), "--model.threshold", "validation"]) == 0
    assert json.loads((run / "status.json").read_text())["test"]["best-native-threshold"]["threshold"] == chosen


def test_more_classes_have_no_threshold(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = ["--data", "Synthetic", "--data.root", str(tmp_path), "--data.num_cases", "10", "--data.size", "[32,32]"]
    options = ["--data.num_scene_classes", "3", "--model.threshold", "validation", "--runs_dir", str(tmp_path / "runs")]
    assert main(["fit", *data, *options]) == 2
    assert "--model.threshold validation: there are 3 classes" in capsys.readouterr().err
