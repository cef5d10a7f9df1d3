"""The forward process against its formula, and masks from noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semiseg.components.diffusion import Diffusion, MaskSampler
from semiseg.errors import UserError

KEPT = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


@pytest.mark.parametrize("t", [0, 1, 250, 999])
def test_moments_of_what_is_noised(t: int) -> None:
    torch.manual_seed(t)
    clean = torch.full((4, 2, 100, 100), 1.5)
    x = Diffusion().noised(clean, torch.randn_like(clean), torch.full((4,), t))
    assert x.mean().item() == pytest.approx(1.5 * np.sqrt(KEPT[t]), abs=0.02)
    assert x.std().item() == pytest.approx(np.sqrt(1 - KEPT[t]), rel=0.02)


def test_images_of_variance_one_keep_it() -> None:
    torch.manual_seed(0)
    image = torch.randn(8, 1, 64, 64)
    for t in (0, 300, 999):
        assert Diffusion().noised(image, torch.randn_like(image), torch.full((8,), t)).var().item() == pytest.approx(
            1, abs=0.03
        )


@pytest.mark.parametrize("shape", [(3, 2, 8, 10), (3, 2, 4, 6, 8)])
def test_the_true_noise_gives_the_image_back(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    diffusion, image, noise = Diffusion(), torch.randn(shape).double(), torch.randn(shape).double()
    t = torch.tensor([0, 500, 999])
    assert torch.allclose(diffusion.clean(diffusion.noised(image, noise, t), noise, t), image, atol=1e-5)


def test_pure_noise_is_noise_of_nothing() -> None:
    torch.manual_seed(0)
    masks, t = Diffusion().pure_masks(torch.zeros(500, 1, 8, 8), 3)
    assert masks.shape == (500, 3, 8, 8)
    late = t > 500
    assert masks[late].std() > masks[~late].std()
    assert masks.mean().item() == pytest.approx(0, abs=0.02)
    assert (t.min() < 50) & (t.max() > 950) & (t.max() < 1000)


def pathway(image: torch.Tensor, noisy_mask: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return image.mean(1, keepdim=True) + noisy_mask + t.view(-1, *(1,) * (image.ndim - 1)) / 1000


def test_an_image_always_gets_the_same_mask() -> None:
    images = torch.randn(3, 1, 8, 8)
    sampler = MaskSampler(pathway, 2, start=0.7, samples=3)
    together = sampler(images)
    assert torch.equal(together, sampler(images))
    assert torch.allclose(together[1:2], sampler(images[1:2])), "it depends on what else is in the batch"
    assert torch.allclose(together.exp().sum(1), torch.ones(3, 8, 8))
    assert not torch.equal(together, MaskSampler(pathway, 2, start=0.7, samples=3, seed=1)(images))


def test_the_mean_is_over_noises() -> None:
    image = torch.randn(1, 1, 8, 8)
    sampler = MaskSampler(pathway, 3, samples=4)
    drawn = list(sampler.draw(image))
    assert len(drawn) == 4
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.allclose(sampler(image).exp(), torch.stack(drawn).mean(0))


def test_denoising_steps_lead_from_the_start_to_the_mask() -> None:
    seen = []

    def mask(image: torch.Tensor, noisy_mask: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((int(t[0]), noisy_mask.clone()))
        return torch.stack([image[:, 0] * 50, -image[:, 0] * 50], 1)

    image = torch.where(torch.rand(1, 1, 8, 8) > 0.5, 1.0, -1.0)
    MaskSampler(mask, 2, start=1.0, denoising_steps=4)(image)
    assert [t for t, _ in seen] == [999, 749, 500, 250]
    one_hot = torch.cat([image > 0, image < 0], 1).float()
    for t, x in seen[1:]:  # a mask known for sure is followed: what is left is the noise of the time
        noise = (x - np.sqrt(KEPT[t]) * one_hot) / np.sqrt(1 - KEPT[t])
        assert noise.mean().abs() < 0.4
        assert noise.std().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("start", [0.25, 1.0])
def test_the_noise_is_that_of_its_time(steps: int, start: float) -> None:
    seen = []
    MaskSampler(lambda image, x, t: seen.append((x, t)) or x, 2, steps=steps, start=start)(torch.zeros(1, 1, 64, 64))
    ((x, t),) = seen
    assert t.tolist() == [round(start * (steps - 1))]
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, steps))[int(t)]
    assert x.std().item() == pytest.approx(np.sqrt(1 - kept), rel=0.05)


def test_no_pass_is_made_twice() -> None:
    seen = []
    MaskSampler(lambda image, x, t: seen.append(int(t)) or x, 2, start=0.0, denoising_steps=5)(torch.zeros(1, 1, 8, 8))
    assert seen == [0]
    MaskSampler(lambda image, x, t: seen.append(int(t)) or x, 2, 5, 1.0, denoising_steps=9)(torch.zeros(1, 1, 8, 8))
    assert seen[1:] == [4, 3, 2, 1]


def test_half_precision_leaves_the_schedule_as_it_is() -> None:
    diffusion, image = Diffusion(), torch.randn(2, 1, 8, 8, dtype=torch.bfloat16)
    assert diffusion.noised(image, image, torch.tensor([3, 999])).dtype == torch.bfloat16
    assert np.allclose(diffusion.cumulative.numpy(), KEPT, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start": 2.0}, "start"),
        ({"samples": 0}, "num_samples"),
        ({"denoising_steps": 0}, "denoising_steps"),
        ({"steps": 0}, "diffusion_steps"),
    ],
)
def test_numbers_that_cannot_be(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        MaskSampler(pathway, 2, **options)
