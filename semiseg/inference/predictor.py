"""A trained checkpoint applied to images of one's own, geometry kept. It needs neither the data nor the YAML."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semiseg.components.diffusion import MaskSampler
from semiseg.data.io import Image, read_image
from semiseg.data.preprocessing import Preprocessing, resize_logits
from semiseg.errors import UserError, check_number
from semiseg.files import import_from_here
from semiseg.losses import entropy
from semiseg.methods import PretrainingMethod, SegmentationMethod
from semiseg.running.checkpoints import load_checkpoint

_OWN_PACKAGES = {"semiseg", "torch"}


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
        trust: import classes that are not part of semiseg, such as a method of one's own. Importing runs code: do so
            only with checkpoints of people you trust.
        samples: number of noises over which a method that segments from noise averages; default: as it was scored.
        threshold: of two classes, the second is where its probability is above this; default: where it is the higher.

    Raises:
        UserError: the checkpoint is missing, corrupt, of another program, or of foreign classes without `trust`; or
            its method segments without noise and `samples` are asked for, or more than two classes with a `threshold`.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str | None = None,
        trust: bool = False,
        samples: int | None = None,
        threshold: float | None = None,
    ) -> None:
        content = load_checkpoint(checkpoint)
        foreign = sorted(set(_foreign_classes(content["hyper_parameters"])))
        if foreign and not trust:
            raise UserError(
                f"{checkpoint}: needs {foreign[0]}, which is not part of semiseg; importing it runs its code: if you "
                "trust this checkpoint, add --trust"
            )
        for path in foreign:
            _import(path, checkpoint)
        module, _, name = str(content["hyper_parameters"].get("_class_path", "")).rpartition(".")
        if issubclass(getattr(sys.modules.get(module), name, SegmentationMethod), PretrainingMethod):
            raise UserError(
                f"{checkpoint}: of a first stage ({name}), which segments nothing; train a second one from it (semiseg "
                f"fit ... --model.network.weights {checkpoint}) and predict with that"
            )
        try:
            self.device = torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
        except (RuntimeError, AssertionError) as error:  # unknown, or not in this machine
            raise UserError(f"--device {device}: {str(error).splitlines()[0][:120]}; use cpu or cuda") from error
        try:
            method = SegmentationMethod.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # the classes that it names have changed since
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{checkpoint}: does not fit this version of semiseg ({reason})") from error
        if samples is not None:
            check_number("--samples", samples, 1)
            if not isinstance(method.scored_network, MaskSampler):
                raise UserError(f"--samples: {checkpoint} segments without noise ({name}); leave it out")
            method.scored_network.samples = samples
        self.method = method.eval().to(self.device)
        assert method.preprocessing is not None
        self.preprocessing: Preprocessing = method.preprocessing
        if threshold is not None:
            check_number("--threshold", threshold, 0, 1)
            if (classes := len(self.preprocessing.class_names)) > 2:
                raise UserError(f"--threshold: {checkpoint} tells {classes} classes apart, not two; leave it out")
        self.threshold = threshold

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
        try:
            prepared = self.preprocessing.prepare(image)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        batch = self.preprocessing.normalise(prepared)[None].to(self.device)
        logits = resize_logits(self.method(batch).float(), image.array.shape[1:])
        probabilities = logits.softmax(1)
        classes = logits.argmax(1) if self.threshold is None else probabilities[:, 1] > self.threshold
        return Prediction(image, classes[0].cpu().numpy().astype(np.uint8), probabilities[0].cpu().numpy())

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """Class map to the values that stand for the classes in the mask files that the network learnt from."""
        values = np.array(self.preprocessing.class_values)
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[classes]


def _foreign_classes(hyper_parameters: Any) -> Iterator[str]:
    """Class paths outside semiseg and torch, anywhere in the hyperparameters."""
    if isinstance(hyper_parameters, dict):
        for key, value in hyper_parameters.items():
            if key in ("class_path", "_class_path") and str(value).split(".")[0] not in _OWN_PACKAGES:
                yield str(value)
            yield from _foreign_classes(value)
    elif isinstance(hyper_parameters, list | tuple):
        for value in hyper_parameters:
            yield from _foreign_classes(value)


def _import(path: str, checkpoint: Path) -> None:
    import_from_here()
    try:
        __import__(path.rpartition(".")[0])
    except ImportError as error:
        raise UserError(
            f"{checkpoint}: needs {path}, which cannot be imported ({error}); run where its file is, or put its folder "
            "on PYTHONPATH"
        ) from error
