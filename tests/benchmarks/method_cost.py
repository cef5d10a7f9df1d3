"""Step time and peak memory of each semi-supervised method over `Supervised`, and over what its passes cost.

`python -m tests.benchmarks.method_cost [ROUNDS] [METHOD ...]`. U-Net, 2 labeled and 2 unlabeled images of 128 x 128.
A step is `training_step`, backward, AdamW and what follows an optimiser's step. The pieces that a method cannot do
without (a supervised step on all its images, forward passes of a teacher, passes of further decoders) are timed in the
same rounds as the methods, so that a busy machine slows all alike; times are medians. The last column is the step over
the sum of these pieces.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from semiseg import methods
from semiseg.methods.adversarial.advent import discriminator
from semiseg.networks import UNet
from semiseg.running.configs import config_folder
from tests.benchmarks.hebbian_step import peak

LAYOUT = torch.channels_last
Step = Callable[[], Any]

# What each method cannot do without: "step n" is a supervised step on n images, "forward n" and "both n" passes of the
# network, without and with backward, "decoder n" and "discriminator n" the same with backward of these parts.
PASSES = {
    "supervised": {"step 2": 1},
    "entropy_minimization": {"step 4": 1},
    "advent": {"step 4": 1, "discriminator 2": 1, "discriminator 4": 1},
    "pi_model": {"step 4": 1, "forward 2": 1},
    "mean_teacher": {"step 4": 1, "forward 2": 1},
    "uamt": {"step 4": 1, "forward 2": 9},
    "ict": {"step 4": 1, "forward 2": 1},
    "cct": {"step 4": 1, "decoder 2": 3},
    "cps": {"step 4": 2},
    "urpc": {"step 4": 1},
    "dtc": {"step 4": 1},
    "mcnet": {"step 4": 1, "decoder 4": 1},
    "mcnet_plus": {"step 4": 1, "decoder 4": 2},
    "unimatch": {"step 4": 1, "decoder 2": 1, "both 4": 1},
    "bcp": {"step 2": 1, "forward 2": 1},
    **{f"diffusion_teacher_student:rounds={r}": {"step 4": 2, "both 4": 2 * r} for r in (0, 1, 5)},
}


def images(n: int) -> Tensor:
    """Images of a batch."""
    return torch.randn(n, 3, 128, 128).to(memory_format=LAYOUT)


def masks(n: int) -> Tensor:
    """Masks of coarse blobs, since distance maps of noise are cheap."""
    return torch.randint(0, 2, (n, 8, 8)).repeat_interleave(16, 1).repeat_interleave(16, 2)


def configured(name: str) -> Any:
    """The method of a YAML file, `FILE` or `FILE:OPTION=NUMBER`, without a trainer, in the middle of a budget."""
    file, _, option = name.partition(":")
    config = yaml.safe_load((config_folder() / "method" / f"{file}.yaml").read_text())["model"]
    if option:
        key, value = option.split("=")
        config["init_args"][key] = int(value)
    parser = ArgumentParser()
    parser.add_subclass_arguments(methods.SegmentationMethod, "model")
    method = parser.instantiate(parser.parse_object({"model": config})).model
    method._trainer = SimpleNamespace(global_step=50, max_steps=100)
    method.log = method.log_dict = lambda *_: None
    return method.to(memory_format=LAYOUT)


def method_step(method: Any, labeled: int = 2) -> Step:
    """A training step of a method."""
    batch = {"labeled": {"image": images(labeled), "mask": masks(labeled)}, "unlabeled": {"image": images(2)}}
    optimizer = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad])

    def step() -> None:
        optimizer.zero_grad()
        method.training_step(batch, 0).backward()
        optimizer.step()
        if hasattr(method, "teacher"):
            method.teacher.follow(method.network, 50)

    return step


def pieces() -> dict[str, Step]:
    """The pieces that methods are made of."""
    network = UNet(3, 2, 2).to(memory_format=LAYOUT)
    judge = discriminator(2, 2).to(memory_format=LAYOUT)

    def forward(image: Tensor) -> Step:
        def run() -> None:
            with torch.no_grad():
                network(image)

        return run

    def both(module: nn.Module | Callable[[Any], Tensor], given: Any) -> Step:
        def run() -> None:
            module(given).square().mean().backward()

        return run

    found = {"forward 2": forward(images(2)), "both 4": both(network, images(4))}
    for n in (2, 4):
        found[f"step {n}"] = method_step(configured("supervised"), n)
        with torch.no_grad():
            features = network.encode(images(n))
        features = [level.requires_grad_() for level in features]
        found[f"decoder {n}"] = both(network.decode, features)
        found[f"discriminator {n}"] = both(judge, torch.rand(n, 2, 128, 128).requires_grad_())
    return found


def main(rounds: int = 7, *names: str) -> None:
    """Print the table."""
    torch.manual_seed(0)
    wanted = ["supervised", *names] if names else list(PASSES)
    run = pieces() | {name: method_step(configured(name)) for name in wanted}
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds + 1):
        for name, step in run.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    seconds = {name: median(values[1:]) for name, values in times.items()}
    memory = {name: peak(run[name]) for name in wanted}
    print(f"{'method':36}{'time':>7}{'memory':>8}   {'its passes':>11}{'time over them':>16}")
    for name in wanted:
        least = sum(seconds[piece] * count for piece, count in PASSES[name].items())
        print(
            f"{name:36}{seconds[name] / seconds['supervised']:7.2f}{memory[name] / memory['supervised']:8.2f}   "
            f"{least / seconds['supervised']:11.2f}{seconds[name] / least:16.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, *sys.argv[2:])
