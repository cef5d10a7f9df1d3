"""The Hebbian side of a plain network: raw weights beside it, hooks that apply the rules, unit norm folded in."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semiseg import whole_batch
from semiseg.errors import UserError
from semiseg.hebbian import rules
from semiseg.hebbian.rules import Convolution, Decay, Geometry, TransposedConvolution
from semiseg.networks import Network

Rule = Literal["swta", "hpca", "normalize", "none"]
Transposed = Literal["tsa", "s"]
Observer = Callable[[str, Tensor, Tensor], None]
"""Called with the name, input and output of a layer when it computes."""


class HebbianUnits(nn.Module):
    """Raw weights of the layers of a network that learn by a Hebbian rule.

    The network stays what it is, a plain one: the weights it computes with are at all times the raw ones with unit
    norm per neuron, so that saving it needs no folding back. Only what learns is here: the raw weights, whose norm
    the decay of a rule governs. A neuron is an output channel, and with rule S an input channel of a transposed
    convolution.

    All convolutions and transposed convolutions learn, except in the network's `head` and where `exclude` says.

    Args:
        network: network whose weights are normalised here and at each `fold`; it is not part of this module.
        rule: `swta` or `hpca`; `normalize`: unit norm and no learning; `none`: the weights stay as they are.
        transposed: extension to transposed convolutions.
        inverse_temperature: hardness of SWTA's competition.
        decay: decay of TSA.
        center: take inputs and outputs less the mean of each channel.
        exclude: names of layers that do not learn, or patterns of names such as `decoder.*`.

    Raises:
        UserError: a pattern matches no layer, no layer is left, or no rule exists for a layer.
    """

    def __init__(
        self,
        network: Network,
        rule: Rule = "swta",
        transposed: Transposed = "tsa",
        inverse_temperature: float = 50.0,
        decay: Decay = "per_offset",
        center: bool = False,
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.rule = rule
        self.layers = _layers(network, exclude)  # a dict, so that they are not registered here once more
        self.weights = nn.ParameterList([nn.Parameter(layer.weight.detach().clone()) for layer in self.layers.values()])
        self.geometries = {name: Geometry.of(layer) for name, layer in self.layers.items()}
        self.inverse_temperature = inverse_temperature
        self.center = center
        gate = {"inverse_temperature": inverse_temperature} if rule == "swta" else {}
        conv: Callable[..., Tensor] = rules.swta if rule == "swta" else rules.hpca
        straight: Callable[..., Tensor] = rules.swta_s if rule == "swta" else rules.hpca_s
        aware: Callable[..., Tensor] = rules.swta_tsa if rule == "swta" else rules.hpca_tsa
        upsampling = partial(aware, decay=decay) if transposed == "tsa" else straight
        self.changes = {
            name: partial(upsampling if geometry.transposed else conv, geometry=geometry, center=center, **gate)
            for name, geometry in self.geometries.items()
        }
        self.unit_axis = {
            name: 1 if geometry.transposed and transposed == "tsa" else 0 for name, geometry in self.geometries.items()
        }
        self.fold()

    @property
    def learns(self) -> bool:
        """Whether the rule changes weights at all."""
        return self.rule in ("swta", "hpca")

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name of each layer and its raw weight."""
        return zip(self.layers, self.weights, strict=True)

    def gate(self, name: str, input: Tensor, output: Tensor) -> Tensor:
        """How much each unit of a layer wins at each position under rule `swta`: (B, units, *N), sums over units 1."""
        straight = self.geometries[name].transposed and self.unit_axis[name] == 0
        signal = (input if straight else output).to(self.layers[name].weight.dtype)
        return rules.softmax_gate(signal, self.inverse_temperature, self.center)

    @torch.no_grad()
    def fold(self) -> None:
        """Give the network the raw weights with unit norm per neuron; a neuron of zeros stays."""
        if self.rule != "none":
            for name, weight in self.named_weights():
                torch.div(weight, unit_norms(weight, self.unit_axis[name]), out=self.layers[name].weight)

    @contextmanager
    def watching(self, see: Observer) -> Iterator[None]:
        """Call `see(name, input, output)` whenever a layer computes."""
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output, name=name: see(name, inputs[0], output))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def learn(self, network: Network, image: Tensor, *observers: Observer) -> None:
        """Run the network once; leave in each raw weight's `grad` minus the change that its rule wants.

        Every layer learns from the same pass, from what it saw then, and its signals are let go as the pass goes on.
        """
        weights = dict(self.named_weights())

        def see(name: str, input: Tensor, output: Tensor) -> None:
            with whole_batch.alone():  # not every process has observers
                for observer in observers:
                    observer(name, input, output)
            if self.learns:
                with torch.autocast(input.device.type, enabled=False):
                    change = self.changes[name](input, output, weights[name])
                # laid out as the weight: torch's fused optimisers read a gradient's memory in the weight's order
                weights[name].grad = torch.neg(change, out=torch.empty_like(weights[name]))

        with self.watching(see):
            network.features(image)

    @torch.no_grad()
    def relative_change(self) -> Tensor:
        """Mean over layers of the norm of the change over the norm of the weight."""
        learnt = [weight for weight in self.weights if weight.grad is not None]
        shares = [torch.linalg.vector_norm(weight.grad) / torch.linalg.vector_norm(weight) for weight in learnt]
        return torch.stack(shares).mean() if shares else torch.zeros((), device=self.weights[0].device)


def unit_norms(weight: Tensor, axis: int) -> Tensor:
    """Euclidean norms of a weight's neurons, its slices along `axis`, in a shape that divides it; 1 for zeros."""
    norm = torch.linalg.vector_norm(weight, dim=[dim for dim in range(weight.ndim) if dim != axis], keepdim=True)
    return torch.where(norm > 0, norm, 1)


def _layers(network: Network, exclude: Sequence[str]) -> dict[str, Convolution | TransposedConvolution]:
    """Name to layer, in the order of the network's modules."""
    head = set(network.head.modules())
    found: dict[str, Any] = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Convolution | TransposedConvolution) and module not in head
    }
    for pattern in exclude:
        matched = fnmatch.filter(found, pattern)
        if not matched:
            names = list(found)
            raise UserError(
                f"--model.exclude {pattern}: no such layer; there are {names[0]}, {names[1]} ... {names[-1]}"
            )
        for name in matched:
            del found[name]
    if not found:
        raise UserError("--model.exclude: no layer is left that could learn; exclude fewer")
    return found
