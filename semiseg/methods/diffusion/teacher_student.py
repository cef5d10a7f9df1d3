"""Diffusion teacher-student: two denoisers of masks teach each other, over rounds of mask and image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from semiseg import losses, whole_batch
from semiseg.components.branches import another
from semiseg.components.diffusion import Diffusion, MaskSampler
from semiseg.errors import UserError, check_number
from semiseg.evaluation.cases import CaseTable
from semiseg.losses import probabilities
from semiseg.methods.base import NetworkFactory
from semiseg.methods.diffusion.watching import WatchTeaching
from semiseg.methods.semi_supervised import SemiSupervisedMethod
from semiseg.networks.denoiser import Denoiser

STARTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # times of noise that are tried on validation


class DiffusionTeacherStudent(SemiSupervisedMethod):
    """Cross pseudo-supervision of two denoisers, and rounds of diffusion through the teacher.

    Ciampi et al., "Semi-supervised biomedical image segmentation via diffusion models and teacher-student
    co-training", 2025, https://arxiv.org/abs/2504.01547, sections 3.2 and 3.3, equations 8 to 16. Teacher and student
    segment each image from the same noise; the decisions of each are the labels of the other. Then R times: the
    teacher's image pathway finds the image again from its noised self and the last mask, and its mask pathway segments
    what was found, which should give the label, or the student's decision (alignment), and the image
    (reconstruction). Losses: supervised of both + weight x (crossed + mean alignment + mean reconstruction), on labeled
    and unlabeled images. With `rounds` 0 it is CPS of denoisers.

    Start the teacher from `DiffusionPretrain` by `--model.network.weights`; the student starts afresh.

    Not said by the paper, and chosen here: each round noises the given image, not the one found before; what was found
    is clamped to the image's own range before it is segmented (at late times it is amplified 150 times); its error
    is weighted by A_t, see `DiffusionPretrain`; labeled and unlabeled images go through the rounds together. The
    supervised loss is the one of all methods (paper's text: cross-entropy). The authors' code of this part was never
    published. The running statistics of a `shared` teacher's batch normalisation are of mask and image passes alike:
    `score: teacher` is the worse for it.

    Args:
        network: a `Denoiser`: the teacher's.
        rounds: R (paper: 5).
        truncate: let no gradient pass from a round into the ones before. The gradient of each is then taken at its end,
            so that a step holds the activations of one round, however many there are, and a gradient for each.
        diffusion_steps: number of times T.
        start: time of the noise that is segmented from at inference, as a share of T, or `validation`: at each
            validation of a `fit` the best of 0, 0.25, 0.5, 0.75 and 1 there, which the checkpoint keeps. `val/dice` is
            then the best one's, and the others' are logged beside it; a validation costs five.
        num_samples: number of noises whose predictions are averaged at inference.
        denoising_steps: passes of each, see `MaskSampler`.
        score: the network that validation, test and predict use.
        **kwargs: as `SemiSupervisedMethod`.

    Raises:
        UserError: a number is out of its range, rounds without an image pathway, or truncated ones with 16-mixed.
    """

    network: Denoiser

    def __init__(
        self,
        network: NetworkFactory = Denoiser,
        rounds: int = 5,
        truncate: bool = False,
        diffusion_steps: int = 1000,
        start: float | Literal["validation"] = "validation",
        num_samples: int = 1,
        denoising_steps: int = 1,
        score: Literal["student", "teacher"] = "student",
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, **kwargs)
        check_number("--model.rounds", rounds, 0, 100)
        if rounds and getattr(self.network, "image_pathway", True) is None:
            raise UserError("--model.network.image_pathway false: rounds need it; leave it out, or --model.rounds 0")
        self.student = another(self.make_network, "first", image_pathway=False)
        self.rounds = rounds
        self.truncate = truncate
        self.diffusion = Diffusion(diffusion_steps)
        scored: Any = self.student if score == "student" else self.network
        self.search_start = start == "validation"
        self.sampler = MaskSampler(
            scored.mask,
            self.network.num_classes,
            diffusion_steps,
            0.5 if start == "validation" else start,
            num_samples,
            denoising_steps,
        )
        self.tables: dict[float, CaseTable] = {}
        self.rounds_seen: list[tuple[Tensor, Tensor, Tensor]] = []
        if not rounds:
            for parameter in self.network.image_only():
                parameter.requires_grad_(False)

    @property
    def scored_network(self) -> nn.Module:
        """The student's mask pathway from fixed noise, or the teacher's."""
        return self.sampler

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Supervised losses + weight x (crossed + alignment + reconstruction)."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        images = torch.cat([labeled["image"], unlabeled["image"]])
        known, index = len(labeled["image"]), torch.arange(len(images), device=images.device)
        with whole_batch.of_parts(known, len(images) - known):
            noise, t = self.diffusion.pure_masks(images, self.network.num_classes)

        def masks(network: Any) -> Tensor:
            parts = self.on_both(lambda i: network.mask(images[i], noise[i], t[i]), index[:known], index[known:])
            return torch.cat(parts)

        teacher, student = masks(self.network), masks(self.student)
        supervised = torch.stack([self.supervised_loss(m[:known], labeled["mask"]) for m in (teacher, student)]).sum()
        crossed = losses.cross_entropy(student, teacher.argmax(1)) + losses.cross_entropy(teacher, student.argmax(1))
        target = torch.cat([labeled["mask"], student[known:].argmax(1)])
        self.log("train/loss_crossed", crossed.detach())
        with whole_batch.of_parts(known, len(images) - known):
            through = self.go_round(images, teacher, target)
        decisions = teacher[known:].argmax(1), student[known:].argmax(1)
        self.seen = {
            "image": unlabeled["image"],
            "pseudo-label": decisions[0],
            "used": decisions[0] == decisions[1],
        }
        return self.total(supervised, crossed + through)

    def go_round(self, images: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Mean alignment and reconstruction losses of all rounds."""
        axes = tuple(range(1, images.ndim))
        least, most = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
        loss, weights = images.new_zeros(()), [weight for weight in self.network.parameters() if weight.requires_grad]
        logged = {"train/loss_alignment": images.new_zeros(()), "train/loss_reconstruction": images.new_zeros(())}
        self.rounds_seen = []
        for _ in range(self.rounds):
            s = self.diffusion.times(images)
            noised = self.diffusion.noised(images, self.diffusion.noise(images), s)
            given = probabilities(mask.detach() if self.truncate else mask)
            found = self.diffusion.clean(noised, self.network.noise(noised, given, s), s)
            error = (self.diffusion.kept(s, images) * (images - found).square()).mean()
            noise = self.diffusion.pure_masks(images, self.network.num_classes)
            mask = self.network.mask(found.clamp(least, most), *noise)
            aligned = losses.cross_entropy(mask, target)
            part = (aligned + error) / self.rounds
            loss = loss + (settled(part, weights) if self.truncate else part)
            for name, value in zip(logged, (aligned, error), strict=True):
                logged[name] += value.detach() / self.rounds
            self.rounds_seen.append((s[-1], found[-1].detach().clone(), mask[-1].argmax(0)))
        self.log_dict(logged)
        return loss

    def setup(self, stage: str) -> None:
        """As any method; refuse a precision whose scaled gradients truncated rounds would miss."""
        super().setup(stage)
        if self.truncate and self.trainer.precision == "16-mixed":
            raise UserError(
                "--trainer.precision 16-mixed scales the loss, but truncated rounds take their gradients before; use "
                "bf16-mixed, or --model.truncate false"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A time that is given goes before the one that was found."""
        super().on_load_checkpoint(checkpoint)
        if not self.search_start:
            checkpoint["state_dict"]["sampler.start"] = self.sampler.start.clone()

    def configure_callbacks(self) -> Sequence[Callback]:
        """Figures of the rounds, of the training and of what inference depends on."""
        return [WatchTeaching()]

    @property
    def story(self) -> dict[str, Tensor]:
        """The rounds of the last unlabeled image of the last step: what was found (C, *S), its class map (*S), ..."""
        story = {"mask": self.seen["pseudo-label"][-1]}
        for number, (s, found, mask) in enumerate(self.rounds_seen, start=1):
            story |= {f"{number}: found at t = {int(s)}": found, f"{number}: mask": mask}
        return story

    @torch.no_grad()
    def decide(self, image: Tensor) -> dict[str, Tensor]:
        """Class maps (B, *S) of teacher and student from the same noise."""
        networks: dict[str, Any] = {"teacher": self.network, "student": self.student}
        options: Any = (self.network.num_classes, self.diffusion.steps, self.sampler.start.item())
        return {name: MaskSampler(network.mask, *options)(image).argmax(1) for name, network in networks.items()}

    def on_validation_epoch_start(self) -> None:
        """Start a table for each time that is tried."""
        super().on_validation_epoch_start()
        search = self.search_start and self.trainer.state.fn == "fit"
        self.tables = {start: CaseTable() for start in (STARTS if search else [self.sampler.start.item()])}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """Dice of each case from noise of each time; the predictions are those of the time that was best before."""
        now, shown = self.sampler.start.item(), None
        for start, table in self.tables.items():
            self.sampler.start.fill_(start)
            self.cases = table
            predictions = super().validation_step(batch, batch_idx)
            shown = predictions if start == now else shown
        self.sampler.start.fill_(now)
        return shown

    def on_validation_epoch_end(self) -> None:
        """Keep the best time; of equally good ones the nearest to the middle."""
        for table in self.tables.values():
            self.gather(table)
        dice = {start: float(table.summary()["dice"]) for start, table in self.tables.items()}
        best = max(dice, key=lambda start: (dice[start], -abs(start - 0.5)))
        self.sampler.start.fill_(best)
        self.cases = self.tables[best]
        if len(dice) > 1:
            self.log("val/start", best)
            self.log_dict({f"start/{start:g}": value for start, value in dice.items()})
        super().on_validation_epoch_end()


def settled(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same value and gradient, without the graph behind it, whose memory is free again."""
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    pairs = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
    return loss.detach() + torch.stack([((w - w.detach()) * g).sum() for w, g in pairs]).sum()
