"""The bases of every method: one for those that learn to segment and one for those that pretrain without masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from semiseg import losses, whole_batch
from semiseg.components.schedules import Schedule, WarmupPoly, build_schedule
from semiseg.data.preprocessing import Preprocessing, resize_logits
from semiseg.errors import UserError, check_number
from semiseg.evaluation.cases import CaseTable
from semiseg.evaluation.metrics import case_metrics
from semiseg.evaluation.threshold import best_threshold
from semiseg.inference.window import whole_image
from semiseg.networks import Network, UNet, check_memory

NetworkFactory = Callable[[int, int, int], Network]
"""(in_channels, num_classes, spatial_dims) to a network: in YAML a class path with the rest of its arguments."""


class Method(lightning.LightningModule):
    """What all methods share: a network, its optimiser and schedule, and checkpoints of plain types.

    Args:
        network: network to train.
        in_channels: channels of the images; from the data.
        num_classes: classes, background included; from the data.
        spatial_dims: 2 or 3; from the data.
        optimizer: optimiser.
        schedule: learning-rate schedule over the budget.
        compile: compile the network with torch.compile.
        channels_last: keep weights and features channels-last in memory: faster on CPUs and recent GPUs.

    Attributes:
        streams: streams of the training batches. A method without the labeled one never gets a mask: to it all
            training images are unlabeled.
        monitor: metric that chooses the best checkpoint; None: the last one is the result.
    """

    streams: ClassVar[Sequence[str]]
    monitor: ClassVar[str | None]

    def __init__(
        self,
        network: NetworkFactory = UNet,
        in_channels: int = 3,
        num_classes: int = 2,
        spatial_dims: int = 2,
        optimizer: Callable[[Any], Optimizer] = torch.optim.AdamW,
        schedule: Schedule = WarmupPoly,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.make_network = partial(network, in_channels, num_classes, spatial_dims)
        check_memory(self.make_network)
        self.network = self.make_network()
        self.spatial_dims = spatial_dims
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.compile_network = compile
        self.channels_last = channels_last
        self.preprocessing: Preprocessing | None = None

    def configure_optimizers(self) -> Any:
        """One optimiser over everything that learns, its schedule stepped with it."""
        try:
            optimizer = self.make_optimizer(self.parameter_groups())
        except ValueError as error:  # torch's, such as a negative learning rate
            raise UserError(f"--model.optimizer: {error}") from error
        if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise UserError(f"--model.optimizer {type(optimizer).__name__}: not for such networks; use AdamW or SGD")
        for option, value in optimizer.defaults.items():
            for number in value if isinstance(value, tuple) else [value]:
                if type(number) in (int, float) and option != "beta2_decay":  # which is negative
                    check_number(f"--model.optimizer.{option}", number, 0, above=option == "lr")
        schedule = build_schedule(self.make_schedule, optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[Any]:
        """What the optimiser gets: all that learns, or groups of it with options of their own."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def setup(self, stage: str) -> None:
        """Take the data's preprocessing; compile the inner networks' parts and lay them out, never this module."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self.preprocessing = Preprocessing.from_dict(datamodule.preprocessing.to_dict())  # as a checkpoint's
        if self.channels_last:
            layout = torch.channels_last if self.spatial_dims == 2 else torch.channels_last_3d
            self.to(memory_format=layout)  # type: ignore[call-overload]
        if self.compile_network:
            for module in list(self.modules()):  # by their parts: many methods call encoder and decoders apart
                for name in ("encoder", "decoder", "head"):
                    if isinstance(part := getattr(module, name, None), nn.Module):
                        part.compile()

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; a tensor that a training step logs becomes its mean over all processes."""
        if isinstance(value, Tensor) and whole_batch.world_size() > 1 and self.trainer.training:
            value = value.to(self.device)
            value = whole_batch.mean(value if value.is_floating_point() else value.float())
        super().log(name, value, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the preprocessing; drop the path of initial weights, which the trained ones have replaced."""
        if self.preprocessing is not None:
            checkpoint["preprocessing"] = self.preprocessing.to_dict()
        for name, value in checkpoint.get("hyper_parameters", {}).items():
            arguments = value.get("init_args") if isinstance(value, dict) else None
            if isinstance(arguments, dict) and isinstance(arguments.get("weights"), str):
                replaced = {**value, "init_args": {**arguments, "weights": None}}
                checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], name: replaced}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the preprocessing that the network was trained with."""
        if "preprocessing" in checkpoint:
            self.preprocessing = Preprocessing.from_dict(checkpoint["preprocessing"])


class SegmentationMethod(Method):
    """A segmentation network with a supervised loss; subclasses write `training_step` and their own arguments.

    Validation and test score every case at the resolution of its target with `scored_network`, the network that the
    paper scores. What a checkpoint needs for `predict` (network, preprocessing, classes) is in it, plain types only.

    Args:
        loss: supervised loss: the mean of soft Dice and cross-entropy, or one of them.
        hd95_medpy: also report HD95 as MedPy defines it (percentile of both directions pooled).
        threshold: how a test decides between two classes: by the higher score (`argmax`), or by the threshold of the
            foreground's probability that is best on the validation cases (`validation`).
        **kwargs: as `Method`.

    Raises:
        UserError: a threshold is to be searched for more than two classes.
    """

    streams: ClassVar[Sequence[str]] = ("labeled",)
    smooth: ClassVar[float] = 1.0  # of the supervised loss's Dice, see `soft_dice`
    monitor = "val/dice"

    def __init__(
        self,
        loss: Literal["dice_ce", "dice", "ce"] = "dice_ce",
        hd95_medpy: bool = False,
        threshold: Literal["argmax", "validation"] = "argmax",
        num_classes: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        if threshold == "validation" and num_classes > 2:
            raise UserError(f"--model.threshold validation: there are {num_classes} classes, not two; use argmax")
        dice = {"dice_ce": losses.dice_ce, "dice": losses.soft_dice}
        self.supervised_loss: Callable[[Tensor, Tensor], Tensor] = (
            losses.cross_entropy if loss == "ce" else partial(dice[loss], smooth=self.smooth)
        )
        self.hd95_medpy = hd95_medpy
        self.search_threshold = threshold == "validation"
        self.decision_threshold = 0.5
        self.cases = CaseTable()

    @property
    def scored_network(self) -> nn.Module:
        """The network that validation, test and predict use; a method whose paper scores another overrides this."""
        return self.network

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, *S) of images (B, C, *S), of any size if the network was trained on patches."""
        assert self.preprocessing is not None, "set by setup() or by loading a checkpoint"
        return whole_image(self.scored_network, image, self.preprocessing)

    def on_validation_epoch_start(self) -> None:
        """Start an empty table; let all processes score the network that process 0 saves."""
        self.cases = CaseTable()
        if self.trainer.world_size > 1:
            for buffer in self.buffers():  # statistics of batches, which DDP with broadcast_buffers false leaves apart
                torch.distributed.broadcast(buffer, 0)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """Dice of each case, for the choice of the checkpoint; distances are left to the test."""
        return self._score(batch, distances=False)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """All metrics of each case."""
        return self._score(batch, distances=True)

    def class_maps(self, batch: dict[str, Any]) -> list[Tensor]:
        """Predicted classes (*S) of the cases of an evaluation batch, each at the size of its target."""
        if self.decision_threshold != 0.5:
            return [(probability > self.decision_threshold).long() for probability in self._foreground(batch)]
        return [logits.argmax(0) for logits in self._logits(batch)]

    def _logits(self, batch: dict[str, Any]) -> Iterator[Tensor]:
        """Logits (K, *S) of each case, at the size of its target."""
        logits = self(batch["image"]).float()
        if torch.isnan(logits).any():  # before a checkpoint of it can be written
            raise UserError(
                "the network's predictions are not numbers; lower the learning rate (--model.optimizer.lr) or clip "
                "gradients (--trainer.gradient_clip_val 1), as a new run (--experiment NAME)"
            )
        return (resize_logits(logits[i : i + 1], t.shape)[0] for i, t in enumerate(batch["target"]))

    def _foreground(self, batch: dict[str, Any]) -> Iterator[Tensor]:
        """Probability (*S) of the foreground of each case, where there are two classes."""
        return (logits.softmax(0)[1] for logits in self._logits(batch))

    def on_test_start(self) -> None:
        """Search the threshold, if that is asked for."""
        if self.search_threshold:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            batches = map(self.brought, data.val_dataloader())
            with self.trainer.precision_plugin.forward_context():
                self.decision_threshold = best_threshold(
                    pair for batch in batches for pair in zip(self._foreground(batch), batch["target"], strict=True)
                )

    def brought(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of a loader on the device and in the precision of the run, outside of Lightning's own loops."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        return dict(self.transfer_batch_to_device(batch, self.device, 0))

    def _score(self, batch: dict[str, Any], distances: bool) -> list[Tensor]:
        """Predict a batch's cases and add their metrics to the table."""
        assert self.preprocessing is not None
        predictions = self.class_maps(batch)
        for prediction, target, spacing, case, patient in zip(
            predictions, batch["target"], batch["spacing"], batch["case"], batch["patient"], strict=True
        ):
            metrics = case_metrics(
                prediction, target, self.preprocessing.class_names, spacing, distances, medpy=self.hd95_medpy
            )
            self.cases.add({"case": case, "patient": patient, **metrics})
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Log `val/dice`: the mean over cases, each counted once however many processes there are."""
        self._log_summary("val")

    def on_test_epoch_end(self) -> None:
        """Log the summary of all metrics."""
        self._log_summary("test")

    def gather(self, table: CaseTable) -> None:
        """Let every process have the cases of all."""
        if self.trainer.world_size > 1:
            tables: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(tables, table.rows)
            for rows in tables:
                table.merge(rows)

    def _log_summary(self, stage: str) -> None:
        self.gather(self.cases)
        summary = self.cases.summary()
        names = ("dice", "jaccard", "hd95", "asd", "dice_pooled", "jaccard_pooled", "num_empty")
        self.log_dict({f"{stage}/{name}": float(summary[name]) for name in names if name in summary})


class PretrainingMethod(Method):
    """Learns from all training images without any mask; its checkpoint is where a `SegmentationMethod` starts from.

    Subclasses write `training_step`, which finds its images in `batch["unlabeled"]`. There is nothing to score: the
    last checkpoint is the result, and validation only marks the steps at which it is saved.
    """

    streams = ("unlabeled",)
    monitor = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Nothing: held-out images have no score without masks."""
