"""Steps of every method on a batch, or on this process's part of it, as Lightning and DDP would make them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import torch
from torch import Tensor, distributed

from semiseg import methods, whole_batch
from semiseg.networks import Denoiser, UNet
from semiseg.running.callbacks import SeedEachStep

STEPS = 8
FIVE = {"widths": (4,) * 5, "dropout": (0,) * 5, "norm": "instance"}  # enough stages for each perturbation of URPC
TWO = {"widths": (4, 6), "dropout": (0,) * 2, "norm": "instance"}


def small(network: type, **options: Any) -> Callable[..., Any]:
    return lambda *sizes, **others: network(*sizes, **{**options, **others})


UNET, DEEP, DENOISER = small(UNet, **TWO), small(UNet, **FIVE), small(Denoiser, **TWO)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Supervised": ("Supervised", {}),
    "LinearProbe": ("LinearProbe", {}),
    "UAMT": ("UAMT", {}),
    "MeanTeacher": ("MeanTeacher", {}),
    "ICT": ("ICT", {"alpha": 1.0}),
    "PiModel": ("PiModel", {}),
    "CCT": ("CCT", {"network": DEEP}),
    "CPS": ("CPS", {}),
    "URPC": ("URPC", {"network": DEEP}),
    "URPC apart": ("URPC", {"network": DEEP, "separate_forward": True}),
    "DTC": ("DTC", {"steepness": 5.0}),
    "MCNet": ("MCNet", {"decoders": ("bilinear",)}),
    "MCNet+": ("MCNet", {}),
    "EntropyMinimization": ("EntropyMinimization", {}),
    "ADVENT": ("ADVENT", {}),
    "UniMatch": ("UniMatch", {"confidence": 0.6}),
    "BCP": ("BCP", {"pretraining": 0.5}),
    "BCP of more unlabeled images": ("BCP", {"pretraining": 0.0}),
    "BCP of fewer unlabeled images": ("BCP", {"pretraining": 0.0}),
    "DiffusionPretrain": ("DiffusionPretrain", {"network": DENOISER}),
    "DiffusionTeacherStudent": ("DiffusionTeacherStudent", {"network": DENOISER, "rounds": 2}),
    "DiffusionTeacherStudent, truncated": (
        "DiffusionTeacherStudent",
        {"network": DENOISER, "rounds": 2, "truncate": True},
    ),
    **{
        f"HebbianPretrain {rule} {transposed}": (
            "HebbianPretrain",
            {"rule": rule, "transposed": transposed, "center": True},
        )
        for rule in ("hpca", "swta")
        for transposed in ("tsa", "s")
    },
}
SIZES = {"BCP of more unlabeled images": (2, 4), "BCP of fewer unlabeled images": (4, 2)}  # of the whole batch


def batch(step: int, sizes: tuple[int, int]) -> dict[str, dict[str, Tensor]]:
    """This process's part of a batch, whose masks leave more pixels unknown from image to image."""
    g = torch.Generator().manual_seed(step)
    (known, images), side = sizes, 32
    image, other = (torch.randn(size, 1, side, side, generator=g) for size in sizes)
    mask = (image[:, 0] > 0.3).long()
    unknown = torch.rand(known, side, side, generator=g) < torch.arange(known).view(-1, 1, 1) / (known + 1)
    own, other_own = known // whole_batch.world_size(), images // whole_batch.world_size()
    mine, my_others = (slice(whole_batch.rank() * n, (whole_batch.rank() + 1) * n) for n in (own, other_own))
    return {
        "labeled": {"image": image[mine], "mask": mask.masked_fill(unknown, -1)[mine]},
        "unlabeled": {"image": other[my_others]},
    }


def trained(name: str) -> dict[str, Any]:
    """What a method logs in each step, and its weights after them."""
    kind, options = METHODS[name]
    torch.manual_seed(0)
    method: Any = getattr(methods, kind)(in_channels=1, **{"network": UNET, **options})
    trainer: Any = SimpleNamespace(
        global_step=0,
        max_steps=STEPS,
        training=True,
        log_every_n_steps=1,
        global_rank=whole_batch.rank(),
        world_size=whole_batch.world_size(),
    )
    method._trainer = trainer
    groups = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    method.optimizers, method.lr_schedulers = lambda: optimizer, lambda: SimpleNamespace(step=lambda: None)
    if method.automatic_optimization is False:
        method.observers = (
            [lambda *_: method.units.gate("encoder.levels.0.1", *_[1:])] if not trainer.global_rank else []
        )
    logged: list[dict[str, float]] = []

    def note(self: Any, name: str, value: Any, **_: Any) -> None:
        logged[-1][name] = float(torch.as_tensor(value).detach())

    lightning.LightningModule.log = note  # type: ignore[method-assign]
    for step in range(STEPS):
        logged.append({})
        SeedEachStep(0).on_train_batch_start(trainer, method, None, step)
        optimizer.zero_grad()
        loss = method.training_step(batch(step, SIZES.get(name, (4, 4))), step)
        if method.automatic_optimization:
            loss.backward()
            for parameter in groups:
                if parameter.grad is not None:
                    parameter.grad.copy_(whole_batch.mean(parameter.grad))  # as DDP does
            optimizer.step()
        if hasattr(method, "teacher"):
            method.teacher.follow(method.network, step)
        trainer.global_step += 1
    return {"logged": logged, "weights": method.state_dict()}


def train_all(folder: Path, rank: int | None = None) -> None:
    """Train all methods in double precision, alone or as one of two processes, and write what came of each."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    before = lightning.LightningModule.log
    if rank is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = distributed.FileStore(str(folder / "store"), 2)
        distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    try:
        for name in METHODS:
            torch.save(trained(name), folder / f"{name}-{'alone' if rank is None else rank}.pt")
    finally:
        torch.set_default_dtype(torch.float32)
        lightning.LightningModule.log = before  # type: ignore[method-assign]
        if rank is not None:
            distributed.destroy_process_group()
