"""Hebbian units beside a plain network: which layers learn, unit norm, one pass, no graph, and what is left alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from semiseg.errors import UserError
from semiseg.hebbian.rules import Geometry, hpca_s, swta, swta_tsa
from semiseg.hebbian.units import HebbianUnits
from semiseg.networks import UNet, VNet

NETWORKS = {
    "unet-2d": lambda: UNet(3, 2, 2, widths=[4, 6], dropout=[0, 0]),
    "unet-2d-bilinear": lambda: UNet(3, 2, 2, widths=[4, 6], dropout=[0, 0], upsample="bilinear", head="deep"),
    "unet-3d": lambda: UNet(1, 3, 3, widths=[4, 6], dropout=[0, 0]),
    "vnet-3d": lambda: VNet(1, 2, 3, base=2),
}


def built(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    size = 16 if name.startswith("vnet") else 8
    dims, channels = (3, 1) if name.endswith("3d") else (2, 3)
    return network, torch.randn(2, channels, *[size] * dims)


def norms(weight, axis):
    return weight.movedim(axis, 0).flatten(1).norm(dim=1)


@pytest.mark.parametrize("transposed", ["tsa", "s"])
@pytest.mark.parametrize("rule", ["swta", "hpca"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_moves_every_layer_and_keeps_unit_norm(name, rule, transposed):
    network, image = built(name)
    head = {key: value.clone() for key, value in network.head.state_dict().items()}
    units = HebbianUnits(network, rule=rule, transposed=transposed)
    before = {layer: weight.detach().clone() for layer, weight in units.named_weights()}
    assert set(before) == {
        layer
        for layer, module in network.named_modules()
        if hasattr(module, "kernel_size") and hasattr(module, "weight") and not layer.startswith("head")
    }
    units.learn(network, image)
    torch.optim.Adam(units.parameters(), lr=0.1).step()
    units.fold()
    for layer, weight in units.named_weights():
        assert not torch.allclose(weight, before[layer]), layer
        axis = (
            1 if transposed == "tsa" and isinstance(units.layers[layer], nn.ConvTranspose2d | nn.ConvTranspose3d) else 0
        )
        folded = units.layers[layer].weight
        torch.testing.assert_close(norms(folded, axis), torch.ones(folded.shape[axis]))
        torch.testing.assert_close(F.normalize(weight.movedim(axis, 0).flatten(1)), folded.movedim(axis, 0).flatten(1))
    assert all(torch.equal(value, head[key]) for key, value in network.head.state_dict().items())


@pytest.mark.parametrize("rule", ["swta", "hpca"])
def test_a_fused_optimiser_reads_each_change_in_the_order_of_its_weight(rule):
    layout, image = torch.channels_last_3d, torch.randn(1, 1, 16, 16, 16)
    after = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = UNet(1, 2, 3, widths=[16, 16], dropout=[0, 0]).to(memory_format=layout)
        units = HebbianUnits(network, rule=rule)
        units.learn(network, image.to(memory_format=layout))
        assert all(weight.grad.stride() == weight.stride() for weight in units.weights)
        torch.optim.Adam(units.parameters(), lr=0.1, eps=1, fused=fused).step()
        after.append([weight.detach() for weight in units.weights])
    torch.testing.assert_close(*after)


@pytest.mark.parametrize("center", [False, True])
def test_gradients_are_minus_the_changes_of_one_pass_with_unit_norm_weights(center):
    """Reference: a network whose layers are normalised by hand, each layer's signals taken from one forward pass."""
    network, image = built("unet-2d")
    reference, _ = built("unet-2d")
    units = HebbianUnits(network, inverse_temperature=7.0, center=center)
    units.learn(network, image)
    first, up = reference.encoder.levels[0][1], reference.decoder.ups[0]
    raw = {"encoder.levels.0.1": first.weight.clone(), "decoder.ups.0": up.weight.clone()}
    seen = {}
    for module in reference.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module not in set(reference.head):
            dims = (0, 2, 3) if isinstance(module, nn.ConvTranspose2d) else (1, 2, 3)
            module.weight.data /= torch.linalg.vector_norm(module.weight.data, dim=dims, keepdim=True)
            module.register_forward_hook(lambda layer, inputs, output: seen.update({layer: (inputs[0], output)}))
    reference(image)
    weights = dict(units.named_weights())
    conv = swta(*seen[first], raw["encoder.levels.0.1"], Geometry.of(first), 7.0, center=center)
    transposed = swta_tsa(*seen[up], raw["decoder.ups.0"], Geometry.of(up), 7.0, center=center)
    torch.testing.assert_close(weights["encoder.levels.0.1"].grad, -conv)
    torch.testing.assert_close(weights["decoder.ups.0"].grad, -transposed)


def test_s_is_used_when_it_is_asked_for():
    network, image = built("unet-2d")
    units = HebbianUnits(network, rule="hpca", transposed="s")
    signals = {}
    with units.watching(lambda name, input, output: signals.update({name: (input, output)})), torch.no_grad():
        network(image)
    units.learn(network, image)
    up = network.decoder.ups[0]
    weight = dict(units.named_weights())["decoder.ups.0"]
    torch.testing.assert_close(weight.grad, -hpca_s(*signals["decoder.ups.0"], weight.detach(), Geometry.of(up)))


def test_no_graph_is_built():
    network, image = built("unet-2d")
    units = HebbianUnits(network)

    def fail(tensor):
        raise AssertionError("a tensor was saved for a backward pass")

    outputs = []
    with torch.autograd.graph.saved_tensors_hooks(fail, fail):
        units.learn(network, image.requires_grad_(), lambda name, input, output: outputs.append(output))
        units.fold()
    assert len(outputs) == len(units.layers)
    assert not any(output.requires_grad for output in outputs)
    assert all(weight.grad is not None and not weight.grad.requires_grad for weight in units.weights)


def test_batch_statistics_follow_and_what_is_frozen_stays():
    network, image = built("unet-2d")
    units = HebbianUnits(network)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    units.learn(network, image)
    torch.optim.Adam(units.parameters(), lr=0.1).step()
    units.fold()
    for key, value in network.state_dict().items():
        learns = key.removesuffix(".weight") in units.layers or "running" in key or "num_batches" in key
        assert torch.equal(value, state[key]) != (learns and not key.startswith("head")), key


@pytest.mark.parametrize("rule", ["normalize", "none"])
def test_controls_learn_nothing(rule):
    network, image = built("unet-2d")
    plain = {key: value.clone() for key, value in network.state_dict().items()}
    units = HebbianUnits(network, rule=rule)
    units.learn(network, image)
    assert all(weight.grad is None for weight in units.weights)
    torch.optim.Adam(units.parameters(), lr=0.1).step()
    units.fold()
    for name, layer in units.layers.items():
        same = torch.equal(layer.weight, plain[f"{name}.weight"])
        assert same == (rule == "none")
        torch.testing.assert_close(
            F.cosine_similarity(layer.weight.flatten(), plain[f"{name}.weight"].flatten(), dim=0), torch.ones(()),
            atol=0.3, rtol=0,
        )  # fmt: skip


def test_a_neuron_of_zeros_stays():
    network, _ = built("unet-2d")
    network.encoder.levels[0][1].weight.data[1] = 0
    HebbianUnits(network)
    assert norms(network.encoder.levels[0][1].weight, 0)[:3].tolist() == pytest.approx([1, 0, 1])


def test_excluded_layers_are_left_alone():
    network, image = built("unet-2d")
    before = {key: value.clone() for key, value in network.decoder.state_dict().items() if "running" not in key}
    units = HebbianUnits(network, exclude=["decoder.*"])
    assert all(name.startswith("encoder.") for name in units.layers)
    units.learn(network, image)
    torch.optim.Adam(units.parameters(), lr=0.1).step()
    units.fold()
    after = network.decoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if key.endswith("weight"))


@pytest.mark.parametrize(
    ("exclude", "message"), [(["Conv_1x1"], "Conv_1x1: no such layer"), (["*"], "no layer is left")]
)
def test_exclusions_that_cannot_be(exclude, message):
    network, _ = built("unet-2d")
    with pytest.raises(UserError, match=message):
        HebbianUnits(network, exclude=exclude)


def test_in_half_precision_changes_are_whole():
    network, image = built("unet-2d")
    units = HebbianUnits(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        units.learn(network, 100 * image)
    for weight in units.weights:
        assert weight.grad.dtype == torch.float32
        assert weight.grad.isfinite().all()
