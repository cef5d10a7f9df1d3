"""The forward process of denoising diffusion, what undoes it, and masks from noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import pairwise

import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor, nn

from semiseg import whole_batch
from semiseg.errors import check_number
from semiseg.losses import probabilities


class Diffusion:
    """x_t = sqrt(A_t) x + sqrt(1 - A_t) noise, A_t the product of 1 - beta over the times up to t.

    Ho et al., "Denoising diffusion probabilistic models", 2020, https://arxiv.org/abs/2006.11239: beta from 0.0001 to
    0.02 in equal steps. Images are as `Preprocessing.normalise` leaves them, of mean 0 and variance 1 over the training
    set, so that x_t has variance 1 at every t; masks are probabilities (B, K, *S).

    Args:
        steps: number of times T; t is 0 to T - 1. beta does not depend on it: with T far below 1000 the last x_t is not
            pure noise (A_T is 0.36 for 100).

    Raises:
        UserError: there are no steps.
    """

    def __init__(self, steps: int = 1000) -> None:
        self.steps = steps
        check_number("--model.diffusion_steps", steps, 1, 100_000)
        scheduler = DDPMScheduler(steps, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
        self.cumulative: Tensor = scheduler.alphas_cumprod

    def times(self, like: Tensor) -> Tensor:
        """A time (B,) for each of a batch, all equally likely."""
        one_each = like.flatten(1)[:, 0]
        return whole_batch.each(lambda times: torch.randint(self.steps, times.shape, device=times.device), one_each)

    def noise(self, like: Tensor) -> Tensor:
        """Normal noise in the shape of a batch."""
        return whole_batch.each(torch.randn_like, like)

    def kept(self, t: Tensor, like: Tensor) -> Tensor:
        """A_t, one for each of a batch, in the shape that multiplies it."""
        kept = self.cumulative.to(like.device)[t].to(like.dtype)
        return kept.view(-1, *(1,) * (like.ndim - 1))

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        kept = self.kept(t, clean)
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def pure_noise(self, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of nothing: sqrt(1 - A_t) noise."""
        return self.noised(torch.zeros_like(noise), noise, t)

    def pure_masks(self, images: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Pure noise (B, K, *S) in place of the masks of images, and its times (B,)."""
        t = self.times(images)
        shape = (num_classes, *images.shape[2:])
        noise = whole_batch.each(lambda times: torch.randn(len(times), *shape, device=times.device), t)
        return self.pure_noise(noise, t), t

    def clean(self, noised: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What was noised, from x_t and the noise in it: sqrt(1 / A_t) x_t - sqrt(1 / A_t - 1) noise.

        The 2025 paper's equation 3 has a plus there.
        """
        inverse = 1 / self.kept(t, noised)
        return inverse.sqrt() * noised - (inverse - 1).sqrt() * noise


class MaskSampler(nn.Module):
    """Segment images from noise that is always the same, so that an image always gets the same mask.

    Args:
        mask: mask pathway, see `Denoiser.mask`; not registered as a part of this module.
        num_classes: K.
        steps: number of times T of the diffusion.
        start: time that the noise belongs to, as a share of T: 0 is almost no noise. A buffer, kept in checkpoints.
        samples: number of noises whose probabilities are averaged.
        denoising_steps: 1: one pass at `start`; more: DDIM (Song et al., 2021, https://arxiv.org/abs/2010.02502) from
            there in so many passes.
        seed: seed of the noise.
    """

    start: Tensor

    def __init__(
        self,
        mask: Callable[[Tensor, Tensor, Tensor], Tensor],
        num_classes: int,
        steps: int = 1000,
        start: float = 0.5,
        samples: int = 1,
        denoising_steps: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("--model.start", start, 0, 1)
        check_number("--model.num_samples", samples, 1, 1000)
        check_number("--model.denoising_steps", denoising_steps, 1, 1000)
        self.mask = mask
        self.num_classes = num_classes
        self.register_buffer("start", torch.tensor(float(start)))
        self.samples = samples
        self.denoising_steps = denoising_steps
        self.seed = seed
        self.diffusion = Diffusion(steps)

    def draw(self, image: Tensor) -> Iterator[Tensor]:
        """Probabilities (B, K, *S) from each noise, one after the other."""
        generator = torch.Generator().manual_seed(self.seed)
        first = round(self.start.item() * (self.diffusion.steps - 1))
        times = torch.linspace(first, 0, self.denoising_steps + 1).round().long().tolist()
        times = sorted(set(times), reverse=True) if first else [0, 0]
        for _ in range(self.samples):
            noise = torch.randn(1, self.num_classes, *image.shape[2:], generator=generator)  # the same for all images
            noise = noise.to(image).expand(len(image), *noise.shape[1:])
            x = self.diffusion.pure_noise(noise, torch.full((len(image),), times[0], device=image.device))
            for now, later in pairwise(times):
                t = torch.full((len(image),), now, device=image.device)
                p = probabilities(self.mask(image, x, t))
                x = self._step(p, x, now, later)
            yield p

    def _step(self, p: Tensor, x: Tensor, now: int, later: int) -> Tensor:
        """DDIM without noise: the same noise, less of it."""
        kept, next_kept = self.diffusion.cumulative[now], self.diffusion.cumulative[later]
        noise = (x - kept.sqrt() * p) / (1 - kept).sqrt()
        return next_kept.sqrt() * p + (1 - next_kept).sqrt() * noise

    def forward(self, image: Tensor) -> Tensor:
        """Logarithm of the mean probabilities (B, K, *S)."""
        total = reduce(torch.add, self.draw(image))  # one at a time, so that memory does not grow with their number
        return (total / self.samples).clamp_min(1e-12).log()
