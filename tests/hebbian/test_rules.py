"""Hebbian rules against loops over their formulas, k-means, principal components, and in half precision."""

import itertools
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from semiseg.errors import UserError
from semiseg.hebbian.rules import BLOCK, Geometry, hpca, hpca_s, hpca_tsa, swta, swta_s, swta_tsa

DECAYS = ["per_offset", "summed", "paper"]
HARDNESS = 3.0  # inverse temperature at which no unit wins everything

CONVOLUTIONS = [
    nn.Conv2d(3, 4, 1),
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(0, 1)),
    nn.Conv2d(3, 2, 3, stride=2, padding=2, dilation=(2, 1)),
    nn.Conv2d(2, 3, 3, padding="same", dilation=(1, 2)),
    nn.Conv2d(2, 3, 2, padding="valid"),
    nn.Conv3d(2, 3, 1),
    nn.Conv3d(2, 3, 3, stride=(1, 2, 2), padding=1),
    nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 2), dilation=(1, 2, 1)),
]
TRANSPOSED = [
    nn.ConvTranspose2d(3, 4, 1),
    nn.ConvTranspose2d(2, 3, 2, stride=2),
    nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(3, 2, (2, 3), stride=(2, 1), padding=(0, 1)),
    nn.ConvTranspose2d(2, 3, (1, 2), stride=3, output_padding=(0, 2)),  # gaps that no input position reaches
    nn.ConvTranspose2d(2, 3, 3, stride=(1, 2), padding=(2, 1), dilation=(2, 1), output_padding=(1, 0)),
    nn.ConvTranspose3d(3, 2, 1),
    nn.ConvTranspose3d(2, 3, 2, stride=2),
    nn.ConvTranspose3d(
        2, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1), output_padding=(0, 1, 0), dilation=(1, 2, 1)
    ),
]
RULES = {"swta": swta, "hpca": hpca}
TRANSPOSED_RULES = {
    "swta_s": swta_s,
    "hpca_s": hpca_s,
    **{f"swta_tsa-{decay}": partial(swta_tsa, decay=decay) for decay in DECAYS},
    **{f"hpca_tsa-{decay}": partial(hpca_tsa, decay=decay) for decay in DECAYS},
}
EVERY_RULE = RULES | TRANSPOSED_RULES


def drawn(layer, std=0.5, seed=1):
    """The layer with random parameters, the same ones each time."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(seed))
    return layer


def describe(layer):
    return str(layer).replace(" ", "")


def random_map(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def signals(layer):
    """Input of odd shape, 2 samples, with the layer's output and weight."""
    input = random_map(2, layer.in_channels, *((5, 7) if layer.weight.ndim == 4 else (3, 5, 2)))
    return input, drawn(layer)(input).detach(), layer.weight.detach()


def hardness(name, value=HARDNESS):
    return {"inverse_temperature": value} if name.startswith("swta") else {}


def naive_patches(values, positions, layer):
    """(N, C, *K): what the kernel sees of a map (B, C, *M) from each position of a map (B, *, *N), zero outside."""
    kernel, padding = layer.kernel_size, layer.padding
    if isinstance(padding, str):
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(layer.dilation, kernel, strict=True)]
    patches = np.zeros((len(values), *positions, values.shape[1], *kernel))
    for sample, n, q in itertools.product(range(len(values)), np.ndindex(*positions), np.ndindex(*kernel)):
        at = tuple(np.array(n) * layer.stride + np.array(q) * layer.dilation - padding)
        if all(0 <= i < m for i, m in zip(at, values.shape[2:], strict=True)):
            patches[(sample, *n, slice(None), *q)] = values[(sample, slice(None), *at)]
    return patches.reshape(-1, values.shape[1], *kernel)


def by_position(values):
    """(N, C) of a map (B, C, *N)."""
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])


def naive_softmax(values):
    """Over axis 1."""
    values = np.exp(values - values.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def naive_change(name, layer, input, output):
    """Sum over batch and positions of the change by a rule, and how many positions there were."""
    input, output, weight = (a.detach().double().numpy() for a in (input, output, layer.weight))
    rule, _, decay = name.partition("-")
    if rule.endswith("_tsa"):
        gate = naive_softmax(HARDNESS * output) if rule.startswith("swta") else output
        targets, gates = by_position(input), naive_patches(gate, input.shape[2:], layer)
        return naive_structure_aware(rule, decay, targets, gates, weight), len(targets)
    units, seen = (input, output) if rule.endswith("_s") else (output, input)
    patches = naive_patches(seen, units.shape[2:], layer)
    units = by_position(units)
    gates = naive_softmax(HARDNESS * units) if rule.startswith("swta") else units
    change = np.zeros_like(weight)
    for gate, patch in zip(gates, patches, strict=True):
        for j in range(len(weight)):
            reconstruction = weight[j] if rule.startswith("swta") else sum(gate[m] * weight[m] for m in range(j + 1))
            change[j] += gate[j] * (patch - reconstruction)
    return change, len(patches)


def naive_structure_aware(rule, decay, targets, gates, weight):
    """Positions, units, offsets and, for the reconstruction, units and offsets again."""
    change, offsets = np.zeros_like(weight), list(np.ndindex(*weight.shape[2:]))

    def reconstruction(gate, o, q):
        """Of the target, by offset q of unit o."""
        if rule == "swta_tsa":
            return weight[(slice(None), o, *q)]
        return sum(gate[(m, *q)] * weight[(slice(None), m, *q)] for m in range(o + 1))

    for x, gate in zip(targets, gates, strict=True):
        for o in range(weight.shape[1]):
            parts = {q: reconstruction(gate, o, q) for q in offsets}
            for q in offsets:
                if decay == "per_offset":
                    decayed = gate[(o, *q)] * parts[q]
                elif decay == "paper":  # the gate of the offset, the reconstruction from all of them
                    decayed = gate[(o, *q)] * sum(parts.values())
                else:  # the authors' code: the decay of every offset, added up, meets each of them
                    decayed = sum(gate[(o, *p)] * parts[p] for p in offsets)
                change[(slice(None), o, *q)] += gate[(o, *q)] * x - decayed
    return change


@pytest.mark.parametrize(
    ("layer", "name"),
    [*itertools.product(CONVOLUTIONS, RULES), *itertools.product(TRANSPOSED, TRANSPOSED_RULES)],
    ids=lambda value: value if isinstance(value, str) else describe(value),
)
def test_against_loops(layer, name):
    input, output, weight = signals(layer)
    expected, positions = naive_change(name, layer, input, output)
    rule = partial(EVERY_RULE[name], geometry=Geometry.of(layer), **hardness(name))
    for dtype, tolerance in [(torch.float32, 1e-5), (torch.float64, 1e-12)]:
        total = rule(input.to(dtype), output.to(dtype), weight.to(dtype), reduction="sum")
        mean = rule(input.to(dtype), output.to(dtype), weight.to(dtype))
        assert total.dtype == mean.dtype == dtype
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(total.numpy() / scale, expected / scale, rtol=0, atol=tolerance)
        np.testing.assert_allclose(mean.numpy(), expected / positions, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=describe)
def test_gates_of_a_convolution_sum_to_one(layer):
    """With weight 0 no decay is left: the units share the mean patch among them."""
    input, output, weight = signals(layer)
    change = swta(input, output, torch.zeros_like(weight), Geometry.of(layer))
    mean_patch = naive_patches(input.numpy(), output.shape[2:], layer).mean(0)
    np.testing.assert_allclose(change.sum(0), mean_patch, atol=1e-5)


@pytest.mark.parametrize("layer", TRANSPOSED, ids=describe)
def test_gates_of_a_transposed_convolution_sum_to_one(layer):
    """Units are input channels that share the mean output patch, or output channels that share the mean input."""
    input, output, weight = signals(layer)
    zero, geometry = torch.zeros_like(weight), Geometry.of(layer)
    mean_patch = naive_patches(output.numpy(), input.shape[2:], layer).mean(0)
    np.testing.assert_allclose(swta_s(input, output, zero, geometry).sum(0), mean_patch, atol=1e-5)
    inside = naive_patches(np.ones((2, 1, *output.shape[2:])), input.shape[2:], layer)[:, 0]
    mean_input = np.einsum("ni,n...->i...", by_position(input.numpy()), inside) / len(inside)
    np.testing.assert_allclose(swta_tsa(input, output, zero, geometry).sum(1), mean_input, atol=1e-5)


def learn(layer, input, rule, steps, rate):
    """Weight after each of these plain steps along the rule's change.

    As in a network, filters have norm 1 in the forward pass, and the rule gets the raw ones.
    """
    weight, geometry = layer.weight.detach().clone(), Geometry.of(layer)
    unit_axis = 1 if geometry.transposed else 0
    axes = [axis for axis in range(weight.ndim) if axis != unit_axis]
    for _ in range(steps):
        layer.weight.data = weight / torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
        weight = weight + rate * rule(input, layer(input).detach(), weight, geometry)
        yield weight


def last(iterator):
    return deque(iterator, maxlen=1).pop()


def tile(patches, channels, size):
    """A square map whose patches, side by side, are the rows (N, channels * size**2)."""
    side = round(len(patches) ** 0.5)
    tiles = patches.reshape(side, side, channels, size, size).transpose(2, 0, 3, 1, 4)
    return torch.as_tensor(tiles.reshape(1, channels, side * size, side * size), dtype=torch.float32)


def cosines(rows, others):
    rows, others = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (np.asarray(rows), np.asarray(others)))
    return rows @ others.T


def gaussian(rng, samples, variances):
    """Samples (N, D) of mean 0 with these variances along random orthogonal axes, and those axes as rows."""
    axes = np.linalg.qr(rng.normal(size=(len(variances), len(variances))))[0]
    data = rng.normal(size=(samples, len(variances))) * np.sqrt(variances) @ axes
    data -= data.mean(0)
    return data, np.linalg.eigh(data.T @ data)[1].T[::-1]


@pytest.mark.parametrize("size", [1, 2])
def test_swta_finds_the_centres_that_k_means_finds(size):
    rng = np.random.default_rng(1)
    channels = 8 // size**2
    centres = np.linalg.qr(rng.normal(size=(8, 8)))[0][:4]
    patches = (centres[rng.integers(4, size=256)] + 0.1 * rng.normal(size=(256, 8))).astype(np.float32)

    def spread(means):
        return ((patches[:, None] - means) ** 2).sum(2).min(1).sum()

    # Both have local optima, where one centre serves two clusters: the best of a few starts.
    layer, rule = nn.Conv2d(channels, 4, size, stride=size, bias=False), partial(swta, inverse_temperature=12.0)
    starts = (drawn(layer, seed=seed) for seed in range(5))
    learned = [last(learn(start, tile(patches, channels, size), rule, 300, 0.5)).flatten(1).numpy() for start in starts]
    found = [kmeans2(patches, 4, minit="++", rng=np.random.default_rng(seed))[0] for seed in range(5)]
    learned, found = min(learned, key=spread), min(found, key=spread)
    similar = cosines(learned, found)
    match = similar.argmax(0)
    assert sorted(match) == [0, 1, 2, 3]
    assert similar.max(0).min() > 0.99
    np.testing.assert_allclose(learned[match], found, atol=0.05)  # not only its direction


@pytest.mark.parametrize("size", [1, 2])
def test_hpca_finds_the_principal_components_in_order(size):
    channels = 8 // size**2
    patches, components = gaussian(np.random.default_rng(1), 400, 0.6 ** np.arange(8))
    layer = drawn(nn.Conv2d(channels, 5, size, stride=size, bias=False), std=0.3)
    learned = last(learn(layer, tile(patches, channels, size), hpca, 1500, 0.3))
    assert np.abs(np.diag(cosines(learned.flatten(1), components[:5]))).min() > 0.99


def test_hpca_tsa_finds_the_principal_components_of_the_input_at_each_offset():
    data, components = gaussian(np.random.default_rng(2), 400, 0.5 ** np.arange(6))
    layer = drawn(nn.ConvTranspose2d(6, 3, 2, stride=2, bias=False), std=0.3)
    learned = last(learn(layer, tile(data, 6, 1), hpca_tsa, 1500, 0.3))
    for offset in learned.flatten(2).permute(2, 1, 0):
        assert np.abs(np.diag(cosines(offset, components[:3]))).min() > 0.99


def test_swta_tsa_is_bounded_only_if_each_offset_decays_by_itself():
    """Between offsets that share one decay differences grow as long as their targets differ."""
    input = random_map(1, 3, 4, 4)
    norms = {}
    for decay in DECAYS:
        layer = drawn(nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False))
        start = layer.weight.abs().max().item()
        weights = list(learn(layer, input, partial(swta_tsa, decay=decay), 5000, 0.1))
        norms[decay] = [weight.norm().item() for weight in (weights[99], weights[2499], weights[4999])]
        if decay == "per_offset":  # each step is a mean of weight and inputs
            assert max(weight.abs().max().item() for weight in weights) <= max(start, input.abs().max().item())
            torch.testing.assert_close(weights[-1], weights[-100], atol=1e-3, rtol=0)
    for decay in ["summed", "paper"]:
        early, middle, late = norms[decay]
        assert late > 1.9 * middle > 10 * early  # without end: in proportion to the steps


@pytest.mark.parametrize("layer", TRANSPOSED, ids=describe)
def test_straightforward_and_structure_aware_differ(layer):
    arguments = *signals(layer), Geometry.of(layer)
    for straightforward, structure_aware in [(swta_s, swta_tsa), (hpca_s, hpca_tsa)]:
        assert not torch.allclose(straightforward(*arguments), structure_aware(*arguments), atol=1e-2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", EVERY_RULE)
def test_samples_add_up_in_every_memory_layout(name, dims):
    """A large batch, as a whole and with channels last, changes the weight as its samples do one by one."""
    kind = (nn.ConvTranspose2d, nn.ConvTranspose3d) if name in TRANSPOSED_RULES else (nn.Conv2d, nn.Conv3d)
    layer = drawn(kind[dims - 2](4, 4, 2)).double()  # float32 would leave its rounding of the sums
    input = random_map(5, 4, *((90, 91) if dims == 2 else (16, 20, 25))).double()
    output, weight = layer(input).detach(), layer.weight.detach()
    rule = partial(EVERY_RULE[name], weight=weight, geometry=Geometry.of(layer), reduction="sum", **hardness(name))
    expected = sum(rule(*sample) for sample in zip(input.split(1), output.split(1), strict=True))
    channels_last = torch.channels_last if dims == 2 else torch.channels_last_3d
    for layout in [torch.contiguous_format, channels_last]:
        change = rule(input.to(memory_format=layout), output.to(memory_format=layout))
        assert (change - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_unit_decays_by_all_units_before_it_whatever_their_number(layout):
    layer = drawn(nn.Conv2d(2, 2 * BLOCK + 3, 2, bias=False)).to(memory_format=layout)
    input = random_map(1, 2, 5, 5).to(memory_format=layout)
    with torch.no_grad():
        output = layer(input)
    change = hpca(input, output, layer.weight, Geometry.of(layer), reduction="sum").flatten(1)
    patches, y = F.unfold(input, 2)[0], output.flatten(2)[0]
    expected = y @ patches.T - (y @ y.T).tril() @ layer.weight.detach().flatten(1)
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVERY_RULE)
def test_half_precision_maps_make_no_half_precision_sums(name, half, reduction):
    """Squares of 256 x 256 values of about 30, summed, overflow float16 and lose most digits in bfloat16."""
    transposed = name in TRANSPOSED_RULES
    layer = drawn(nn.ConvTranspose2d(3, 4, 2, stride=2) if transposed else nn.Conv2d(3, 4, 3, padding=1))
    input, weight = 30 * random_map(1, 3, *[128 if transposed else 256] * 2), layer.weight.detach()
    output = layer(input).detach()
    rule = partial(
        EVERY_RULE[name], weight=weight, geometry=Geometry.of(layer), reduction=reduction, **hardness(name, 0.1)
    )
    expected = rule(input, output)
    change = rule(input.to(half), output.to(half))
    assert change.dtype == torch.float32
    assert change.isfinite().all()
    assert (change - expected).norm() < 0.02 * expected.norm()
    # Nothing but the maps themselves was rounded.
    rounded = rule(input.to(half).float(), output.to(half).float())
    assert (change - rounded).norm() < 1e-6 * rounded.norm()


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.ConvTranspose3d(4, 4, 2, groups=4), "grouped"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "even padding with zeros only"),
        (nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"), "even padding with zeros only"),
        (nn.Conv2d(4, 4, 2, padding="same"), "even padding with zeros only"),
        (nn.Conv3d(4, 4, (3, 4, 3), padding="same", dilation=(1, 3, 1)), "even padding with zeros only"),
    ],
    ids=lambda value: "" if isinstance(value, str) else describe(value),
)
def test_layers_without_a_rule_are_refused_in_one_line(layer, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        Geometry.of(layer)
    assert str(caught.value).startswith(str(layer))  # which layer
    assert str(caught.value).endswith("; exclude this layer")  # what to do
    assert "\n" not in str(caught.value)


class Storages(TorchDispatchMode):
    """Watches for the largest storage, in bytes, that an operation returns. Views own nothing and do not count."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("name", EVERY_RULE)
def test_no_unfolded_copy(name):
    """A copy with every patch of the wider map side by side would be 9 times as large as that map."""
    kind = nn.ConvTranspose2d if name in TRANSPOSED_RULES else nn.Conv2d
    layer = kind(8, 8, 3, padding=1)
    input = random_map(2, 8, 48, 48)
    output = layer(input).detach()
    with Storages() as storages:
        EVERY_RULE[name](input, output, layer.weight.detach(), Geometry.of(layer))
    wider = output.untyped_storage().nbytes()
    assert 0 < storages.largest < 1.2 * wider  # room for a border of padding
    with Storages() as storages:
        F.unfold(output, 3, padding=1)
    assert storages.largest == 9 * wider  # an unfolded copy would have been seen


@pytest.mark.parametrize(
    ("layer", "name"),
    [*itertools.product(CONVOLUTIONS, RULES), *itertools.product(TRANSPOSED, TRANSPOSED_RULES)],
    ids=describe,
)
def test_centring_is_the_rule_on_maps_less_their_means(layer, name):
    input, output, weight = (values.double() for values in signals(layer))
    input, output = input + 2, output - 3
    centred = [features - features.mean([0, *range(2, features.ndim)], keepdim=True) for features in (input, output)]
    geometry, options = Geometry.of(layer), hardness(name)
    wanted = EVERY_RULE[name](*centred, weight, geometry, **options)
    torch.testing.assert_close(EVERY_RULE[name](input, output, weight, geometry, center=True, **options), wanted)
    assert not torch.allclose(EVERY_RULE[name](input, output, weight, geometry, **options), wanted)
