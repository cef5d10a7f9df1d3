"""Each file of a run folder, damaged or changed, through the report: it is named, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from semiseg.cli import main
from semiseg.errors import UserError
from semiseg.report import runs as module
from semiseg.report.comparison import compare
from semiseg.report.runs import read_runs
from semiseg.running.folder import RunFolder
from semiseg.running.results import why_stale

FILES = ("status.json", "config.yaml", "split.json", "cases.csv", "cases-last.csv", "metrics.csv")


def damaged(make_run: Callable[..., Path], damage: Callable[[Path], None]) -> tuple[list[str], dict[str, Any]]:
    """What the report says of a run that was damaged beside one that is fine, and the comparison."""
    folder = make_run("damaged", 0.7, tests=("best-native", "last-native"))
    make_run("fine", 0.5)
    damage(folder)
    runs, others = read_runs(folder.parents[4])
    comparison = compare(runs, others, "title", "command")
    cells = {cell["method"]: cell for cell in comparison["cells"]}
    assert cells["fine"]["mean"]["dice"] == pytest.approx(0.5)
    assert cells.keys() == {"fine"} or cells["damaged"]["mean"]["dice"] == pytest.approx(0.7)
    (said,) = [row["error"] for row in comparison["failures"] if "/damaged/" in row["run"]]
    return said, cells


def changed(path: Path, change: Callable[[dict], Any]) -> None:
    """Change the content of a JSON or YAML file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))


def link_out(path: Path) -> None:
    outside = path.parents[6] / path.name
    shutil.move(path, outside)
    path.symlink_to(outside)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "is missing"),
    "emptied": (lambda path: path.write_text(""), ""),
    "cut": (lambda path: path.write_text(path.read_text(encoding="utf-8")[: path.stat().st_size // 2]), ""),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 20), "UTF-8"),
    "deep": (lambda path: path.write_text("[" * 30_000), ""),
    "a FIFO": (fifo, "not a regular file"),
    "a link out of the folder": (link_out, "leads out of the run's folder"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ""),
    "a list": (lambda path: path.write_text("[]\n"), ""),
    "too large": (lambda path: os.truncate(path, 2**33), "larger than 16 MiB"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named(file: str, way: str, make_run) -> None:
    damage, says = WAYS[way]
    said, cells = damaged(make_run, lambda folder: damage(folder / file))
    assert file in said
    assert says in said
    assert "cannot be read (" not in said, "an exception that nobody foresaw"
    assert ("damaged" in cells) == (file == "metrics.csv")


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("status.json", {"test": []}, "test is [], not dict"),
        ("status.json", {"test": {"best-native": 3}}, "best-native is 3"),
        ("status.json", {"test": {}, "best_val_dice": None}, "not tested"),
        ("status.json", {"seconds": "long"}, "seconds is 'long'"),
        ("status.json", {"seconds": float("inf")}, "seconds is inf"),
        ("status.json", {"versions": ["torch"]}, "versions is ['torch']"),
        ("status.json", {"versions": {"torch": [2]}}, "torch is [2]"),
        ("status.json", {"parameters": "many"}, "parameters is 'many'"),
        ("status.json", {"control": True}, "contradict each other"),
        ("status.json", {"best_step": []}, "best_step is []"),
        ("status.json", {"state": None}, "does not say that it is done"),
        ("config.yaml", {"trainer": []}, "trainer is []"),
        ("config.yaml", {"data": {"init_args": {"split": 3}}}, "split is 3"),
        ("config.yaml", {"model": "UAMT"}, "model is 'UAMT'"),
        ("config.yaml", {"model": {"init_args": {"network": {"init_args": {"weights": [1]}}}}}, "weights is [1]"),
        ("config.yaml", BOMB, "holds more than"),
        ("config.yaml", "a: &a [*a]\n", "refers to itself"),
        ("config.yaml", "a: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("split.json", {"test": ["c0"]}, "its hash is not that of its lists"),
        ("split.json", {"hash": "0" * 12}, "its hash is not that of its lists"),
        ("split.json", {"labeled_fraction": 0.05}, "not the name of its folder"),
        ("split.json", {"fold": 1}, "not the name of its folder"),
        ("split.json", {"num_folds": 10}, "contradict each other: num_folds is 10 and 5"),
        ("split.json", {"dataset": ["glas"]}, "dataset is ['glas']"),
        ("split.json", {"test": [1, 2]}, "something else than texts"),
    ],
)
def test_values_of_another_type_or_that_contradict_are_named(file: str, change: Any, says: str, make_run) -> None:
    def damage(folder: Path) -> None:
        if isinstance(change, str):
            (folder / file).write_text(change)
        else:
            changed(folder / file, lambda content: content.update(change))

    said, cells = damaged(make_run, damage)
    assert says in said
    assert "damaged" not in cells


def edited(old: str, new: str, file: str = "cases.csv") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda folder: changed(folder / "status.json", lambda s: s["test"]["best-native"].update(dice=0.99)),
            "dice of",
        ),
        (lambda folder: changed(folder / "status.json", lambda s: s["test"]["last-native"].update(asd=0.1)), "asd of"),
        (lambda folder: changed(folder / "status.json", lambda s: s["test"]["best-native"].pop("dice")), "lacks dice"),
        (edited("23.0", "1.0"), "cases.csv and status.json contradict each other: hd95 of best-native is 1 and 23"),
        (edited("23.0", "1.0", "cases-last.csv"), "cases-last.csv and status.json contradict each other"),
        (edited("0.7", "0.99"), "the dice of case c0 does not follow from its other columns"),
        (edited("0.7", "5"), "the dice of case c0 is 5"),
        (edited("23.0", "-23.0"), "the hd95 of case c0 is -23"),
        (edited("23.0", "1e999"), "the hd95 of case c0 is not a number: '1e999'"),
        (edited("700000000.0", "700000000.5"), "the tp_gland of case c0 is 7e+08"),
        (edited("tp_gland", "tq_gland"), "lacks the column(s) tp_CLASS"),
        (edited("fp_gland", "fq_gland"), "lacks the column(s) fp_gland"),
        (edited("c0,", "c9,"), "holds 7 of the 8 test cases of split.json and 1 others, such as c0, c9"),
        (edited("c0,", "c1,"), "the case c1 is there twice"),
        (lambda folder: (folder / "cases.csv").write_text("case,patient\n"), "holds 0 of the 8 test cases"),
    ],
)
def test_scores_are_those_of_the_table_and_of_the_status(damage: Callable[[Path], Any], says: str, make_run) -> None:
    said, cells = damaged(make_run, damage)
    assert says in said
    assert "damaged" not in cells


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("step,val/dice\n49,0.3\n", "lacks the best validation, Dice 0.6 at step 100"),
        ("step,val/dice\n49,0.9\n99,0.6\n", "or has a better one"),
        ("step,val/dice\n99,0.6\n", None),
        ("step,val/dice\n9,0.3\n99,0.6\n", "lacks validations between the first, at step 10, and the end"),
        ("step,val/dice\n49,0.3\n49,0.4\n99,0.6\n", "step '49'"),
        ("step,val/dice\nx,0.3\n99,0.6\n", "step 'x'"),
        ("step,val/dice\n49,nan\n99,0.6\n", "val/dice of 'nan'"),
        ("val/dice\n0.6\n", "lacks the column(s) step"),
    ],
)
def test_a_learning_curve_is_whole_or_left_out(text: str, says: str | None, make_run) -> None:
    folder = make_run()
    (folder / "metrics.csv").write_text(text)
    (run,), others = read_runs(folder.parents[4])
    assert bool(run.validation) == (says is None)
    assert [says in reason and "no learning curve" in reason for _, reason in others] == [True] * (says is not None)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b"no picture"), "is damaged or not a picture"),
        (lambda path: Image.new("1", (10_000, 10_000)).save(path), "has 10000 x 10000 pixels"),
        (link_out, "leads out of the run's folder"),
        (fifo, "not a regular file"),
    ],
)
def test_a_damaged_picture_costs_only_itself(
    damage: Callable[[Path], Any], says: str, make_run, recwarn: pytest.WarningsRecorder
) -> None:
    folder = make_run("fine")
    damage(folder / "figures/cases-test.png")
    comparison = compare(*read_runs(folder.parents[4]), "title", "command")
    assert len(comparison["cells"]) == 1
    assert comparison["panels"] == []
    (failure,) = comparison["failures"]
    assert failure["error"].startswith("no picture: figures/cases-test.png")
    assert says in failure["error"]
    assert not recwarn.list


def test_a_test_of_an_earlier_checkpoint_is_not_taken(make_run) -> None:
    folder = make_run(tests=("best-native", "last-native"))
    changed(folder / "status.json", lambda status: status["test"]["last-native"].update(step=40))
    (run,), ((name, reason),) = read_runs(folder.parents[4])
    assert name.startswith("glas/supervised/")
    assert "cases-last: tested at step 40, trained on since: its last checkpoint is of step 100 now" in reason
    assert "--checkpoint last" in reason
    assert run.summaries.keys() == {"best-native"}
    changed(folder / "status.json", lambda status: status["test"]["best-native"].update(step=20))
    runs, (*_, (_, reason)) = read_runs(folder.parents[4])
    assert runs == []
    assert "tested at step 20, trained on since: its best checkpoint is of step 100 now" in reason
    assert f"semiseg test --run {folder}" in reason


def test_what_is_stale(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    status = {"step": 400, "best_step": 380, "test": {"best-native": {"step": 380}, "last-native": {"step": 380}}}
    assert why_stale(folder, status, "best-native") is None
    assert why_stale(folder, status, "last-native") is not None
    assert why_stale(folder, {**status, "best_step": None}, "best-native") is not None
    assert why_stale(folder, {**status, "test": {"best-native": {}}}, "best-native") is None, "recorded no step"


def test_a_test_that_recorded_no_step_is_taken_with_a_note(make_run) -> None:
    folder = make_run()
    changed(folder / "status.json", lambda status: status["test"]["best-native"].pop("step"))
    comparison = compare(*read_runs(folder.parents[4]), "title", "command")
    assert len(comparison["cells"]) == 1
    (note,) = comparison["protocols"][0]["notes"]
    assert "the test of glas/supervised/labeled-0.1/fold-0-seed-0 recorded no step" in note


@pytest.mark.parametrize("state", ["running", "failed", "interrupted", 3])
def test_a_run_that_is_not_finished_is_not_taken(state: Any, make_run) -> None:
    said, cells = damaged(make_run, lambda f: changed(f / "status.json", lambda s: s.update(state=state, step=20)))
    assert "damaged" not in cells
    assert {"running": "at step 20, running or killed", "failed": "failed", 3: "state is 3"}.get(state, state) in said


def test_a_control_that_stands_beside_no_run_is_named(make_run) -> None:
    make_run("supervised")
    folder = make_run("otsu", 0.3, control=True, num_folds=10)
    comparison = compare(*read_runs(folder.parents[4]), "title", "command")
    assert [cell["method"] for cell in comparison["cells"]] == ["supervised"]
    assert "no run has its split" in comparison["failures"][0]["error"]


def test_folders_are_found_without_following_links(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    (tmp_path / "runs/e/again").symlink_to(tmp_path / "runs")
    (tmp_path / "runs/e/self").symlink_to("self")
    (folder / "wandb/files").mkdir(parents=True)
    (folder / "wandb/files/config.yaml").touch()
    (folder / "figures/back").symlink_to("..")
    runs, others = read_runs(tmp_path / "runs")
    assert len(runs) == 1
    assert [(name.endswith("runs/e/again"), "is a link" in reason) for name, reason in others] == [(True, True)]
    monkeypatch.setattr(module, "MAX_FOLDERS", 3)
    with pytest.raises(UserError, match="more than 3 folders"):
        read_runs(tmp_path / "runs")
    monkeypatch.undo()
    (tmp_path / "runs" / "/".join("x" * 20)).mkdir(parents=True)
    with pytest.raises(UserError, match="16 deep"):
        read_runs(tmp_path / "runs")


def test_names_are_not_obeyed(make_run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_run("=HYPERLINK(1)", cases=["=1+1", "-x", "'=y", "+z", "a", "b", "c", "d"])
    make_run("red\x1b[31m [bold]<b>|`*", 0.7)
    make_run(os.fsdecode(b"byte\xff"), 0.6)
    make_run("failed\x1b[31m", state="failed")
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "runs"), "--output", str(out), "--title", "\x1b<i>|[x](y)"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert r"failed\x1b[31m" in said.out
    for file in out.iterdir():
        assert "\x1b" not in file.read_text(encoding="utf-8"), file
    assert "'=HYPERLINK(1)," in (out / "results.csv").read_text(encoding="utf-8")
    assert r"| red\\x1b\[31m \[bold\]\<b\>\|\`\* |" in (out / "results.md").read_text(encoding="utf-8")
    assert r"# \\x1b\<i\>\|\[x\](y)" in (out / "results.md").read_text(encoding="utf-8")
    assert r"red\textbackslash{}x1b{[}31m {[}bold{]}\textless{}b\textgreater{}\textbar{}`{*} &" in (
        out / "results.tex"
    ).read_text(encoding="utf-8")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<title>\\x1b&lt;i&gt;|[x](y)</title>" in page
    assert "<b>|" not in page
