"""Hebbian rules: from the input, output and weight of one layer to the change of its weight. Pure functions.

Ciampi, Lagani, Amato, Falchi, "Biologically-inspired semi-supervised semantic segmentation for biomedical imaging",
Neural Networks 2025, https://arxiv.org/abs/2412.03192, sections 3 and 4, equations 2 to 4.

Every rule has the form change = sum over positions of gate x (target - reconstruction). Layers are convolutions or
transposed convolutions, 2D or 3D, of any kernel, stride, padding, dilation and output padding. The sums over
positions are those of a weight gradient or of a Gram matrix and are computed by such a kernel, so that no unfolded
copy of the input exists (FastHebb, Lagani et al., 2022, https://arxiv.org/abs/2207.03172, has the same idea).

Shapes: input (B, Ci, *N), output (B, Co, *M), weight (Co, Ci, *K) of a convolution or (Ci, Co, *K) of a transposed
one. All is computed in the weight's precision, for which a caller turns autocast off: sums over all pixels of an image
would overflow in half precision.

The change is the mean over batch and positions, or, with `reduction="sum"`, the sum, as in the authors' code. With
`center`, input and output are first taken less the mean of each channel over batch and positions: features after a
rectifier are all positive, and the direction of their mean would otherwise win every competition and be the first
component (not in the paper, whose appendix A calls the second moment a covariance).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semiseg import whole_batch
from semiseg.errors import UserError

Reduction = Literal["mean", "sum"]
Decay = Literal["per_offset", "summed", "paper"]
Convolution = nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose2d | nn.ConvTranspose3d

BLOCK = 128  # units whose decay by the units before them is computed at a time


@dataclass(frozen=True)
class Geometry:
    """How a layer's kernel meets its input: the arguments of a convolution, one number per axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool

    @classmethod
    def of(cls, layer: Convolution | TransposedConvolution) -> Geometry:
        """The geometry of a layer.

        Raises:
            UserError: the layer is grouped, or pads with something else than zeros, or unevenly: no rule for it exists.
        """
        if layer.groups != 1:
            raise UserError(f"{layer}: Hebbian rules are not defined for grouped convolutions; exclude this layer")
        padding = layer.padding
        if padding == "valid":
            padding = (0,) * len(layer.kernel_size)
        elif padding == "same":
            spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            padding = tuple(span // 2 for span in spans) if all(span % 2 == 0 for span in spans) else "uneven"
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            raise UserError(f"{layer}: Hebbian rules know even padding with zeros only; exclude this layer")
        transposed = isinstance(layer, TransposedConvolution)
        return cls(layer.stride, padding, layer.dilation, layer.output_padding, transposed)


@torch.no_grad()
def swta(
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    inverse_temperature: float = 50.0,
    center: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Soft winner takes all of a convolution (equation 2): each unit moves to the centroid of what it wins.

    `change_j = sum_n r_jn (u_n - w_j)`, where u_n is the input patch at position n and r_n the softmax of
    `inverse_temperature` x output over the units. The paper divides by a temperature t but lists 1 to 100 in its
    table 5, where larger is harder: those are inverse temperatures, as in its authors' code.
    """
    input, output = input.to(weight.dtype), output.to(weight.dtype)
    gate = softmax_gate(output, inverse_temperature, center)
    change = _correlate(input, gate, weight, geometry, input if center else None)
    change.addcmul_(_per_unit(_total(gate), weight), weight, value=-1)
    return _reduce(change, output, reduction)


@torch.no_grad()
def hpca(
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    center: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hebbian principal components of a convolution (equation 3, Sanger's rule): unit j finds component j.

    `change_j = sum_n y_jn (u_n - sum_{m <= j} y_mn w_m)`, where u_n is the input patch at position n.
    """
    input, output = input.to(weight.dtype), output.to(weight.dtype)
    output = less_mean(output) if center else output
    change = _correlate(input, output, weight, geometry, input if center else None)
    _decay_by_earlier_units(change, _gram(output, output), weight)
    return _reduce(change, output, reduction)


@torch.no_grad()
def swta_s(
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    inverse_temperature: float = 50.0,
    center: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """SWTA-S, the straightforward extension to a transposed convolution: input and output exchange their roles.

    `change_i = sum_n r_in (v_n - w_i)`, where v_n is the output patch that input position n reaches and r_n the
    softmax of `inverse_temperature` x input over the input channels, which are the units.
    """
    input, output = input.to(weight.dtype), output.to(weight.dtype)
    gate = softmax_gate(input, inverse_temperature, center)
    change = _correlate(gate, output, weight, geometry, output if center else None)
    change.addcmul_(_per_unit(_total(gate), weight), weight, value=-1)
    return _reduce(change, input, reduction)


@torch.no_grad()
def hpca_s(
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    center: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """HPCA-S, the straightforward extension to a transposed convolution: input and output exchange their roles.

    `change_i = sum_n x_in (v_n - sum_{m <= i} x_mn w_m)`, where v_n is the output patch of input position n.
    """
    input, output = input.to(weight.dtype), output.to(weight.dtype)
    input = less_mean(input) if center else input
    change = _correlate(input, output, weight, geometry, output if center else None)
    _decay_by_earlier_units(change, _gram(input, input), weight)
    return _reduce(change, input, reduction)


@torch.no_grad()
def swta_tsa(
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    inverse_temperature: float = 50.0,
    decay: Decay = "per_offset",
    center: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """SWTA-TSA, the transposed-structure-aware extension: gate from the upsampled map, target the downsampled one.

    With R the softmax of `inverse_temperature` x output over the output channels, which are the units, and r_oqn its
    value where kernel offset q puts input position n, the target term is `sum_n r_oqn x_n` for offset q of unit o.

    Args:
        input: downsampled map.
        output: upsampled map.
        weight: the layer's weight.
        geometry: of the layer.
        inverse_temperature: hardness of the competition.
        decay: `per_offset` (default; deviates from the paper): each offset decays by its own gate,
            `sum_n r_oqn (x_n - w_oq)`, so that it rests at the centroid of what it wins. `paper`: as printed,
            `sum_n r_oqn (x_n - sum_q' w_oq')`; `summed`: the authors' code, `- sum_q' (sum_n r_oq'n) w_oq'`. With
            these two, differences between the offsets of a unit have no fixed point, and SWTA's weights grow forever.
        center: take input and output less the mean of each channel.
        reduction: mean or sum over batch and input positions.
    """
    input, output = input.to(weight.dtype), output.to(weight.dtype)
    gate = softmax_gate(output, inverse_temperature, center)
    change = _correlate(input, gate, weight, geometry, input if center else None)
    mass = change.new_empty(weight.shape[1:])  # (Co, *K): how much each unit wins at each offset
    for offset, part in offsets(gate, weight, geometry, input):
        mass[offset] = _total(part)
    axes = tuple(range(1, mass.ndim))
    if decay == "per_offset":
        change.addcmul_(mass, weight, value=-1)
    elif decay == "summed":
        change -= (mass * weight).sum([axis + 1 for axis in axes], keepdim=True)
    else:
        change -= mass * weight.flatten(2).sum(2).view(*weight.shape[:2], *[1] * len(axes))
    return _reduce(change, input, reduction)


@torch.no_grad()
def hpca_tsa(
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    decay: Decay = "per_offset",
    center: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """HPCA-TSA, the transposed-structure-aware extension of Sanger's rule: units are the output channels.

    With y_oqn the output where kernel offset q puts input position n, the target term is `sum_n y_oqn x_n`. The
    decay of offset q of unit o is, by `decay` (see `swta_tsa`):

    - `per_offset`: `sum_{m <= o} (sum_n y_oqn y_mqn) w_mq`, Sanger's rule for each offset,
    - `paper`: `sum_q' sum_{m <= o} (sum_n y_oqn y_mq'n) w_mq'`,
    - `summed`: `sum_q' sum_{m <= o} (sum_n y_oq'n y_mq'n) w_mq'`.
    """
    input, output = input.to(weight.dtype), output.to(weight.dtype)
    output = less_mean(output) if center else output
    change = _correlate(input, output, weight, geometry, input if center else None)
    parts = dict(offsets(output, weight, geometry, input))
    if decay == "per_offset":
        for q, part in parts.items():
            change[q] -= weight[q] @ _gram(part, part).tril().T
    elif decay == "summed":
        decayed = [weight[q] @ _gram(part, part).tril().T for q, part in parts.items()]
        change -= torch.stack(decayed).sum(0).view(*weight.shape[:2], *[1] * (weight.ndim - 2))
    else:
        for (q, part), (p, other) in itertools.product(parts.items(), parts.items()):
            change[q] -= weight[p] @ _gram(part, other).tril().T
    return _reduce(change, input, reduction)


def _correlate(
    input: Tensor, signal: Tensor, weight: Tensor, geometry: Geometry, target: Tensor | None = None
) -> Tensor:
    """Gradient of `(signal x layer(input)).sum()` by the weight: the sum over positions of signal and input patch.

    With `target`, which is the input or the signal, it is that of the target less its mean per channel. The sum is
    linear: the mean's part is taken off it afterwards, with one channel of ones, so that no centred copy is needed.
    """
    change = _weight_gradient(input, signal, weight, geometry)
    if target is not None:
        axis = int((target is input) != geometry.transposed)  # of the target's channels in the weight
        ones = torch.ones_like(target[:, :1])
        pair = (ones, signal) if target is input else (input, ones)
        share = _weight_gradient(*pair, weight.narrow(axis, 0, 1), geometry)
        change -= share * _mean(target).view([-1 if dim == axis else 1 for dim in range(weight.ndim)])
    return change


def _weight_gradient(input: Tensor, signal: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    _, gradient, _ = torch.ops.aten.convolution_backward(
        signal, input, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.transposed,
        geometry.output_padding, 1, (False, True, False),
    )  # fmt: skip
    return gradient  # type: ignore[no-any-return]


def _decay_by_earlier_units(change: Tensor, gram: Tensor, weight: Tensor) -> None:
    """Take `sum_{m <= j} gram_jm w_m` off the change of each unit j.

    Block by block, which leaves out most products with the zeros above the diagonal, and on the change as it lies in
    memory, without a copy.
    """
    order = [0, *sorted(range(1, change.ndim), key=change.stride, reverse=True)]
    rows = change.permute(order).view(len(change), -1)
    units = weight.permute(order).flatten(1)
    for start in range(0, len(rows), BLOCK):
        stop = start + BLOCK
        rows[start:stop].addmm_(gram[start:stop, :stop].tril(start), units[:stop], alpha=-1)


def less_mean(features: Tensor) -> Tensor:
    """Features (B, C, *N) less the mean of each channel over batch and positions."""
    return features - _mean(features).view(-1, *[1] * (features.ndim - 2))


def softmax_gate(features: Tensor, inverse_temperature: float, center: bool = False) -> Tensor:
    """Softmax of `inverse_temperature` x features (B, C, *N) over the channels, in the same memory layout.

    With `center`, of the features less the mean of each channel over batch and positions.

    torch's softmax copies what is not contiguous along its axis: channels-last maps are seen as rows of channels,
    others by sample.
    """
    axis = -1 if features.movedim(1, -1).is_contiguous() else 1
    shift = -inverse_temperature * _mean(features) if center else features.new_zeros(1)
    gate = torch.add(shift.view(-1, *[1] * (features.ndim - 2)), features, alpha=inverse_temperature)
    for part in [gate.movedim(1, -1)] if axis == -1 else torch.split(gate, 1):
        torch.softmax(part, axis, out=part)
    return gate


def offsets(signal: Tensor, weight: Tensor, geometry: Geometry, input: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """For each kernel offset, its index in a weight, and the upsampled map (B, Co, *M) where it puts input positions.

    These parts are views, of a zero-padded copy where the layer pads or crops.
    """
    kernel, positions = weight.shape[2:], input.shape[2:]
    spans = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(positions, geometry.stride, geometry.dilation, kernel, strict=True)
    ]
    around = [(p, span - p - m) for p, span, m in zip(geometry.padding, spans, signal.shape[2:], strict=True)]
    if any(before or after for before, after in around):
        signal = F.pad(signal, [width for pair in reversed(around) for width in pair])
    for offset in itertools.product(*map(range, kernel)):
        starts = [o * d for o, d in zip(offset, geometry.dilation, strict=True)]
        window: Any = [
            slice(start, start + (n - 1) * s + 1, s)
            for start, n, s in zip(starts, positions, geometry.stride, strict=True)
        ]
        yield (..., *offset), signal[(..., *window)]


def _gram(one: Tensor, other: Tensor) -> Tensor:
    """(C, C'): products of the channels of two maps (B, C, *N) and (B, C', *N), summed over batch and positions."""
    one, other = (features.movedim(1, -1).reshape(-1, features.shape[1]) for features in (one, other))
    return one.T @ other


def _mean(features: Tensor) -> Tensor:
    """Mean of each channel of features (B, C, *N) over the batch of all processes and positions: (C,)."""
    return whole_batch.mean(features.mean((0, *range(2, features.ndim))))


def _total(gate: Tensor) -> Tensor:
    """Sum of a gate (B, C, *N) over batch and positions: (C,)."""
    return gate.sum((0, *range(2, gate.ndim)))


def _per_unit(values: Tensor, weight: Tensor) -> Tensor:
    """Values (C,) in a shape that multiplies a weight (C, ...)."""
    return values.view(-1, *[1] * (weight.ndim - 1))


def _reduce(change: Tensor, positions: Tensor, reduction: Reduction) -> Tensor:
    """Divide by the number of positions of a map (B, C, *N), batch included, unless the sum is wanted."""
    return change.div_(positions.numel() // positions.shape[1]) if reduction == "mean" else change
