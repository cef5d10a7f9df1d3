"""What every network promises, in 2D and 3D and with every norm."""

import math
from functools import partial

import pytest
import torch

from semiseg.errors import UserError
from semiseg.networks import Denoiser, UNet, VNet

NETWORKS = {
    "unet": partial(UNet, widths=(4, 6, 8), dropout=(0.1, 0.2, 0.3)),
    "unet-bilinear-deep": partial(UNet, widths=(4, 6, 8), dropout=(0.1, 0.2, 0.3), upsample="bilinear", head="deep"),
    "vnet": partial(VNet, base=2),
    "denoiser": partial(Denoiser, widths=(4, 6, 8), dropout=(0.1, 0.2, 0.3), image_pathway=False),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=NETWORKS)
def build(request):
    return NETWORKS[request.param]


def image_for(network, channels, spatial_dims, batch=2):
    sides = (2 * network.stride, *[network.stride] * (spatial_dims - 1))  # unequal sides, more than one coarse pixel
    return torch.randn(batch, channels, *sides)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_shape_and_gradient(build, spatial_dims, norm):
    network = build(3, 5, spatial_dims=spatial_dims, norm=norm)
    image = image_for(network, 3, spatial_dims)
    logits = network(image)
    assert logits.shape == (2, 5, *image.shape[2:])
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("weight"):  # a bias in front of a norm has no gradient
            assert parameter.grad.any(), name


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (2, 3), (4, 7)])
def test_channels_and_classes(build, channels, classes):
    network = build(channels, classes, spatial_dims=2)
    image = image_for(network, channels, 2)
    assert network(image).shape == (2, classes, *image.shape[2:])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_parts_make_the_whole(build, spatial_dims):
    network = build(1, 2, spatial_dims=spatial_dims).eval()
    image = image_for(network, 1, spatial_dims)
    features = network.encode(image)
    assert [f.shape[2] for f in features] == [image.shape[2] // 2**level for level in range(len(features))]
    assert features[-1].shape[-1] * network.stride == image.shape[-1]
    full = network.decoder(features)
    assert full.shape == (2, features[0].shape[1], *image.shape[2:])
    assert torch.equal(network.head(full), network(image))


def test_eval_is_deterministic_and_independent_of_the_batch(build):
    network = build(1, 2, spatial_dims=2)
    image = image_for(network, 1, 2, batch=3)
    assert not torch.equal(network(image), network(image))  # dropout
    network.eval()
    assert torch.equal(network(image), network(image))
    torch.testing.assert_close(network(image)[:1], network(image[:1]), atol=1e-4, rtol=1e-4)


def test_where_dropout_acts(build):
    network = build(1, 2, spatial_dims=2, norm="instance")  # no batch statistics: dropout alone is random
    image = image_for(network, 1, 2)
    features = network.encode(image)
    assert not torch.equal(network.encode(image)[-1], features[-1])
    full = network.decoder(features)
    assert torch.equal(network.decoder(features), full)
    head_drops = any(isinstance(layer, torch.nn.modules.dropout._DropoutNd) for layer in network.head.modules())
    assert head_drops == (len(list(network.head.modules())) > 2), "one convolution has nothing to drop"
    assert torch.equal(network.head(full), network.head(full)) != head_drops


def test_every_skip_is_used(build):
    network = build(1, 2, spatial_dims=2).eval()
    features = network.encode(image_for(network, 1, 2))
    whole = network.decoder(features)
    for level in range(len(features)):
        without = [torch.zeros_like(f) if i == level else f for i, f in enumerate(features)]
        assert not torch.equal(network.decoder(without), whole), level


def test_size_that_is_no_multiple_of_the_stride_is_named(build):
    network = build(1, 2, spatial_dims=2)
    side = network.stride + 1
    with pytest.raises(UserError, match=rf"\({side}, {2 * network.stride}\).* multiple of {network.stride};"):
        network(torch.zeros(1, 1, side, 2 * network.stride))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_initialisation(spatial_dims):
    network = UNet(2, 3, spatial_dims=spatial_dims, widths=(16, 32), dropout=(0, 0))
    for weight in (network.encoder.levels[1][1].weight, network.decoder.ups[0].weight):
        expected = math.sqrt(2 / (weight.shape[1] * weight[0, 0].numel()))
        assert weight.std().item() == pytest.approx(expected, rel=0.06)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("upsample", "head", "count"),
    [
        ("bilinear", "deep", 1_841_794),
        ("transposed", "deep", 1_972_354),
        ("transposed", "single", 1_944_322),
        ("bilinear", "single", 1_813_762),
    ],
)
def test_unet_parameter_count(upsample, head, count):
    network = UNet(3, 2, upsample=upsample, head=head)
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.stride == 16


def test_vnet_parameter_count():
    network = VNet(1, 2)  # the 9.45 million of the left-atrium papers
    assert sum(p.numel() for p in network.parameters()) == 9_448_866


def test_widths_and_dropout_of_different_length():
    with pytest.raises(UserError, match="2 widths and 3 dropout"):
        UNet(1, 2, widths=(4, 8), dropout=(0.1, 0.1, 0.1))
