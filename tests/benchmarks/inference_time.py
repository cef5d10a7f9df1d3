"""Time to segment one image with the diffusion teacher-student, over the same U-Net without noise.

`python -m tests.benchmarks.inference_time [ROUNDS]`. One image of 3 x 128 x 128 and one volume of 64 x 64 x 32; noises
that are averaged, and passes of DDIM for each. All are timed in the same rounds in turn; times are medians.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch

from semiseg.components.diffusion import MaskSampler
from semiseg.networks import Denoiser

SHAPES = {"image": (1, 3, 128, 128), "volume": (1, 1, 64, 64, 32)}
INFERENCE = {"1 noise": (1, 1), "10 noises": (10, 1), "1 noise, 10 steps": (1, 10)}


def main(rounds: int = 5) -> None:
    """Print the table."""
    torch.manual_seed(0)
    run = {}
    for kind, shape in SHAPES.items():
        network = Denoiser(shape[1], 2, len(shape) - 2, image_pathway=False).eval()
        run[kind, "without noise"] = network, torch.randn(shape)
        for name, (samples, steps) in INFERENCE.items():
            sampler = MaskSampler(network.mask, 2, samples=samples, denoising_steps=steps)
            run[kind, name] = sampler, torch.randn(shape)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in run}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for key, (module, image) in run.items():
                start = time.perf_counter()
                module(image)
                times[key].append(time.perf_counter() - start)
    seconds = {key: median(values[1:]) for key, values in times.items()}
    print(f"{'':8}{'':22}{'seconds':>9}{'over without':>14}")
    for (kind, name), value in seconds.items():
        print(f"{kind:8}{name:22}{value:9.3f}{value / seconds[kind, 'without noise']:14.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
