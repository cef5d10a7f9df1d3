"""`semiseg predict CKPT INPUT... --output DIR`."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from semiseg.data.io import Image, find_images, is_image, stem_of
from semiseg.errors import OneLineParser, UserError
from semiseg.evaluation.panels import case_panel, overlay, save_png
from semiseg.inference.predictor import Prediction, Predictor
from semiseg.trust import add_trust_option


def predict_command(args: Sequence[str]) -> None:
    """Segment files and folders of images; what fails is named and does not stop the others.

    Raises:
        UserError: nothing to do, outputs that would clash, or, at the end, images that failed.
    """
    parser = OneLineParser(
        "semiseg predict",
        description="Segment images with a trained checkpoint. Masks have the size, spacing, origin and direction of "
        "their image and the format of its file (PNG for JPEG and BMP, NIfTI for DICOM).",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="RUN/checkpoints/best.ckpt")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="image, folder of images, DICOM folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the masks")
    parser.add_argument("--overlay", action="store_true", help="also write the mask drawn over the image, as PNG")
    parser.add_argument(
        "--probabilities", action="store_true",
        help="also write each foreground class's probability (2D: 8-bit PNG, 255 is 1; 3D: in the image's format)",
    )  # fmt: skip
    parser.add_argument(
        "--uncertainty", action="store_true",
        help="also write the entropy of each pixel's probabilities, 0 sure to 1 all classes alike (files as above)",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, metavar="N", help="noises to average over (diffusion methods only)")
    parser.add_argument(
        "--threshold", type=float, metavar="P",
        help="two classes: foreground is where its probability is above P (default: where it is the higher one)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU")
    add_trust_option(parser, "the checkpoint")
    options = parser.parse_args(args)

    images = _collect(options.inputs)
    _refuse_clashes(images, options.output)
    predictor = Predictor(options.checkpoint, options.device, options.trust, options.samples, options.threshold)
    if predictor.method.search_threshold and options.threshold is None:
        print(
            f"{options.checkpoint}: its test searches a threshold; without --threshold, which may be the one in the "
            "run's status.json, a pixel goes to its likelier class"
        )
    with _folder(options.output):
        _predict(predictor, images, options)


def _predict(predictor: Predictor, images: Sequence[Path], options: argparse.Namespace) -> None:
    failed: list[str] = []
    for number, path in enumerate(images, start=1):
        try:
            prediction = predictor(path)
            stem = _stem(path)
            target = options.output / f"{stem}{prediction.image.suffix}"
            prediction.image.write(predictor.to_values(prediction.classes), target)
            if options.overlay:
                save_png(_overlay(prediction, path), options.output / f"{stem}_overlay.png")
            if options.probabilities:
                names = safe_names(predictor.preprocessing.class_names)
                for name, probability in list(zip(names, prediction.probabilities, strict=True))[1:]:
                    _write_map(prediction.image, probability, options.output, f"{stem}_probability_{name}")
            if options.uncertainty:
                _write_map(prediction.image, prediction.uncertainty, options.output, f"{stem}_uncertainty")
        except UserError as error:
            failed.append(str(error))
            print(f"{number}/{len(images)} {path} FAILED: {error}", flush=True)
        else:
            print(f"{number}/{len(images)} {path} -> {target}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(images)} images failed, the first: {failed[0]}")


def safe_names(names: Sequence[str]) -> list[str]:
    """Names of classes as parts of file names, each of its own: letters, digits, `-` and `_` of ASCII."""
    plain = [re.sub("[^A-Za-z0-9_-]", "_", name) for name in names]
    safe: dict[int, str] = {}
    for index in sorted(range(len(names)), key=lambda index: plain[index] != names[index]):  # those that stay first
        tries = (plain[index], *(f"{plain[index]}_{number}" for number in range(len(names))))
        taken = {name.lower() for name in safe.values()}
        safe[index] = next(name for name in tries if name.lower() not in taken)
    return [safe[index] for index in range(len(names))]


def _stem(path: Path) -> str:
    """Name of an input without suffix, which is one name also where the path is `.` or `..`."""
    return stem_of(path if path.name not in ("", "..") else path.resolve()) or "image"


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """A folder that is made, and taken away again where nothing came into it."""
    try:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror}; choose a folder that can be written") from error
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _collect(inputs: Sequence[Path]) -> list[Path]:
    """Files, the images of folders, and folders that are DICOM series."""
    images: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if is_image(path):
            images.append(path)
        elif path.is_dir():
            if not (found := find_images(path)):
                raise UserError(f"{path}: no images in this folder (PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MHA, h5, DICOM)")
            images += found
        else:
            raise UserError(f"{path}: unknown image format; use PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MHA, h5 or DICOM")
    return images


def _refuse_clashes(images: Sequence[Path], output: Path) -> None:
    stems: dict[str, Path] = {}
    for path in images:
        if (other := stems.setdefault(_stem(path), path)) is not path:
            raise UserError(f"{path} and {other} would both become {output / _stem(path)}.*; predict them separately")
        if path.parent.resolve() == output.resolve():
            raise UserError(f"--output {output}: is the folder of the input {path.name}; choose another, masks never "
                            "overwrite images")  # fmt: skip
    for stem, path in stems.items():
        first, _, _ = stem.partition("_probability_")
        for ending in ("_overlay", "_uncertainty"):
            first = first.removesuffix(ending)
        if first != stem and first in stems:
            raise UserError(
                f"the mask of {path} would have the name of a map of {stems[first]}; predict them separately"
            )


def _overlay(prediction: Prediction, path: Path) -> np.ndarray:
    array = prediction.image.array
    if array.ndim == 4:
        return case_panel(array, None, prediction.classes, _stem(path))
    picture = np.moveaxis(array, 0, -1) if array.shape[0] == 3 else array[0]
    return overlay(picture, prediction.classes)


def _write_map(image: Image, values: np.ndarray, output: Path, stem: str) -> None:
    """Numbers from 0 to 1, as grey levels of a picture or as they are in a volume."""
    levels = (255 * values).round().astype(np.uint8) if values.ndim == 2 else values.astype(np.float32)
    image.write(levels, output / f"{stem}{image.suffix}")
