"""Hebbian pretraining: every layer learns from its own input and output, without labels and without a backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from semiseg import whole_batch
from semiseg.errors import UserError, check_number
from semiseg.hebbian.rules import Decay
from semiseg.hebbian.units import HebbianUnits, Observer, Rule, Transposed
from semiseg.hebbian.watching import WatchLearning
from semiseg.methods.base import PretrainingMethod


class HebbianPretrain(PretrainingMethod):
    """Pretrain all convolutions, transposed ones too, by soft-winner-takes-all (SWTA) or principal components (HPCA).

    Ciampi, Lagani, Amato, Falchi, "Biologically-inspired semi-supervised semantic segmentation for biomedical
    imaging", Neural Networks 2025, https://arxiv.org/abs/2412.03192. A step is one forward pass of all layers on
    augmented training images, the change of each layer by its rule (`semiseg.hebbian.rules`), and one step of the
    optimiser with minus the change as gradient. Batch normalisation's statistics follow the images; its affine
    parameters and all biases stay as initialised, and the head is left alone. The network in the checkpoint is plain,
    with unit norm per neuron folded in: start stage 2 with `--model.network.weights RUN/checkpoints/last.ckpt`.

    Deviations from the authors' code: see `semiseg.hebbian.rules` (TSA's decay, norm of transposed neurons); changes
    are means, not sums, over positions, which Adam does not notice; no mask is needed, their loop backpropagates a
    Dice loss into the head that is thrown away; no unit norm in stage 2.

    Args:
        rule: `swta`; `hpca`; and the controls that a claim needs: `normalize` (random weights with unit norm), `none`
            (random weights), both with batch normalisation's statistics learnt.
        transposed: how the rule extends to transposed convolutions: transposed-structure-aware or straightforward.
        inverse_temperature: hardness of SWTA's competition, 1 to 100 in the paper's table 5 (there "temperature").
        decay: decay of TSA, see `swta_tsa`.
        center: take inputs and outputs less the mean of each channel over the batch of all processes, see
            `semiseg.hebbian.rules`.
        exclude: names of layers that keep their random weights, or patterns such as `decoder.*`.
        **kwargs: as `Method`.

    Raises:
        UserError: a pattern in `exclude` matches no layer, no rule exists for a layer, `compile` is asked for (a
            compiled network hides its layers' signals), or precision `16-mixed`, which scales gradients: none here.
    """

    def __init__(
        self,
        rule: Rule = "swta",
        transposed: Transposed = "tsa",
        inverse_temperature: float = 50.0,
        decay: Decay = "per_offset",
        center: bool = False,
        exclude: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.compile_network:
            raise UserError(
                "--model.compile: Hebbian rules see every layer, which a compiled network hides; leave it out"
            )
        check_number("--model.inverse_temperature", inverse_temperature, 0, 1e6, above=True)
        self.automatic_optimization = False
        self.network.requires_grad_(False)
        self.units = HebbianUnits(self.network, rule, transposed, inverse_temperature, decay, center, exclude)
        self.observers: list[Observer] = []  # called for each layer in the pass of each step

    def configure_callbacks(self) -> list[Callback]:
        """Records and figures of what is learnt."""
        return [WatchLearning()]

    def setup(self, stage: str) -> None:
        """As any method; refuse what would spoil the changes."""
        super().setup(stage)
        if self.trainer.precision == "16-mixed":
            raise UserError("--trainer.precision 16-mixed scales gradients, which there are none of; use bf16-mixed")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One pass, one change of every layer; returns the mean size of the changes, relative to the weights."""
        self.units.learn(self.network, batch["unlabeled"]["image"], *self.observers)
        average_over_processes([weight.grad for weight in self.units.weights if weight.grad is not None])
        change = self.units.relative_change()
        self.optimizers().step()  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr, call-arg]
        self.units.fold()
        self.log("train/change", change)
        return change


def average_over_processes(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one exchange."""
    if not tensors or whole_batch.world_size() == 1:
        return
    together = whole_batch.mean(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, mean in zip(tensors, torch.split(together, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
