"""Perturbations: their sizes, what they leave alone, and smoothing against SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from semiseg.components.perturbations import FeatureDrop, FeatureDropout, FeatureNoise, noisy, smoothed, strong_view

SHAPES = [(3, 2, 12, 10), (2, 1, 6, 8, 10)]


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_normal_and_cut(shape):
    image = torch.randn(shape).repeat(1, 50, *[1] * (len(shape) - 2))
    noise = noisy(image) - image
    assert noise.abs().max() <= 0.2 + 1e-6
    assert float(noise.std()) == pytest.approx(0.0954, abs=0.01)  # 0.1, less what is cut at two standard deviations


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothing_is_scipys(shape):
    image = torch.randn(shape)
    sigma = torch.tensor([0.5, 1.0, 1.7])[: shape[0]]
    results = smoothed(image, sigma)
    for sample, result, s in zip(image, results, sigma, strict=True):
        for channel, got in zip(sample, result, strict=True):
            expected = gaussian_filter(channel.numpy(), float(s), radius=4, mode="nearest")
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(smoothed(image, sigma), results)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_strong_view_changes_intensities_only(shape):
    torch.manual_seed(0)
    image = torch.randn(shape)
    assert torch.equal(strong_view(image, probability=0, blur=0), image)
    jittered = strong_view(image, probability=1, blur=0)
    for before, after in zip(image.flatten(1), jittered.flatten(1), strict=True):
        correlation = torch.corrcoef(torch.stack([before, after]))[0, 1]
        assert float(correlation) == pytest.approx(1, abs=1e-4)  # contrast and brightness: an affine map of each image
        slope = after.std() / before.std()
        assert 0.5 <= float(slope) <= 1.5
        assert not torch.allclose(after, before)
    assert not torch.allclose(strong_view(image, probability=0, blur=1), image)


@pytest.mark.parametrize("shape", SHAPES)
def test_feature_perturbations_are_bounded_and_rest_in_evaluation(shape):
    features = torch.rand(shape) + 0.1
    ratio = FeatureNoise(0.3)(features) / features
    assert ratio.min() >= 0.7 - 1e-5
    assert ratio.max() <= 1.3 + 1e-5
    assert ratio.std() > 0.1
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # the same for all of a batch
    features[0] *= 10  # each image has a threshold of its own
    attention = features.mean(1)
    for _ in range(20):
        dropped = FeatureDrop()(features)
        gone = (dropped == 0).all(1)
        for lost, activity in zip(gone, attention, strict=True):
            assert not lost.all()
            assert activity[lost].min() >= activity[~lost].max()  # the most active places go, whole
            assert activity[lost].min() >= 0.7 * activity.max()
            assert activity[~lost].max() < 0.9 * activity.max()
        assert torch.equal(dropped.movedim(1, -1)[~gone], features.movedim(1, -1)[~gone])
    for module in (FeatureNoise(), FeatureDrop(), FeatureDropout(torch.nn.Dropout(0.5))):
        assert torch.equal(module.eval()(features), features)
