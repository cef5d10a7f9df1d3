"""`semiseg demo`: the main job from end to end on synthetic data, in a few minutes and without any download."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from semiseg.errors import UserError
from semiseg.evaluation.panels import contact_sheet, save_png
from semiseg.files import atomic_path
from semiseg.running.folder import RunFolder

SHORT = ("--trainer.max_steps", "200", "--trainer.val_check_interval", "100")
PRETRAIN = ("--config", "configs/method/hebbian_hpca_tsa.yaml", "--trainer.max_steps", "100")
FIRST_STAGE = "synthetic2d/hebbian_hpca_tsa/labeled-1/fold-0-seed-0"
RUNS = (
    ("2D, 5 % labels", "synthetic2d", "supervised", "0.05", SHORT),
    ("2D, 5 %, HPCA first", "synthetic2d", "hebbian", "0.05", SHORT),
    ("2D, all labels", "synthetic2d", "supervised", "1", SHORT),
    (
        *("3D, half the labels", "synthetic3d", "supervised", "0.5"),
        ("--trainer.max_steps", "80", "--trainer.val_check_interval", "40"),
    ),
)
COLUMNS = ("dice", "dice_ci90", "dice_pooled", "jaccard", "hd95", "asd")


def run_demo(main: Callable[[Sequence[str]], int], runs_dir: Path = Path("runs")) -> None:
    """Pretrain, train and test each run, then print one table and write it and the pictures to `runs/demo`.

    Args:
        main: the command line, which carries out `fit` and `test`.
        runs_dir: folder that holds all runs.

    Raises:
        UserError: a run failed; it has said why.
    """
    folder = runs_dir / "demo"
    place = ("--runs_dir", str(runs_dir), "--experiment", "demo")

    def carry_out(*command: str) -> None:
        if main(command):
            raise UserError(f"the demo stopped at: semiseg {' '.join(command)}")

    carry_out("fit", "--config", "configs/data/synthetic2d.yaml", *PRETRAIN, *place)
    table = Table("run", "cases", *COLUMNS, title="U-Net on synthetic images, test set")
    rows, panels = [], []
    for title, data, method, fraction, options in RUNS:
        run = folder / data / method / f"labeled-{fraction}" / "fold-0-seed-0"
        config = ("--config", f"configs/data/{data}.yaml", "--data.labeled_fraction", fraction)
        start = ("--model.network.weights", str(folder / FIRST_STAGE / "checkpoints" / "last.ckpt"))
        stage = start if method == "hebbian" else ()
        carry_out("fit", *config, "--method_name", method, *stage, *place, *options)
        carry_out("test", "--run", str(run))
        summary = RunFolder(run).status["test"]["best-native"]
        rows.append({"run": title, "cases": summary["num_cases"], **{name: summary[name] for name in COLUMNS}})
        table.add_row(title, str(summary["num_cases"]), *(f"{summary[name]:.3f}" for name in COLUMNS))
        panels.append(np.asarray(Image.open(run / "figures" / "cases-test.png")))
    with atomic_path(folder / "table.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    save_png(contact_sheet(panels, len(panels)), folder / "pictures.png")
    Console(width=110).print(table)
    print(f"filters that Hebbian pretraining learnt: {folder / FIRST_STAGE}/figures/filters.png")
    print(f"table: {folder}/table.csv\npictures (best, median and worst case of each run): {folder}/pictures.png")
