"""Folders of tested runs, and comparisons made up for the report page."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from semiseg.data.splits import Split
from semiseg.evaluation.cases import CaseTable
from semiseg.running.results import cases_name

CASES = [f"c{i}" for i in range(8)]
PIXELS = 10**9
METRICS = [
    {"key": "dice", "name": "Dice", "better": "higher", "unit": "", "description": "mean over cases"},
    {"key": "dice_pooled", "name": "Dice, pooled", "better": "higher", "unit": "", "description": "all pixels"},
    {"key": "jaccard", "name": "Jaccard", "better": "higher", "unit": "", "description": "mean over cases"},
    {"key": "hd95", "name": "HD95", "better": "lower", "unit": "mm or px", "description": "mean over cases"},
    {"key": "asd", "name": "ASD", "better": "lower", "unit": "mm or px", "description": "mean over cases"},
]
METHODS = {
    "supervised": "Supervised",
    "uamt": "UA-MT",
    "mean_teacher": "Mean Teacher",
    "fixmatch": "FixMatch",
    "unimatch": "UniMatch",
    "cps": "CPS",
    "cct": "CCT",
    "dtc": "DTC",
    "entropy": "Entropy minimisation",
    "hebbian": "Hebbian",
    "autoencoder": "Superpixel autoencoder",
    "em": "EM",
    "urpc": "URPC",
    "dct": "Deep co-training",
    "vicreg": "VICReg",
}
CONTROLS = {"foreground": "Everything foreground", "otsu": "Otsu threshold", "mean_mask": "Mean mask"}
FACTS = {
    "split": "k-fold, 5 folds, seed 0",
    "budget": "1200 steps",
    "checkpoint": "best on validation",
    "resolution": "native",
    "class": "argmax",
}


def empty() -> dict[str, Any]:
    """A comparison with every list empty but the metrics."""
    lists = ("protocols", "cells", "published_only", "differences", "ranks", "distributions", "curves")
    more = ("initialisations", "panels", "failures", "reference")
    head = {"title": "nothing yet", "made": "2026-11-21 17:00", "command": "semiseg report runs/none", "software": []}
    return {**head, "metrics": METRICS, **{key: [] for key in (*lists, *more)}}


def draw_panel(dice: random.Random) -> str:
    """Three cases (rows) of image, truth and prediction (columns) as a data URI."""
    picture = Image.new("RGB", (620, 640), "white")
    draw = ImageDraw.Draw(picture)
    for row in range(3):
        for column in range(3):
            x, y = 10 + 205 * column, 10 + 212 * row
            shade = dice.randint(20, 60)
            draw.rectangle((x, y, x + 190, y + 196), fill=(shade, shade, shade + 8))
            r = dice.randint(35, 75)
            fill = (150, 140, 160) if column == 0 else (0, 158, 115) if column == 1 else (230, 159, 0)
            draw.ellipse((x + 95 - r, y + 98 - r, x + 95 + r, y + 98 + r), fill=fill)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=50)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def make(
    datasets: tuple[str, ...] = ("glas",),
    fractions: tuple[float, ...] = (0.05, 0.2, 1.0),
    methods: int = 6,
    runs: int = 4,
    protocols: tuple[str, ...] = ("A",),
    cases: int = 16,
) -> dict[str, Any]:
    """A comparison in which every section has something to show; protocol B scores half of protocol A."""
    dice = random.Random(0)
    chosen = dict(list(METHODS.items())[:methods])
    page = empty() | {
        "title": "quick_" + datasets[0],
        "software": [["semiseg", "0.1.0"], ["torch", "2.13.0+cpu"], ["monai", "1.6.1"]],
        "reference": [
            ["Splits disjoint by patient", "No patient has images in two parts."],
            ["Same initial weights", "Run r of every method starts from the same weights and labelled cases."],
        ],
        "failures": [{"run": f"{datasets[0]}/uamt/fold-0-seed-0", "error": "out of memory\nasked for 2 GB"}],
        "protocols": [
            {
                "id": name,
                "facts": [[k, "4000 steps" if k == "budget" and name != "A" else v] for k, v in FACTS.items()],
                "notes": ["Scores are on the test part of each fold."],
            }
            for name in protocols
        ],
    }
    panel = draw_panel(dice)
    for protocol in protocols:
        for place, dataset in enumerate(datasets):
            for fraction in fractions:
                where = {"dataset": dataset, "labeled": f"{fraction * 100:g} %", "protocol": protocol}
                size = 1.0 if protocol == "A" else 0.5
                for rank, (method, name) in enumerate([*chosen.items(), *CONTROLS.items()]):
                    control = method in CONTROLS
                    centre = 0.55 + 0.3 * fraction**0.4 * (1 - 0.02 * place) + dice.gauss(0, 0.02) + 0.004 * rank
                    if control:
                        centre = 0.3 + 0.06 * list(CONTROLS).index(method)
                    add_cell(page, dice, where, fraction, method, name, control, size * centre, runs)
                    if control:
                        continue
                    spread = [max(0.0, min(1.0, size * dice.gauss(centre, 0.08))) for _ in range(cases)]
                    page["distributions"].append({**where, "method": method, "dice": [round(v, 4) for v in spread]})
                    steps = list(range(100, 1300, 100))
                    line = [size * centre * (1 - 0.6 * 0.75 ** (i + 1)) for i in range(12)]
                    bounds = {"low": [v - 0.015 for v in line], "high": [v + 0.015 for v in line]}
                    page["curves"].append({**where, "method": method, "step": steps, "mean": line, **bounds})
                    picture = {"src": panel, "width": 620, "height": 640}
                    page["panels"].append({**where, "method": method, **picture})
        if methods > 1:
            add_ranks(page, dice, protocol, list(chosen), len(datasets) * len(fractions))
    page["published_only"].append(
        {"dataset": datasets[0], "labeled": "5 %", "fraction": 0.05, "method": "VAE"}
        | {"source": "Hebbian 2025, Table 2", "metric": "dice_pooled", "mean": 0.74, "ci90": 0.01}
    )
    return page


def add_cell(
    page: dict[str, Any],
    dice: random.Random,
    where: dict[str, str],
    fraction: float,
    method: str,
    name: str,
    control: bool,
    centre: float,
    runs: int,
) -> None:
    """One cell and what belongs to it; distances fall as Dice grows."""
    scores = [centre + dice.gauss(0, 0 if control else 0.012) for _ in range(runs)]
    values = {
        "dice": scores,
        "dice_pooled": [v + 0.02 for v in scores],
        "jaccard": [v / (2 - v) for v in scores],
        "hd95": [60 * (1 - v) for v in scores],
        "asd": [15 * (1 - v) for v in scores],
    }
    values = {key: [round(v, 5) for v in list_] for key, list_ in values.items()}
    average = {key: mean(list_) for key, list_ in values.items()}
    sd = {key: stdev(list_) if runs > 1 else None for key, list_ in values.items()}
    half = {key: None if v is None else 2.35 * v / runs**0.5 for key, v in sd.items()}
    paper = {"source": "Hebbian 2025, Table 2", "metric": "dice_pooled", "mean": round(centre + 0.03, 3), "ci90": 0.011}
    page["cells"].append(
        {**where, "fraction": fraction, "method": method, "name": name, "control": control, "runs": runs, "failed": 0}
        | {"values": values, "mean": average, "sd": sd, "ci90": half, "parameters": None if control else 1900000}
        | {"minutes": None if control else round(2 + 30 * dice.random(), 1)}
        | {"last": {} if control else {"dice": centre - 0.01}, "published": [paper] if method == "uamt" else []}
    )
    if control or method == "supervised":
        return
    for key, sign in (("dice", 1), ("hd95", -60)):
        change = dice.gauss(0.01, 0.012)
        low, high = sorted((sign * (change - 0.015), sign * (change + 0.012)))
        p = abs(dice.gauss(0.05, 0.1))
        page["differences"].append(
            {**where, "metric": key, "method": method, "baseline": "supervised", "mean": sign * change, "low": low}
            | {"high": high, "p": min(p, 1), "p_holm": min(4 * p, 1), "patients": 16, "runs": runs}
            | {"per_run_mean": sign * change, "per_run_sd": 0.02}
        )
    if method in {"uamt", "fixmatch", "mean_teacher"}:
        for start in ("hebbian_swta_tsa", "hebbian_hpca"):
            change = dice.gauss(0.01, 0.02)
            page["initialisations"].append(
                {**where, "method": method, "start": start, "scratch": centre, "pretrained": centre + change}
                | {"metric": "dice"}
            )


def add_ranks(page: dict[str, Any], dice: random.Random, protocol: str, methods: list[str], cells: int) -> None:
    """Ranks one to the number of methods, a little shaken; neighbours are not told apart."""
    ranks = [1 + i * 0.9 + 0.2 * dice.random() for i in range(len(methods))]
    groups = [list(range(i, min(i + 3, len(methods)))) for i in range(0, len(methods) - 1, 2)]
    page["ranks"].append(
        {"protocol": protocol, "metric": "dice", "methods": methods, "ranks": ranks, "critical_difference": 1.9}
        | {"cells": cells, "p_friedman": 0.004, "groups": groups}
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(method, dice=..., ...)` writes the folder of a tested run whose cases all have this Dice or these."""

    def make(
        method: str = "supervised", dice: Any = 0.5, *, fraction: float = 0.1, fold: int = 0, seed: int = 0,
        experiment: str = "e", dataset: str = "glas", steps: int = 100,
        precision: str | None = None, tests: tuple[str, ...] = ("best-native",),
        model: dict | None = None, cases: list[str] = CASES, control: bool = False, state: str = "done",
        trainer: dict | None = None,
        labeled_epochs: int | None = None, **data: Any,
    ) -> Path:  # fmt: skip
        folder = (
            tmp_path / "runs" / experiment / dataset / method / f"labeled-{fraction:g}" / f"fold-{fold}-seed-{seed}"
        )
        (folder / "figures").mkdir(parents=True)
        options = {
            "split": "kfold", "num_folds": 5, "split_seed": 0, "batch_size": 2, "image_size": [128, 128],
            "labeled_fraction": fraction, **data,
        }  # fmt: skip
        config: dict[str, Any] = {
            "data": {"class_path": "GlaS", "init_args": options | ({"seed": 0} if control else {})}
        }
        if not control:
            config |= {"runs_dir": "runs", "experiment": experiment}
            config["trainer"] = {
                "max_steps": steps,
                "val_check_interval": 50,
                "precision": precision,
                **(trainer or {}),
            }
            config["labeled_epochs"] = labeled_epochs
            config["model"] = model or {
                "class_path": "Supervised",
                "init_args": {"network": {"init_args": {"weights": None}}},
            }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        facts = {key: options[key] for key in ("split", "num_folds", "split_seed", "labeled_fraction")}
        parts = Split(labeled=(), unlabeled=(), validation=(), test=tuple(cases)).to_dict()
        split = {"dataset": dataset, "fold": fold, "labeled_count": None, **facts, **parts}
        (folder / "split.json").write_text(json.dumps(split))
        scores = np.broadcast_to(np.asarray(dice, float), len(cases))
        summaries = {}
        for key in tests:
            table = CaseTable()
            for i, (case, score) in enumerate(zip(cases, scores.tolist(), strict=True)):
                tp = round((score - 0.01 * key.startswith("last")) * PIXELS)
                overlap = {"dice": tp / PIXELS, "jaccard": tp / (2 * PIXELS - tp)}
                metrics = {**overlap, "hd95": 9 + 20 * score, "asd": 3 + 5 * score}
                counts = {"tp": float(tp), "fp": float(PIXELS - tp), "fn": float(PIXELS - tp), "empty": 0.0}
                per_class = {f"{name}_gland": value for name, value in {**metrics, **counts}.items()}
                table.add({"case": case, "patient": f"p{i // 2}", **metrics, **per_class})
            table.write_csv(folder / f"{cases_name(key)}.csv")
            summaries[key] = table.summary() | ({} if control else {"step": 100})
            Image.new("RGB", (700, 300)).save(folder / "figures" / f"{cases_name(key)}-test.png")
        status = {
            "state": state,
            "test": summaries,
            "seconds": 120.0,
            "versions": {"torch": "2.13.0"},
            "control": control,
            **({} if control else {"step": 100, "best_step": 100, "best_val_dice": 0.6}),
        }
        (folder / "status.json").write_text(json.dumps(status))
        (folder / "metrics.csv").write_text("step,train/loss,val/dice\n19,0.5,\n49,0.4,0.3\n99,0.3,0.6\n")
        return folder

    return make


@pytest.fixture(scope="session")
def comparison() -> Callable[..., dict[str, Any]]:
    """`comparison(datasets=…, fractions=…, methods=…, runs=…, protocols=…)`: made-up results; seeded."""
    return make


@pytest.fixture(scope="session")
def nothing() -> Callable[[], dict[str, Any]]:
    """`nothing()`: a comparison without any run."""
    return empty


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the module: starting it costs more than the tests."""
    import shutil

    api = pytest.importorskip("playwright.sync_api", reason="the page is driven by playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("the page is driven in Chromium: neither chromium nor google-chrome is on the PATH")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
