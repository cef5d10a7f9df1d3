"""Time and memory of a Hebbian step beside a supervised one and a plain forward pass: same network, batch and machine.

`python -m tests.benchmarks.hebbian_step [PAIRS]`. A Hebbian step is forward, changes, optimiser and folding; a
supervised step is forward, soft Dice, backward and the same optimiser (Adam). They alternate, so that a busy machine
slows both; the ratio is that of the medians. A convolution's backward pass costs two forward passes and a change one,
so that 2/3 is the limit. Memory is the peak of what a step allocates above the tensors that live between steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from semiseg.hebbian.units import HebbianUnits
from semiseg.losses import soft_dice
from semiseg.networks import UNet

CASES = {"2D, batch 2, 128 x 128": (2, (2, 3, 128, 128)), "3D, batch 1, 64^3": (3, (1, 1, 64, 64, 64))}


def steps(dims: int, shape: tuple[int, ...], rule: str) -> dict[str, Callable[[], None]]:
    """A plain forward pass, a supervised step and a Hebbian step, each on a network of its own."""
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    image = torch.randn(shape).to(memory_format=layout)
    mask = torch.randint(0, 2, (shape[0], *shape[2:]))
    plain, supervised, hebbian = (UNet(shape[1], 2, dims).to(memory_format=layout) for _ in range(3))
    hebbian.requires_grad_(False)
    units = HebbianUnits(hebbian, rule=rule).to(memory_format=layout)
    backprop_adam = torch.optim.Adam(supervised.parameters(), fused=True)
    hebbian_adam = torch.optim.Adam(units.parameters(), fused=True)

    def forward() -> None:
        with torch.no_grad():
            plain(image)

    def supervised_step() -> None:
        backprop_adam.zero_grad()
        soft_dice(supervised(image), mask).backward()
        backprop_adam.step()

    def hebbian_step() -> None:
        units.learn(hebbian, image)
        hebbian_adam.step()
        units.fold()

    return {"forward": forward, "supervised": supervised_step, "hebbian": hebbian_step}


def peak(step: Callable[[], None]) -> int:
    """Bytes that a step holds at its peak, above what it found: of the second of two, which replaces gradients."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
        with record_function("second"):
            step()
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held, found, most = 0, None, 0
    for event in events:
        found = held if event.name() == "second" else found
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held - found) if found is not None else 0
    return most


def main(pairs: int = 15) -> None:
    """Print the ratios."""
    for title, (dims, shape) in CASES.items():
        for rule in ("swta", "hpca"):
            torch.manual_seed(0)
            run = steps(dims, shape, rule)
            times: dict[str, list[float]] = {name: [] for name in run}
            for _ in range(pairs + 2):
                for name, step in run.items():
                    start = time.perf_counter()
                    step()
                    times[name].append(time.perf_counter() - start)
            seconds = {name: median(values[2:]) for name, values in times.items()}
            memory = {name: peak(step) / 2**20 for name, step in run.items()}
            print(
                f"{title}, {rule}: Hebbian over supervised step {seconds['hebbian'] / seconds['supervised']:.3f} "
                f"({seconds['hebbian'] * 1e3:.0f} / {seconds['supervised'] * 1e3:.0f} ms; forward "
                f"{seconds['forward'] * 1e3:.0f} ms); peak memory over a forward pass "
                f"{memory['hebbian'] / memory['forward']:.2f} ({memory['hebbian']:.1f} / {memory['forward']:.1f} MiB; "
                f"supervised {memory['supervised']:.1f} MiB)",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
