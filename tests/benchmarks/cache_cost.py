"""What the checks of the cache cost, as ratios of processor times measured in turns in one run.

- `python -m tests.benchmarks.cache_cost`: synthetic images
- `SEMISEG_DATA=DIR python -m tests.benchmarks.cache_cost [REPEATS]`: GlaS in DIR/GlaS
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from semiseg.data import GlaS, SegmentationDataModule, Synthetic
from semiseg.data.cache import ArrayCache
from semiseg.data.datasets import TrainingSet
from semiseg.data.fingerprint import files_of, hash_of, short_hash
from semiseg.data.samplers import Draw

ACCESSES = 2000


class Held(NamedTuple):
    """An open map in place of an entry."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def map(self) -> np.ndarray:
        return self.array


class Unchecked(ArrayCache):
    """A cache that believes size and time of its sources and the content of its entries, and keeps their maps open."""

    def fingerprint(self, source: Path) -> str:
        status = source.stat()
        return short_hash([str(source.resolve()), status.st_size, status.st_mtime_ns])

    def find(self, source: Path, preparation: dict[str, Any], build: Callable[[], np.ndarray]) -> Any:
        path = self.directory / f"{self.key(source, preparation)}.npy"
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.directory, delete=False) as file:
                np.save(file, build(), allow_pickle=False)
            os.replace(file.name, path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        os.utime(path)
        return Held(array)


def in_turns(repeats: int, **actions: Callable[[], Any]) -> dict[str, list[float]]:
    """Processor seconds of each action, repeated in turns, so that what else the machine does meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.process_time()
            action()
            times[name].append(time.process_time() - start)
    return times


def show(what: str, times: dict[str, list[float]], one: str, other: str, count: int = 1) -> None:
    """One line: the ratio of two actions by their fastest times, and the middle one of the pairs' ratios."""
    pairs = statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))
    least = {name: min(times[name]) / count for name in (one, other)}
    facts = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in least.items())
    print(f"{what}: {least[one] / least[other]:.3f} (median of pairs {pairs:.3f}): {facts}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        if root := os.environ.get("SEMISEG_DATA"):
            family, options = GlaS, {"root": f"{root}/GlaS", "image_size": (128, 128)}
        else:
            family, options = Synthetic, {"root": f"{folder}/set", "size": (128, 128), "num_cases": 60}

        def start(cache: type[ArrayCache], directory: str, content: bool) -> SegmentationDataModule:
            data = family(**options)
            data.cache = cache(f"{folder}/{directory}")
            if content:
                data.content(("labeled", "unlabeled"))
            data.prepare_data()
            return data

        data = start(ArrayCache, "checked", True)
        reader, sources = data._reader, [path for case in data.cases for path in (case.image, case.mask) if path]
        time.sleep(2.5)  # a fresh synthetic set settles
        number = itertools.count()
        times = in_turns(
            repeats,
            hashing=lambda: [hash_of(files_of(path)) for path in sources],
            decoding=lambda: [(reader.prepare(data.read_image(c)), data.read_classes(c)) for c in data.cases],
            unchecked=lambda: start(Unchecked, f"cold-{next(number)}", False),
            checked=lambda: start(ArrayCache, f"cold-{next(number)}", True),
        )
        show("hashing all files / decoding them", times, "hashing", "decoding")
        show("hashing all files / decoding them into an unchecked cache", times, "hashing", "unchecked")
        show("cold start / unchecked", times, "checked", "unchecked")
        former = start(Unchecked, "unchecked", False)
        times = in_turns(
            repeats,
            checked=lambda: start(ArrayCache, "checked", True),
            unchecked=lambda: start(Unchecked, "unchecked", False),
        )
        show("warm start / unchecked", times, "checked", "unchecked")
        entry = data.image_entry(data.cases[0])
        held = entry.map()
        times = in_turns(
            repeats,
            fresh=lambda: [entry.map().astype(np.float32) for _ in range(ACCESSES)],
            held=lambda: [held.astype(np.float32) for _ in range(ACCESSES)],
        )
        show(f"copy of {held.nbytes / 1e3:.0f} kB from a fresh map / a held one", times, "fresh", "held", ACCESSES)
        draws = [Draw("labeled", step, 0, step % len(data.part("labeled"))) for step in range(200)]
        new, old = (TrainingSet(d, {"labeled": d.part("labeled")}) for d in (data, former))
        times = in_turns(
            repeats, fresh=lambda: [new[draw] for draw in draws], held=lambda: [old[draw] for draw in draws]
        )
        show("augmented training image and mask / from held maps", times, "fresh", "held", len(draws))


if __name__ == "__main__":
    main()
