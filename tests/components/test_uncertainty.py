"""Monte-Carlo uncertainty: the mean of the passes and its entropy, and how often the network runs."""

import math

import pytest
import torch

from semiseg.components.uncertainty import monte_carlo


@pytest.mark.parametrize("classes", [2, 4])
def test_mean_and_entropy_of_the_passes(classes):
    outputs = [torch.randn(2, classes, 3, 3) for _ in range(4)]
    seen = []

    def network(image):
        seen.append(image)
        return outputs[len(seen) - 1]

    image = torch.zeros(2, 1, 3, 3)
    mean, entropy = monte_carlo(network, image, passes=4)
    assert len(seen) == 4
    assert not torch.equal(seen[0], seen[1])
    expected = sum(output.softmax(1) for output in outputs) / 4
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(entropy, -(expected * expected.log()).sum(1) / math.log(classes), atol=1e-4, rtol=0)


def test_a_sure_network_has_none_and_an_undecided_one_all():
    image = torch.zeros(1, 1, 2, 2)
    sure = torch.tensor([100.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert monte_carlo(lambda _: sure, image)[1].abs().max() < 1e-4
    torch.testing.assert_close(
        monte_carlo(lambda _: torch.zeros(1, 3, 2, 2), image)[1], torch.ones(1, 2, 2), atol=1e-4, rtol=0
    )
