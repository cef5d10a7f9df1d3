"""A grid file becomes the right cells, and says what is wrong with it in one line."""

import datetime
from pathlib import Path

import pytest
import yaml

from semiseg.benchmark.engines import Share
from semiseg.benchmark.grid import read_grid
from semiseg.benchmark.plan import Cell, Plan, pairs
from semiseg.cli import main
from semiseg.errors import UserError
from semiseg.running.configs import config_folder

GRIDS = sorted((config_folder() / "benchmark").glob("*.yaml"))


def cells_of(path: Path, *extra: str, labeled: int = 7) -> list[Cell]:
    grid = read_grid(path)
    return Plan(grid, Path("runs"), extra=extra).cells([entry.name for entry in grid.data], lambda *where: labeled)


def last(cell: Cell, option: str) -> str:
    return [value for name, value in pairs(cell.arguments) if name == option][-1]


def test_every_combination_once_first_stages_first(write_grid) -> None:
    cells = cells_of(
        write_grid(
            methods=["supervised", {"config": "uamt", "starts": ["scratch", "hpca"], "labeled_fraction": [0.5]}],
            first_stages=[{"config": "hebbian_hpca_tsa", "name": "hpca"}],
            labeled_fraction=[0.5, 1.0],
            folds=[0, 1],
            seeds=[0, 3],
        )
    )

    assert len({cell.folder for cell in cells}) == len(cells) == 2 * 2 * (1 + 2 + 2)
    names = [str(cell.folder.relative_to("runs/e/synthetic2d")) for cell in cells]
    assert names[:5] == [
        "hpca/labeled-1/fold-0-seed-0",
        "supervised/labeled-0.5/fold-0-seed-0",
        "supervised/labeled-1/fold-0-seed-0",
        "uamt/labeled-0.5/fold-0-seed-0",
        "uamt-from-hpca/labeled-0.5/fold-0-seed-0",
    ]
    for place, cell in enumerate(cells):
        if cell.after is not None:
            assert cell.after.name == cell.folder.name, "one first stage for each fold and seed"
            assert cell.after in [before.folder for before in cells[:place]]
            assert last(cell, "--model.network.weights") == str(cell.after / "checkpoints/last.ckpt")
    assert {last(cell, "--seed_everything") for cell in cells} == {"0", "3"}


def test_later_layers_win(write_grid) -> None:
    grid = write_grid(
        methods=[{"config": "uamt", "options": {"trainer.max_steps": 5}}, "cps"],
        first_stages=["hebbian_hpca_tsa"],
        options={"trainer.max_steps": 7, "data.batch_size": 3, "model.threshold": "validation"},
        tests=["best-network"],
    )
    pretraining, uamt, cps = cells_of(grid)
    assert (pretraining.steps, uamt.steps, cps.steps) == (400, 5, 7)  # 400: its file's; the grid's is for its methods
    assert [last(cell, "--data.batch_size") for cell in (pretraining, uamt, cps)] == ["3"] * 3
    assert list(cps.tests) == ["best-network-threshold"]

    pretraining, uamt, cps = cells_of(grid, "--trainer.max_steps", "9", "--data.batch_size", "2")
    assert (pretraining.steps, uamt.steps, cps.steps) == (400, 9, 9)
    assert [last(cell, "--data.batch_size") for cell in (pretraining, uamt, cps)] == ["2"] * 3


def test_the_published_budget_counts_labeled_images(write_grid) -> None:
    (cell,) = cells_of(write_grid(protocol="published", options={"data.batch_size": 2}), labeled=7)
    assert cell.steps == 200 * 4
    assert list(cell.tests) == ["best-native-threshold"]
    (cell,) = cells_of(write_grid(protocol="published", options={"trainer.max_steps": 9}))
    assert cell.steps == 9, "what is said beside the protocol wins"
    first, _ = cells_of(write_grid(first_stages=["published/hebbian_hpca_tsa"], starts=["hebbian_hpca_tsa"]), labeled=9)
    assert first.steps == 200 * 3, "batches of 4"


def test_the_digest_follows_what_a_run_computes(write_grid, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("model: {class_path: Supervised, init_args: {loss: dice}}")

    def digest(**keys) -> str:
        return cells_of(write_grid(**{"methods": [str(own)], **keys}))[0].digest

    before = digest()
    assert digest() == before
    assert digest(seeds=[1]) != before
    assert digest(options={"trainer.max_steps": 9}) != before
    elsewhere = {
        "config": "synthetic2d",
        "options": {"data.root": "elsewhere", "data.num_cases": 10, "data.size": [32, 32]},
    }
    assert digest(data=[elsewhere]) == before
    own.write_text("model: {class_path: Supervised, init_args: {loss: ce}}")
    assert digest() != before


def test_data_dir_is_where_the_data_sets_are(write_grid) -> None:
    grid = read_grid(write_grid(data=["glas", "ph2"]))
    arguments = Plan(grid, Path("runs"), Path("/somewhere")).data_arguments(grid.data[1])
    assert ("--data.root", "/somewhere/PH2") in list(pairs(arguments))
    grid = read_grid(write_grid(data=[{"config": "ph2", "options": {"data.root": "own"}}]))
    roots = [
        v for n, v in pairs(Plan(grid, Path("runs"), Path("/x")).data_arguments(grid.data[0])) if n == "--data.root"
    ]
    assert roots == ["own"]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids_can_be_planned(path: Path) -> None:
    cells = cells_of(path)
    assert len({cell.folder for cell in cells}) == len(cells) > 0
    assert all(cell.steps > 0 for cell in cells if not cell.controls)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"metods": []}, "unknown key metods"),
        ({"folds": []}, "folds is missing"),
        ({"tests": []}, "tests is missing"),
        ({"controls": "no"}, "controls: 'no'; use true or false"),
        ({"methods": [{"config": "uamt", "labeled_fraction": ["a"]}]}, "labeled_fraction: 'a' is not a number"),
        ({"methods": [{"config": "uamt", "labeled_count": [2]}]}, "unknown key labeled_count"),
        ({"methods": [{"config": "uamt", "name": "a/b"}]}, "name 'a/b'; use letters"),
        ({"methods": [{"config": "uamt", "name": "otsu"}]}, "name 'otsu'"),
        ({"methods": ["hebbian_hpca_tsa"]}, "methods: hebbian_hpca_tsa (HebbianPretrain) belongs under first_stages"),
        ({"first_stages": ["uamt"]}, "first_stages: uamt (UAMT) belongs under methods"),
        ({"first_stages": ["hebbian_hpca_tsa", "hebbian_hpca_tsa"]}, "two are named hebbian_hpca_tsa"),
        ({"options": {"data.fold": 1}}, "option data.fold: a grid decides that"),
        ({"options": {"model.network.init_args.weights": "x"}}, "a grid decides that"),
        ({"options": {"trainer.max_steps": "abc"}}, "option trainer.max_steps: 'abc'; use a whole number"),
        ({"options": {"trainer.max_steps": None}}, "option trainer.max_steps"),
        ({"options": {"model.threshold": "["}}, "option model.threshold: '[' is no value"),
        ({"options": {"model": {"threshold": "argmax"}}}, "write options by their dotted names, model.threshold"),
        ({"options": {"trainer.max_time": datetime.date(2024, 1, 1)}}, "put it in quotes"),
        ({"data": [{"config": "synthetic2d", "options": {"trainer.max_steps": 3}}]}, "a data set's options are data.*"),
        ({"data": ["supervised.yaml"]}, "data supervised.yaml: no such file"),
        ({"methods": []}, "methods is missing"),
        ({"methods": ["umat"]}, "method umat: no such file; shipped are advent, bcp"),
        ({"methods": [{"config": "uamt", "option": {}}]}, "unknown key option"),
        ({"folds": 3}, "folds: 3 is not a list; write [3]"),
        ({"folds": [0.5]}, "folds: 0.5 is not a whole number"),
        ({"seeds": [1, 1]}, "seeds: a value occurs twice"),
        ({"labeled_count": [2]}, "either labeled_fraction or labeled_count"),
        ({"starts": ["hebbian"]}, "starts names hebbian, which is not among first_stages"),
        ({"tests": ["best"]}, "tests: best is unknown"),
        ({"options": ["a"]}, "options: ['a']"),
        ({"protocol": "fair"}, "protocol fair: no such file; shipped are honest, published"),
        ({"methods": ["uamt", {"config": "cps", "name": "uamt"}]}, "two entries of the grid share this name"),
        ({"data": ["synthetic2d", "synthetic2d"]}, "the data set synthetic2d twice"),
        ({"data": ["glas"]}, "data/GlaS: no such folder"),
        ({"folds": [7]}, "--data.fold 7 is out of range"),
        ({"folds": [10**9]}, "folds: 1000000000 is not a whole number from 0 to 1000000"),
        ({"folds": [*range(200)], "seeds": [*range(200)]}, "the grid has 40000 runs, and at most 20000"),
        ({"seeds": [2**40]}, "seeds: 1099511627776 is not a whole number from 0 to 4294967295"),
        ({"labeled_fraction": [2.0]}, "labeled_fraction: 2.0 is not a number from 1e-06 to 1"),
        ({"labeled_fraction": [0]}, "labeled_fraction: 0 is not a number"),
        ({"labeled_fraction": [10**400]}, "is not a number from 1e-06 to 1"),
        ({"labeled_fraction": [float("nan")]}, "labeled_fraction: nan is not a number"),
        ({"labeled_fraction": [0.12345678]}, "0.12345678 has more than six digits"),
        ({"labeled_fraction": [1, 1.0]}, "labeled_fraction: a value occurs twice"),
        ({"methods": ["uamt", {"config": "uamt"}]}, "methods: uamt is there twice"),
        ({"methods": [{"config": "uamt", "name": "x" * 101}]}, "methods: name 'xxx"),
        ({"methods": [{"config": "uamt", "options": {"data.root": "x"}}]}, "option data.root belongs to a data set"),
        ({"methods": [{"config": "uamt", "options": {"model.lamda": 1}}]}, "uamt: --model.lamda: UAMT has no such"),
        ({"methods": [{"config": "uamt", "starts": ["scratch", "scratch"]}]}, "starts: scratch occurs twice"),
        ({"first_stages": [{"config": "hebbian_hpca_tsa", "name": "scratch"}]}, "none can be named scratch"),
        ({"tests": ["best-native", "best-native"]}, "tests: best-native occurs twice"),
        ({"base": "e.yaml"}, "leads back to itself"),
        (
            {"options": {"trainer.max_stepz": 1}},
            "supervised: --trainer.max_stepz: no such option; did you mean --trainer.max_steps?",
        ),
        ({"options": {"nonsense": 1}}, "supervised: --nonsense: no such option"),
        ({"options": {"trainer.max_steps": 10**30}}, "use a whole number from 1 to 1000000000"),
        ({"options": {"trainer.max_time": "1h"}}, "supervised: --trainer.max_time"),
        ({"options": {"trainer.strategy": "fastest"}}, "supervised: --trainer.strategy fastest: unknown; use auto"),
        ({"options": {"trainer.devices": 10**9}}, "option trainer.devices: 1000000000; use a number"),
        ({"options": {"trainer.devices": "two"}}, "option trainer.devices: 'two'; use a number"),
        ({"options": {"model.network.widths": "abc"}}, "supervised: --model.network.widths"),
        ({"options": {"help": True}}, "option help: prints something and runs nothing"),
        ({"options": {"model.help": "UAMT"}}, "option model.help: prints something"),
        ({"options": {"data": "GlaS"}}, "option data: a grid decides that"),
        ({"options": {"ckpt_path": "x.ckpt"}}, "option ckpt_path: a grid decides that"),
    ],
)
def test_mistakes_are_one_line(keys: dict, says: str, write_grid, capsys: pytest.CaptureFixture) -> None:
    assert main(["benchmark", str(write_grid(**keys)), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.yaml"], "missing.yaml"),
        (["e.yaml", "--workers", "0"], "--workers 0"),
        (["e.yaml", "--workers", "1000000000"], "--workers 1000000000: use 1 to 10000"),
        (["e.yaml", "--workers", "1e9"], "invalid int value"),
        (["e.yaml", "--cpus", "1000000000"], "--cpus 1000000000: use 1 to 1000"),
        (["e.yaml", "--gpus", "nan"], "--gpus nan"),
        (["e.yaml", "--gpus", "0.0001"], "--gpus 0.0001: use a whole number, or a share"),
        (["e.yaml", "--gpus", "1.5"], "--gpus 1.5: use a whole number, or a share"),
        (["e.yaml", "--dry-run", "--measure", "1000000000"], "--measure 1000000000: use 1 to 100000"),
        (["e.yaml", "--address", "auto"], "leave one out"),
        (
            ["e.yaml", "--trainer.max_stepz", "3"],
            "--trainer.max_stepz: no such option; did you mean --trainer.max_steps?",
        ),
        (["e.yaml", "--gpus", "99"], "--gpus 99: this machine has"),
        (["e.yaml", "--trainer.max_steps"], "write options of the runs as"),
        (["e.yaml", "--seed_everything", "3"], "option seed_everything: a grid decides that"),
        (["e.yaml", "--measure", "3"], "--measure goes with --dry-run"),
    ],
)
def test_mistakes_of_the_command(arguments: list[str], says: str, write_grid, capsys: pytest.CaptureFixture) -> None:
    write_grid()
    assert main(["benchmark", *arguments, "--local"]) == 2
    assert says in capsys.readouterr().err


def test_a_place_that_cannot_be_written(write_grid, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert main(["benchmark", str(write_grid()), "--local", "--runs_dir", str(tmp_path / "file")]) == 2
    assert "--runs_dir" in capsys.readouterr().err


def test_a_grid_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(["a"]))
    with pytest.raises(UserError, match="holds no options"):
        read_grid(path)


def test_a_grid_may_be_laid_over_another(write_grid, tmp_path: Path) -> None:
    base = write_grid(options={"trainer.max_steps": 7, "data.batch_size": 3})
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"base": str(base), "seeds": [4], "options": {"trainer.max_steps": 9}}))
    (cell,) = cells_of(over)
    assert (cell.steps, last(cell, "--data.batch_size"), last(cell, "--seed_everything")) == (9, "3", "4")
    assert cell.folder.parts[1] == "over"


def test_the_papers_tables_compare_with_the_papers_settings() -> None:
    papers = [
        path
        for path in GRIDS
        if path.stem.removeprefix("quick_").startswith(("hebbian_", "diffusion_table", "diffusion_figure"))
    ]
    compared = {entry.config for path in papers for entry in read_grid(path).methods}
    own = {"supervised", "linear_probe", "diffusion_teacher_student"}
    assert {path.stem for path in compared if path.parent.name != "published"} == own
    assert len(compared) == len(own) + 6
    stages = {entry.config for path in papers for entry in read_grid(path).first_stages.values()}
    assert {path.parent.name for path in stages} == {"published"}


def test_images_without_masks_do_not_stop_the_methods_that_need_masks(write_grid, tmp_path: Path) -> None:
    (cell,) = cells_of(write_grid())
    assert last(cell, "--data.ignore_unlabeled") == "true"
    (cell,) = cells_of(write_grid(options={"data.ignore_unlabeled": False}))
    assert last(cell, "--data.ignore_unlabeled") == "false"


@pytest.mark.parametrize(
    ("devices", "processes"), [("auto", 1), (1, 1), (2, 2), ("3", 3), ([0, 1], 2), ("0,1", 2), (-1, 1), (None, 1)]
)
def test_the_processes_of_a_cell(devices: object, processes: int, write_grid, tiny_options) -> None:
    (cell,) = cells_of(write_grid(options={**tiny_options, "trainer.devices": devices}))
    assert cell.processes == processes
    assert Share(threads=2, processes=processes).cpus == 2 * processes


def test_counts_of_patients(write_grid) -> None:
    content = yaml.safe_load((path := write_grid()).read_text())
    del content["labeled_fraction"]
    path.write_text(yaml.safe_dump({**content, "labeled_count": [2], "controls": True}))
    run, controls = cells_of(path)
    for cell in (run, controls):
        assert last(cell, "--data.labeled_count") == "2"
        assert "--data.labeled_fraction" not in cell.arguments
        assert cell.folder.parts[-2] == "labeled-2-patients"


def test_each_test_is_of_its_checkpoint_and_resolution(write_grid) -> None:
    (cell,) = cells_of(write_grid(tests=["best-native", "last-network"]))
    assert cell.tests == {
        "best-native": ("--checkpoint", "best", "--data.evaluation", "native"),
        "last-network": ("--checkpoint", "last", "--data.evaluation", "network"),
    }


def test_the_protocol_lies_under_the_method(write_grid) -> None:
    (cell,) = cells_of(write_grid(methods=["linear_probe"], protocol="published"))
    files = [Path(value).stem for name, value in pairs(cell.arguments) if name == "--config"]
    assert files == ["synthetic2d", "published", "linear_probe"]


def test_an_entry_wins_over_the_grid(write_grid) -> None:
    data = [{"config": "synthetic2d", "options": {"data.batch_size": 3, "data.root": "x"}}]
    (cell,) = cells_of(write_grid(data=data, options={"data.batch_size": 2}))
    assert last(cell, "--data.batch_size") == "3"
    (cell,) = cells_of(write_grid(data=data, options={"data.batch_size": 2}), "--data.batch_size", "5")
    assert last(cell, "--data.batch_size") == "5"


def test_the_digest_follows_tests_and_first_stage_but_not_the_place(write_grid) -> None:
    def second(budget: int, runs: str = "runs", **keys) -> Cell:
        stage = {"config": "hebbian_hpca_tsa", "options": {"trainer.max_steps": budget}}
        grid = read_grid(write_grid(first_stages=[stage], starts=["hebbian_hpca_tsa"], **keys))
        return Plan(grid, Path(runs)).cells(["synthetic2d"], lambda *where: 7)[1]

    assert second(10).digest == second(10, runs="/elsewhere").digest
    assert second(10).digest != second(20).digest
    assert second(10).digest != second(10, tests=["best-native", "last-native"]).digest
