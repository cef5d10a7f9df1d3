"""`semiseg data check|preview|split|cache`: look at a data set before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table

from semiseg.data.base import SegmentationDataModule
from semiseg.data.cache import ArrayCache
from semiseg.data.cases import Case
from semiseg.data.splits import Split
from semiseg.errors import OneLineParser, UserError
from semiseg.evaluation.panels import case_panel, contact_sheet, save_png
from semiseg.files import atomic_path

HELP = """usage: semiseg data check|preview|split DIR [options]       your own folder: DIR/images and DIR/masks
       semiseg data check|preview|split --config configs/data/glas.yaml --data.root DIR [options]
       semiseg data cache [--clear]

  check      read every image and mask; sizes, spacings, classes and all problems in one pass; exit code 2 if any
  preview    contact sheet with mask contours     --output preview.png --count 12
  split      the parts of a fold                  --output split.json
  cache      size of the cache of decoded images

semiseg data check --data.help GlaS lists the options of a data set.
"""


def data_command(args: Sequence[str]) -> int:
    """Carry out one of the commands; returns the exit code."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    action, rest = args[0], list(args[1:])
    if action == "cache":
        _cache(rest)
        return 0
    if action not in ("check", "preview", "split"):
        raise UserError(f"semiseg data {action}: unknown; use check, preview, split or cache")
    if rest and not rest[0].startswith("-"):
        rest = ["--data", "Folder", "--data.root", *rest]
    parser = data_parser(f"semiseg data {action}")
    if action != "check":
        parser.add_argument("--output", type=str, default="preview.png" if action == "preview" else "split.json")
    if action == "preview":
        parser.add_argument("--count", type=int, default=12, help="number of cases shown")
    from semiseg.running.configs import find_configs

    options = parser.parse_args(find_configs(rest))
    data: SegmentationDataModule = parser.instantiate(options).data
    if action == "check":
        return _check(data)
    if action == "preview":
        _preview(data, Path(options.output), options.count)
    else:
        _split(data, Path(options.output))
    return 0


def data_parser(command: str) -> LightningArgumentParser:
    """A parser of the options of a data set, in files and as arguments."""
    parser = LightningArgumentParser(prog=command, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="file with the data set's options")
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    return parser


def _check(data: SegmentationDataModule) -> int:
    """Read everything; print a summary and every problem."""
    problems: list[str] = []
    sizes: Counter[str] = Counter()
    voxels: Counter[int] = Counter()
    cases = data.cases
    masked = [case for case in cases if case.mask is not None and case.mask.exists()]
    try:
        _ = data.partition
    except UserError as error:  # the classes may be found all the same, in every mask
        problems.append(str(error))
        data.partition = Split(tuple(case.case for case in masked), (), (), ())
    try:
        names = data.class_names if masked else ()
    except UserError as error:
        problems.append(str(error))
        names = ()
    if not names:  # the images can be read all the same
        data.class_names = data.class_values = ()
    for case in cases:
        problem = _check_case(data, case, sizes, voxels if names else None)
        problems += [problem] if problem else []
    problems = list(dict.fromkeys(problems))
    table = Table(title=f"{type(data).__name__}: {data.root}", show_header=False)
    table.add_row("cases", f"{len(cases)} of {len({case.patient for case in cases})} patients")
    table.add_row("with mask", str(len(masked)))
    for size, count in sizes.most_common(5):
        table.add_row("size, spacing", f"{count} x {size}" + (" ..." if len(sizes) > 5 else ""))
    total = sum(voxels.values())
    for index, name in enumerate(names if voxels else ()):
        table.add_row(f"class {index}", f"{name}: {100 * voxels[index] / total:.2f} % of the voxels")
    strata = Counter(case.stratum for case in cases if case.stratum)
    if strata:
        table.add_row("strata", ", ".join(f"{count} {name}" for name, count in sorted(strata.items())))
    Console(width=110).print(table)
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{len(problems)} problem(s)" if problems else "no problems")
    return 2 if problems else 0


def _check_case(
    data: SegmentationDataModule, case: Case, sizes: Counter[str], voxels: Counter[int] | None
) -> str | None:
    """Read one case; returns what is wrong with it."""
    try:
        image = data.read_image(case)
        shape = " x ".join(str(n) for n in image.array.shape[1:])
        spacing = " x ".join(f"{s:g}" for s in image.spacing)
        sizes[f"{shape}, {image.array.shape[0]} channel(s), {image.array.dtype}, spacing {spacing}"] += 1
        if case.mask is None:
            return None
        if voxels is None:
            data.read_raw_mask(case)
        else:
            found, counts = np.unique(data.read_classes(case), return_counts=True)
            voxels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            if len(found) == 1 and found[0] == 0:
                print(f"note: case {case.case}: no foreground")
    except UserError as error:
        return str(error)
    return None


def _preview(data: SegmentationDataModule, output: Path, count: int) -> None:
    """Image and contours of evenly chosen cases that have a mask."""
    cases = [case for case in data.cases if case.mask is not None and case.mask.exists()] or list(data.cases)
    chosen = cases[:: max(1, len(cases) // max(count, 1))][:count]
    panels = []
    for case in chosen:
        mask = data.read_classes(case) if case.mask is not None else None
        panels.append(case_panel(data.read_image(case).array, mask, None, case.case))
    save_png(contact_sheet(panels, 3), output)
    print(f"{len(panels)} of {len(data.cases)} cases -> {output}")


def _split(data: SegmentationDataModule, output: Path) -> None:
    """Print the counts, write the parts."""
    split = data.partition
    for part in ("labeled", "unlabeled", "validation", "test"):
        cases = data.part(part)
        print(f"{part:<11} {len(cases):>5} cases of {len({case.patient for case in cases})} patients")
    if split.shared_patients:
        print(f"note: the official test set shares {len(split.shared_patients)} patient(s) with the training set")
    steps = 200 * -(-len(split.labeled) // data.batch_size)
    print(f"hash {split.hash}; the papers' 200 epochs are {steps} steps at batch size {data.batch_size}")
    with atomic_path(output) as temporary:
        temporary.write_text(data.split_text(), encoding="utf-8")
    print(f"-> {output}")


def _cache(args: Sequence[str]) -> None:
    parser = OneLineParser("semiseg data cache", description="Size of the cache of decoded images.")
    parser.add_argument("--clear", action="store_true", help="remove all of it; it is rebuilt when needed")
    parser.add_argument("--cache_dir", help="default: $SEMISEG_CACHE or ~/.cache/semiseg")
    options = parser.parse_args(args)
    cache = ArrayCache(options.cache_dir)
    counts = cache.clear() if options.clear else cache.count()
    facts = ", ".join(f"{number} {kind} ({size / 1e6:.1f} MB)" for kind, (number, size) in counts.items())
    print(f"{cache.directory}: {f'removed {facts}' if options.clear else f'{facts}; --clear removes them'}")
