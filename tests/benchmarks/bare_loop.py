"""A callback that runs a bare PyTorch loop inside a training run, in turn with it, so that both share the noise."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler

from semiseg.losses import soft_dice


class BareLoop(Callback):
    """After every `every` steps of the run take `steps` bare ones: same network, batch, loss and optimiser.

    Prints the run's step time over the bare one, the share of a step that waits for data, and the whole run over its
    bare steps.
    """

    def __init__(self, every: int = 20, steps: int = 10, skip: int = 2) -> None:
        self.every, self.steps, self.skip = every, steps, skip
        self.run_times: list[float] = []
        self.bare_times: list[float] = []
        self.away = 0.0  # time spent here, which is not the run's
        self.validating = 0.0
        self.mark: float | None = None
        self.profiler = SimpleProfiler()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.profiler = self.profiler
        self.network = copy.deepcopy(pl_module.network)
        if pl_module.hparams["channels_last"]:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.optimizer = pl_module.make_optimizer(list(self.network.parameters()))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating += time.perf_counter() - self.since

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, output: Any, batch: Any, i: int) -> None:
        if (i + 1) % self.every:
            return
        now = time.perf_counter()
        if self.mark is not None:
            self.run_times.append((now - self.mark - self.validating) / self.every)
        self._bare(batch["labeled"]["image"], batch["labeled"]["mask"])
        self.validating = 0.0
        self.mark = time.perf_counter()
        self.away += self.mark - now

    def _bare(self, image: torch.Tensor, mask: torch.Tensor) -> None:
        start = time.perf_counter()
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            loss = soft_dice(self.network(image), mask)
            loss.backward()
            self.optimizer.step()
        self.bare_times.append((time.perf_counter() - start) / self.steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pairs = list(zip(self.run_times, self.bare_times[1:], strict=True))[self.skip :]
        ratios = sorted(run / bare for run, bare in pairs)
        waiting = self.profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]
        step = sum(run for run, _ in pairs) / len(pairs)
        bare = sum(bare for _, bare in pairs) / len(pairs)
        print(f"step {1000 * step:.1f} ms, bare step {1000 * bare:.1f} ms, ratio of the means {step / bare:.3f}")
        print(f"ratio pair by pair: median {ratios[len(ratios) // 2]:.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")
        print(f"waiting for data: {100 * sum(waiting[1:]) / (step * len(waiting[1:])):.2f} % of a step")
        type(self).result = (self.away, bare * trainer.max_steps)

    result: tuple[float, float]
