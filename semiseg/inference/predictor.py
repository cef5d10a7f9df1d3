"""A trained checkpoint applied to images of one's own, geometry kept. It needs neither the data nor the YAML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semiseg.components.diffusion import MaskSampler
from semiseg.data.io import Image, read_image
from semiseg.data.preprocessing import MAX_PIXELS, Preprocessing, resize_logits
from semiseg.errors import UserError, check_number
from semiseg.inference.building import Builder
from semiseg.losses import entropy
from semiseg.methods import Method, SegmentationMethod
from semiseg.running.checkpoints import load_checkpoint
from semiseg.torch_files import differences
from semiseg.trust import import_trusted, named_class

MAX_GROWTH = 64  # voxels that resampling may make of one


@dataclass(frozen=True)
class Prediction:
    """Result for one image, at the image's own size: class map (*S) and probabilities (K, *S), in `image`'s order."""

    image: Image
    classes: np.ndarray
    probabilities: np.ndarray

    @property
    def uncertainty(self) -> np.ndarray:
        """Entropy (*S) of the probabilities, from 0, sure, to 1, all classes alike."""
        return entropy(torch.from_numpy(self.probabilities)[None])[0].clamp(0, 1).numpy()


class Predictor:
    """Segments images as the checkpoint's method was scored: the same preprocessing, window and network.

    A threshold that a test searches (`--model.threshold validation`) is not in the checkpoint: give it.

    Args:
        checkpoint: checkpoint of a run.
        device: where to compute, as torch names it; default: the first GPU, else the CPU.
        trust: modules besides semiseg whose classes the checkpoint may name, such as that of a method of one's own.
            They are imported, which runs their code; the checkpoint itself is data and runs none.
        samples: number of noises over which a method that segments from noise averages; default: as it was scored.
        threshold: of two classes, the second is where its probability is above this; default: where it is the higher.

    Raises:
        UserError: the checkpoint is missing, corrupt, of another program, names classes of modules that are not
            trusted, or holds a value that cannot be; or its method segments without noise and `samples` are asked for,
            or more than two classes with a `threshold`.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str | None = None,
        trust: Sequence[str] = (),
        samples: int | None = None,
        threshold: float | None = None,
    ) -> None:
        content = load_checkpoint(checkpoint)
        import_trusted(trust, str(checkpoint))
        cls = named_class(content["hyper_parameters"].get("_class_path"), Method, trust, str(checkpoint))
        if not issubclass(cls, SegmentationMethod):
            raise UserError(
                f"{checkpoint}: of a first stage ({cls.__name__}), which segments nothing; train a second one from it "
                f"(semiseg fit ... --model.network.weights {checkpoint}) and predict with that"
            )
        try:
            self.device = torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
        except (RuntimeError, AssertionError) as error:  # unknown, or not in this machine
            raise UserError(f"--device {device}: {str(error).splitlines()[0][:120]}; use cpu or cuda") from error
        self.preprocessing = Preprocessing.from_dict(content["preprocessing"])
        method = _restored(cls, content, trust, checkpoint)
        if samples is not None:
            check_number("--samples", samples, 1)
            if not isinstance(method.scored_network, MaskSampler):
                raise UserError(f"--samples: {checkpoint} segments without noise ({cls.__name__}); leave it out")
            method.scored_network.samples = samples
        self.method = method.eval().to(self.device)
        if threshold is not None:
            check_number("--threshold", threshold, 0, 1)
            if (classes := len(self.preprocessing.class_names)) > 2:
                raise UserError(f"--threshold: {checkpoint} tells {classes} classes apart, not two; leave it out")
        self.threshold = threshold
        self.checkpoint = checkpoint

    @torch.inference_mode()
    def __call__(self, path: Path) -> Prediction:
        """Segment one image file."""
        image = read_image(path, self.preprocessing.h5_axes, self.preprocessing.h5_spacing)
        given, wanted = image.array.ndim - 1, self.preprocessing.spatial_dims
        if given != wanted:
            kind = "pictures such as PNG" if wanted == 2 else "volumes such as NIfTI"
            raise UserError(
                f"{path}: is a {given}D image; {wanted}D images are expected here: give {kind}, or a checkpoint "
                f"trained on {given}D images"
            )
        grid, voxels = self.preprocessing.grid(image), math.prod(image.array.shape[1:])
        if math.prod(grid) > max(MAX_PIXELS, MAX_GROWTH * voxels):
            raise UserError(f"{path}: would become {grid} voxels by the spacing of {self.checkpoint}; check its header")
        try:
            prepared = self.preprocessing.prepare(image)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        batch = self.preprocessing.normalise(prepared)[None].to(self.device)
        logits = resize_logits(self.method(batch).float(), image.array.shape[1:])
        if not torch.isfinite(logits).all():
            raise UserError(f"{path}: the scores of {self.checkpoint} are not numbers; use another checkpoint")
        probabilities = logits.softmax(1)
        classes = logits.argmax(1) if self.threshold is None else probabilities[:, 1] > self.threshold
        return Prediction(image, classes[0].cpu().numpy().astype(np.uint8), probabilities[0].cpu().numpy())

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """Class map to the values that stand for the classes in the mask files that the network learnt from."""
        values = np.array(self.preprocessing.class_values)
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[classes]


def _restored(
    cls: type[SegmentationMethod], content: dict[str, Any], trust: Sequence[str], checkpoint: Path
) -> SegmentationMethod:
    """The method of a checkpoint with its weights.

    It is built without memory first: sizes that a checkpoint declares must be those of the tensors that it holds.

    Raises:
        UserError: the checkpoint's parts do not fit together, or not this version of semiseg.
    """
    facts, builder = content["hyper_parameters"], Builder(str(checkpoint), trust)
    preprocessing = content["preprocessing"]
    given = {**preprocessing, "num_classes": len(preprocessing["class_names"])}
    for name in ("spatial_dims", "in_channels", "num_classes"):
        if type(facts.get(name)) is not int or facts[name] != given[name]:
            raise UserError(f"{checkpoint}: its method and its images differ in {name}; it is damaged or was altered")

    def build() -> tuple[Any, dict[str, Any]]:
        parts = {**content, "state_dict": dict(content["state_dict"])}
        method = builder.method(cls, facts)
        method.on_load_checkpoint(parts)
        return method, parts["state_dict"]

    def fit_together(method: Any, state: dict[str, Any]) -> None:
        if method.strict_loading and (problems := differences(state, method.state_dict())):
            raise UserError(
                f"{checkpoint}: does not fit this version of semiseg ({next(iter(problems.values()))}, "
                f"{len(problems)} difference(s))"
            )

    try:
        with torch.device("meta"):
            fit_together(*build())
    except UserError as error:
        if not trust or isinstance(error.__cause__, UserError | None):
            raise
        # else a class of one's own looks at values while it is made
    method, state = build()
    fit_together(method, state)
    method.load_state_dict(state, strict=method.strict_loading)
    sampler = method.scored_network
    if isinstance(sampler, MaskSampler):
        check_number(f"{checkpoint}: start", float(sampler.start), 0, 1)
        check_number(f"{checkpoint}: num_samples x denoising_steps", sampler.samples * sampler.denoising_steps, 1, 1000)
    restored: SegmentationMethod = method
    return restored
