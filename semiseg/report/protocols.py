"""Which runs may stand side by side: those of one protocol, grouped by data set, labels and method."""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semiseg.report.runs import Run

Key = tuple[str, str, str]
"""Data set, labels and method."""


@dataclass(frozen=True)
class Result:
    """One test of a run.

    Args:
        run: the run.
        key: of its test, such as `best-network-threshold`.
    """

    run: Run
    key: str

    @property
    def summary(self) -> Mapping[str, float]:
        """Its metrics."""
        return self.run.summaries[self.key]

    @property
    def rules(self) -> tuple[tuple[str, str], ...]:
        """What must be the same for all data sets of a protocol."""
        data = self.run.data
        split = f"{data['split']}, {data['num_folds']} folds, seed {data['split_seed']}"
        _, place, *searched = self.key.split("-")
        decision = "threshold searched on validation" if searched else "argmax"
        return (("split", split), ("resolution", place), ("class", "argmax" if self.run.is_control else decision))

    @property
    def place(self) -> tuple[tuple[str, str], ...]:
        """What must be the same for all runs on a data set, controls included."""
        data = self.run.data
        sizes = (
            ("images", data.get("image_size")),
            ("patches", data.get("patch_size")),
            ("spacing", data.get("spacing")),
        )
        size = ", ".join(f"{name} {' x '.join(f'{n:g}' for n in value)}" for name, value in sizes if value)
        return (("size", size or "native"), ("cases", self.run.case_list))

    @property
    def budget(self) -> tuple[tuple[str, str], ...]:
        """What must be the same for all runs on a data set."""
        config, trainer, data = self.run.config, self.run.config["trainer"], self.run.data
        epochs = config.get("labeled_epochs")
        unlabeled = data.get("unlabeled_batch_size") or data["batch_size"]
        parallel = {key: trainer.get(key) for key in ("accumulate_grad_batches", "devices", "num_nodes")}
        times = ", ".join(f"{key} {value}" for key, value in parallel.items() if value not in (None, 1, "1", "auto"))
        return (
            ("budget", f"{epochs} passes over the labeled images" if epochs else f"{trainer['max_steps']} steps"),
            ("batch", f"{data['batch_size']} labeled, {unlabeled} unlabeled" + (f", {times}" if times else "")),
            ("validation", f"every {trainer['val_check_interval']} steps"),
            ("precision", str(trainer.get("precision") or "32-true")),
        )


def protocols_of(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], dict[str, dict[Key, list[Result]]]]:
    """Protocols with what defines them, and under each the tests of the runs' best checkpoints."""
    results = [Result(run, key) for run in runs for key in run.tables]
    variants: dict[Any, dict[str, Counter[Any]]] = defaultdict(lambda: defaultdict(Counter))
    for result in results:
        if not result.run.is_control:
            variants[result.rules][result.run.dataset][result.place, result.budget] += 1
    protocols: list[dict[str, Any]] = []
    members: dict[str, dict[Key, list[Result]]] = {}
    for rules, datasets in sorted(variants.items(), key=lambda item: -sum(map(Counter.total, item[1].values()))):
        ordered = {name: [variant for variant, _ in counts.most_common()] for name, counts in datasets.items()}
        for number in range(max(map(len, ordered.values()))):
            chosen = {name: variant[number] for name, variant in ordered.items() if number < len(variant)}
            inside = [r for r in results if _belongs(r, rules, chosen)]
            name = _letter(len(protocols))
            facts = [list(rule) for rule in rules]
            for dataset, (place, budget) in sorted(chosen.items()):
                facts.append([dataset, "; ".join(f"{fact} {value}" for fact, value in (*place, *budget))])
            protocols.append({"id": name, "facts": facts, "notes": []})
            members[name] = _groups(inside)
    return protocols, members


def _belongs(result: Result, rules: Any, chosen: Mapping[str, Any]) -> bool:
    """Whether a result was made under a protocol; controls have neither budget nor threshold."""
    place, budget = chosen.get(result.run.dataset, (None, None))
    if result.run.is_control:
        return result.rules[:2] == rules[:2] and result.place == place
    return bool(result.rules == rules and (result.place, result.budget) == (place, budget))


def _letter(number: int) -> str:
    return string.ascii_uppercase[number] if number < 26 else f"P{number + 1}"


def _groups(results: Sequence[Result]) -> dict[Key, list[Result]]:
    """Results by data set, labels and method; runs of one method with other options get rows of their own."""
    variants: dict[Key, dict[tuple[str, str], list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        run = result.run
        variants[run.dataset, run.labeled, run.method][run.recipe, run.experiment].append(result)
    groups: dict[Key, list[Result]] = {}
    for (dataset, labeled, method), found in variants.items():
        recipes = {recipe for recipe, _ in found}
        experiments = {experiment for _, experiment in found}
        for (recipe, experiment), group in found.items():
            name = method
            if len(experiments) > 1:
                name += f" ({experiment})"
            if len(recipes) > 1 and len({r for r, e in found if e == experiment}) > 1:
                name += f" [{recipe}]"
            groups[dataset, labeled, name] = sorted(group, key=lambda r: r.run.fold_and_seed)
    order = sorted(groups, key=lambda key: (key[0], _amount(groups[key][0].run), key[2]))
    return {key: groups[key] for key in order}


def _amount(run: Run) -> float:
    return run.fraction if run.fraction is not None else float(run.split["labeled_count"])
