"""A grid file becomes the right cells, and says what is wrong with it in one line."""

from pathlib import Path

import pytest
import yaml

from semiseg.benchmark.grid import Cell, Plan, pairs, read_grid
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


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids_can_be_planned(path: Path) -> None:
    cells = cells_of(path)
    assert len({cell.folder for cell in cells}) == len(cells) > 0
    assert all(cell.steps > 0 for cell in cells if not cell.controls)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"metods": []}, "unknown key metods"),
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
        ({"labeled_fraction": [2.0]}, "labeled_fraction 2"),
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
        (["e.yaml", "--gpus", "99"], "--gpus 99: this machine has"),
        (["e.yaml", "--trainer.max_steps"], "write options of the runs as"),
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


def test_images_without_masks_do_not_stop_the_methods_that_need_masks(write_grid, tmp_path: Path) -> None:
    (cell,) = cells_of(write_grid())
    assert last(cell, "--data.ignore_unlabeled") == "true"
    (cell,) = cells_of(write_grid(options={"data.ignore_unlabeled": False}))
    assert last(cell, "--data.ignore_unlabeled") == "false"
