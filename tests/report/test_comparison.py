"""From run folders to cells, differences and tables; runs of different protocols never meet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from semiseg.cli import main
from semiseg.report.comparison import compare
from semiseg.report.published import names_of, published
from semiseg.report.runs import read_runs
from semiseg.report.tables import write_tables

CASES = [f"c{i}" for i in range(8)]  # of `make_run`


def comparison_of(tmp_path: Path, **options: Any) -> dict[str, Any]:
    runs, others = read_runs(tmp_path / "runs")
    comparison = compare(runs, others, "title", "command", **options)
    json.dumps(comparison, allow_nan=False)
    return comparison


def only(rows: list[dict[str, Any]], **where: Any) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return row


def test_a_cell_has_mean_and_interval_over_its_runs(make_run, tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.55, 0.65]
    for i, score in enumerate(scores):
        make_run("uamt", score, fold=i // 2, seed=i % 2, tests=("best-native", "last-native"))
    (cell,) = comparison_of(tmp_path)["cells"]
    assert (cell["dataset"], cell["labeled"], cell["method"], cell["runs"]) == ("glas", "10 %", "uamt", 4)
    assert cell["mean"]["dice"] == pytest.approx(np.mean(scores))
    assert cell["sd"]["dice"] == pytest.approx(np.std(scores, ddof=1))
    low, high = stats.t.interval(0.9, 3, loc=np.mean(scores), scale=stats.sem(scores))
    assert cell["ci90"]["dice"] == pytest.approx((high - low) / 2)
    assert cell["last"]["dice"] == pytest.approx(np.mean(scores) - 0.01)
    assert cell["minutes"] == 2.0


def test_one_run_has_no_interval(make_run, tmp_path: Path) -> None:
    make_run()
    (cell,) = comparison_of(tmp_path)["cells"]
    assert cell["ci90"]["dice"] is None


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 200},
        {"precision": "bf16-mixed"},
        {"trainer": {"accumulate_grad_batches": 4}},
        {"trainer": {"val_check_interval": 10}},
        {"labeled_epochs": 200},
        {"unlabeled_batch_size": 8},
        {"num_folds": 10},
        {"patch_size": [32, 32]},
        {"spacing": [1, 1]},
        {"cases": ["x", *CASES[1:]]},
        {"image_size": [256, 256]},
        {"split": "official"},
        {"split_seed": 3},
        {"batch_size": 8},
        {"tests": ("best-network",)},
        {"tests": ("best-native-threshold",)},
        {"cases": [*CASES, "c9"]},
    ],
    ids=str,
)
def test_other_protocols_are_kept_apart(other: dict, make_run, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run("supervised", 0.5, seed=seed)
    make_run("uamt", 0.9, **other)
    comparison = comparison_of(tmp_path)
    assert [protocol["id"] for protocol in comparison["protocols"]] == ["A", "B"]
    assert {cell["method"]: cell["protocol"] for cell in comparison["cells"]} == {"supervised": "A", "uamt": "B"}
    assert comparison["differences"] == []
    first, second = ([tuple(fact) for fact in protocol["facts"]] for protocol in comparison["protocols"])
    assert set(first) != set(second), "the page can not say what differs"


def test_budgets_of_data_sets_may_differ_within_a_protocol(make_run, tmp_path: Path) -> None:
    make_run(dataset="glas", steps=100)
    make_run(dataset="leftatrium", steps=6000)
    assert len(comparison_of(tmp_path)["protocols"]) == 1


def test_runs_of_one_method_with_other_options_are_rows_of_their_own(make_run, tmp_path: Path) -> None:
    make_run(seed=0)
    make_run(seed=1, model={"class_path": "Supervised", "init_args": {"loss": "ce", "network": None}})
    make_run(seed=0, experiment="f")
    names = [cell["method"] for cell in comparison_of(tmp_path)["cells"]]
    assert len(set(names)) == 3
    assert "supervised (f)" in names


def test_weights_are_part_of_the_recipe_but_not_their_fold(make_run, tmp_path: Path) -> None:
    def started(fold: int, first: str) -> dict:
        weights = f"runs/e/glas/{first}/labeled-1/fold-{fold}-seed-0/checkpoints/last.ckpt"
        return {"class_path": "Supervised", "init_args": {"network": {"init_args": {"weights": weights}}}}

    make_run("a", fold=0, model=started(0, "swta"))
    make_run("a", fold=1, model=started(1, "swta"))
    make_run("a", fold=2, model=started(2, "hpca"))
    assert sorted(cell["runs"] for cell in comparison_of(tmp_path)["cells"]) == [1, 2]


def test_controls_join_each_protocol_with_their_cases_and_do_not_make_one(make_run, tmp_path: Path) -> None:
    make_run("otsu", 0.3, control=True, tests=("best-native", "best-network"))
    make_run("supervised", 0.5, tests=("best-native", "best-network-threshold"))
    comparison = comparison_of(tmp_path)
    assert len(comparison["protocols"]) == 2
    assert [(c["protocol"], c["method"], c["control"]) for c in comparison["cells"]] == [
        ("A", "otsu", True), ("A", "supervised", False), ("B", "otsu", True), ("B", "supervised", False),
    ]  # fmt: skip
    assert comparison["ranks"] == []


def test_controls_of_other_cases_do_not_join(make_run, tmp_path: Path) -> None:
    make_run("otsu", 0.3, control=True, cases=["x", *CASES[1:]])
    make_run("mean_mask", 0.3, control=True, tests=("best-network",))
    make_run("supervised", 0.5)
    assert [cell["method"] for cell in comparison_of(tmp_path)["cells"]] == ["supervised"]


def test_the_baseline_of_each_experiment(make_run, tmp_path: Path) -> None:
    for experiment in ("e", "f"):
        make_run("supervised", 0.5, experiment=experiment)
        make_run("uamt", 0.6, experiment=experiment)
    rows = [row for row in comparison_of(tmp_path)["differences"] if row["metric"] == "dice"]
    assert {(row["method"], row["baseline"]) for row in rows} == {
        ("uamt (e)", "supervised (e)"), ("uamt (f)", "supervised (f)"),
    }  # fmt: skip


def test_a_copy_of_a_run_does_not_count_twice(make_run, tmp_path: Path) -> None:
    folder = make_run("supervised", 0.5)
    shutil.copytree(tmp_path / "runs/e", tmp_path / "runs/backup/e")
    shutil.copytree(folder, folder.with_name("fold-0-seed-0-old"))
    comparison = comparison_of(tmp_path)
    assert [cell["runs"] for cell in comparison["cells"]] == [1]
    assert sorted(row["error"].split(":")[0] for row in comparison["failures"])[0] == "not a run's folder"
    assert any("the same run as" in row["error"] for row in comparison["failures"])


DAMAGE = {
    "status.json": [
        "",
        "null",
        "[1]",
        '{"test": [1]}',
        '{"test": {"best-native": {}}}',
        '{"test": {"last-native": {}}}',
    ],
    "config.yaml": ["", "trainer: {}", "\x00", "data: {init_args: {}}"],
    "split.json": ["", "{}", "null"],
    "cases.csv": ["", "case,patient\nc0,p0\n", "case,dice\nc0,0.5\n", "case,patient,dice\nc0", "nonsense"],
}


@pytest.mark.parametrize(("file", "content"), [(file, text) for file, texts in DAMAGE.items() for text in texts])
def test_a_damaged_run_is_left_out_and_named(file: str, content: str, make_run, tmp_path: Path) -> None:
    make_run("fine")
    (make_run("damaged") / file).write_text(content)
    comparison = comparison_of(tmp_path)
    assert [cell["method"] for cell in comparison["cells"]] == ["fine"]
    assert [row["run"].split("/")[1] for row in comparison["failures"]] == ["damaged"]


def test_tables_that_contradict_each_other_are_not_compared(make_run, tmp_path: Path) -> None:
    make_run("supervised", 0.5)
    cases = make_run("uamt", 0.6) / "cases.csv"
    cases.write_text(cases.read_text().replace(",p0,", ",q,"))
    comparison = comparison_of(tmp_path)
    assert (len(comparison["cells"]), comparison["differences"]) == (2, [])
    assert "belongs to patient" in comparison["failures"][0]["error"]


def test_a_damaged_picture_costs_only_itself(make_run, tmp_path: Path) -> None:
    folder = make_run("fine")
    (folder / "figures/cases-test.png").write_bytes(b"no picture")
    comparison = comparison_of(tmp_path)
    assert len(comparison["cells"]) == 1
    assert comparison["panels"] == []


def test_differences_are_paired_and_corrected(make_run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.8, 8)
    for seed in (0, 1):
        make_run("supervised", base, seed=seed)
        make_run("better", base + 0.1, seed=seed)
        make_run("same", base, seed=seed)
    make_run("unpaired", 0.9, seed=5)
    rows = comparison_of(tmp_path)["differences"]
    better = only(rows, method="better", metric="dice")
    assert (better["mean"], better["low"], better["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert (better["patients"], better["runs"]) == (4, 2)
    assert better["p"] == pytest.approx(0.125)  # 2 / 2^4: four patients, all of one sign
    assert better["p_holm"] == pytest.approx(0.25)  # one of two comparisons
    assert only(rows, method="better", metric="hd95")["mean"] == pytest.approx(2.0)
    assert only(rows, method="better", metric="jaccard")["mean"] == pytest.approx(
        ((base + 0.1) / (1.9 - base) - base / (2 - base)).mean()
    )
    assert only(rows, method="same", metric="dice")["p_holm"] == 1.0
    assert not [row for row in rows if row["method"] == "unpaired"]


def test_ranks_need_every_method_in_a_cell(make_run, tmp_path: Path) -> None:
    for fraction in (0.1, 0.2, 0.5):
        make_run("a", 0.5, fraction=fraction)
        make_run("b", 0.6, fraction=fraction)
    make_run("c", 0.9, fraction=0.1)
    comparison = comparison_of(tmp_path)
    assert comparison["ranks"] == []
    make_run("c", 0.4, fraction=0.2)
    row = only(comparison_of(tmp_path)["ranks"], metric="dice")
    assert (row["methods"], row["ranks"], row["cells"]) == (["a", "b", "c"], [2.5, 1.5, 2.0], 2)
    smaller_is_better = only(comparison_of(tmp_path)["ranks"], metric="hd95")
    assert smaller_is_better["ranks"] == [1.5, 2.5, 2.0]


def test_initialisations_are_set_beside_scratch(make_run, tmp_path: Path) -> None:
    make_run("uamt", 0.5)
    make_run("uamt-from-swta", 0.6)
    row = only(comparison_of(tmp_path)["initialisations"], metric="dice")
    assert (row["method"], row["start"], row["scratch"], row["pretrained"]) == ("uamt", "swta", 0.5, 0.6)


def test_curves_and_panels(make_run, tmp_path: Path) -> None:
    make_run(seed=0)
    (make_run(seed=1) / "metrics.csv").write_text("step,val/dice\n49,0.5\n99,0.6\n")
    comparison = comparison_of(tmp_path)
    curve = only(comparison["curves"], method="supervised")
    assert (curve["step"], curve["mean"], curve["low"], curve["high"]) == (
        [50, 100],
        [0.4, 0.6],
        [0.3, 0.6],
        [0.5, 0.6],
    )
    assert only(comparison["panels"], method="supervised")["width"] == 640


def test_what_failed_or_was_not_tested_is_listed(make_run, tmp_path: Path) -> None:
    make_run("fine")
    for method, status in {
        "failed": {"state": "failed", "error": "loss is not a number"},
        "untested": {"state": "done", "best_val_dice": 0.5},
        "killed": {"state": "running", "step": 7},
        "first_stage": {"state": "done"},
    }.items():
        folder = make_run(method)
        (folder / "status.json").write_text(json.dumps(status))
        if method == "first_stage":
            (folder / "cases.csv").unlink()
    damaged = make_run("damaged")
    (damaged / "config.yaml").unlink()
    failures = {row["run"].split("/")[1]: row["error"] for row in comparison_of(tmp_path)["failures"]}
    assert failures.keys() == {"failed", "untested", "killed", "damaged"}
    assert failures["failed"] == "failed: loss is not a number"
    assert "semiseg test --run" in failures["untested"]
    assert "step 7" in failures["killed"]


def test_published_numbers_stand_beside_ours(make_run, tmp_path: Path) -> None:
    make_run("uamt", fraction=0.2, tests=("best-native", "best-network"))
    comparison = comparison_of(tmp_path)
    paper = next(
        p for p in published()
        if (p.source, p.dataset, p.fraction, p.method, p.metric) == ("Hebbian 2025", "glas", 0.2, "UAMT", "dice_pooled")
    )  # fmt: skip
    native, network = (
        {(p["source"], p["metric"]): p for p in cell["published"]}
        for cell in sorted(comparison["cells"], key=lambda cell: cell["protocol"])
    )
    if ("Hebbian 2025", "hd95") in native:
        native, network = network, native
    assert network["Hebbian 2025", "dice_pooled"]["mean"] == paper.mean
    assert ("Hebbian 2025", "hd95") not in native, "distances in pixels of other images"
    others = {row["method"] for row in comparison["published_only"]}
    assert "CPS" in others
    assert "UAMT" not in others


def test_published_units() -> None:
    rows = {(p.dataset, p.fraction, p.method, p.metric): p for p in published() if p.source == "Hebbian 2025"}
    assert rows["glas", 0.2, "CPS", "dice_pooled"].mean == pytest.approx(0.8390)
    assert rows["glas", 0.2, "CPS", "dice_pooled"].ci90 == pytest.approx(0.0051)
    assert 1 < rows["glas", 0.2, "CPS", "hd95"].mean < 100
    assert ("leftatrium", 0.2, "UAMT", "dice_pooled") in rows


def test_published_names() -> None:
    assert 0.4 < min(p.mean for p in published() if p.metric == "dice_pooled" and p.dataset == "glas") < 1
    assert names_of("supervised-from-hebbian_swta_tsa") == ["Hebbian SWTA-TSA"]
    assert names_of("supervised-from-hebbian_swta_tsa_k50") == ["Hebbian SWTA-TSA inverse_temperature=50"]
    assert names_of("linear_probe-from-hebbian_swta_tsa") == ["Hebbian SWTA-TSA linear probe"]
    assert names_of("bcp") == []
    known = {p.method for p in published()}
    for ours in ("supervised", "entropy_minimization", "cct", "uamt", "cps", "urpc", "dtc"):
        assert set(names_of(ours)) <= known


def test_tables(make_run, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run("supervised", 0.5 + seed / 10, seed=seed)
        make_run("ua_mt|&", 0.7, seed=seed)
    make_run("otsu", 0.9, control=True)
    write_tables(comparison_of(tmp_path), tmp_path)
    markdown = (tmp_path / "results.md").read_text()
    assert r"| ua\_mt\|\& | 2 | **70.00 ± 0.00**" in markdown
    assert "| supervised | 2 | 55.00 ± 31.57" in markdown
    assert "| otsu | 1 | 90.00 |" in markdown, "a control is not the best method"
    latex = (tmp_path / "results.tex").read_text()
    assert r"ua\_mt\textbar{}\& & \textbf{70.00 $\pm$ 0.00}" in latex
    assert r"supervised & \underline{55.00 $\pm$ 31.57}" in latex
    assert latex.count("{") == latex.count("}")
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert rows[0].startswith("protocol,dataset,labeled,method,runs,metric,mean,sd,ci90")
    assert (tmp_path / "differences.csv").read_text().count("\n") > 1


def test_the_command(make_run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs, out = str(tmp_path / "runs"), tmp_path / "out"
    assert main(["report", runs]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert main(["report", runs]) == 2
    assert "holds no run" in capsys.readouterr().err
    folder = make_run("untested")
    tested = (folder / "status.json").read_text()
    (folder / "status.json").write_text('{"state": "done", "best_val_dice": 0.5}')
    assert main(["report", runs]) == 2
    assert "no run of a method was tested yet" in capsys.readouterr().err
    (folder / "status.json").write_text(tested)
    assert main(["report", runs, "--baseline", "nothing"]) == 2
    assert "--baseline nothing: no run of it; there are untested" in capsys.readouterr().err
    assert main(["report", runs, "--output", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"index.html", "results.csv", "differences.csv", "results.md", "results.tex"}


def test_the_wandb_report_finds_the_runs_by_group_and_method(make_run, tmp_path: Path) -> None:
    interface = pytest.importorskip("wandb_workspaces.reports.v2.interface", reason="wandb-workspaces is not installed")
    from semiseg.report.workspace import make_report

    make_run("supervised", fraction=0.05)
    make_run("uamt", fraction=0.05)
    report = make_report(comparison_of(tmp_path), "team", "project")
    answer = {"project": {"internalId": "1"}}
    with mock.patch.object(interface, "_get_api"), mock.patch.object(interface, "execute_graphql", return_value=answer):
        spec = json.loads(report._to_model().spec.model_dump_json(by_alias=True))
    (grid,) = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    (runs,) = grid["metadata"]["runSets"]
    (rule,) = runs["filters"]["filters"]
    assert (rule["key"], rule["op"], rule["value"]) == ({"section": "run", "name": "group"}, "=", "glas/labeled-0.05")
    assert runs["grouping"] == [{"section": "config", "name": "method.value"}]
    panels = [panel["config"] for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]
    metrics = {name for panel in panels for name in panel.get("metrics") or []}
    assert {"val/dice", "test/dice", "test/dice_pooled"} <= metrics
    assert "| uamt | 1 |" in json.dumps(spec)


@pytest.mark.parametrize(
    ("target", "says"), [("me", "give ENTITY/PROJECT"), ("me/project", "page and tables were written")]
)
def test_wandb_refusals_are_one_line(
    target: str, says: str, make_run, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    make_run()
    assert main(["report", str(tmp_path / "runs"), "--wandb", target]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
