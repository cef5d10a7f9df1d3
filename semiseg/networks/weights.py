"""Start a network from the weights of an earlier stage: all of them or an error, only the head may differ."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from semiseg.errors import UserError
from semiseg.torch_files import PythonObjectsError, UnreadableError, differences, is_finite, read_torch_file

PREFIX = "network."  # where a LightningModule of this package keeps its network
HEAD = "head."


@dataclass(frozen=True)
class WeightsReport:
    """The keys that were loaded, and the keys of the head that do not fit and were left out."""

    matched: tuple[str, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        afresh = f"; the head starts afresh where it differs: {', '.join(self.skipped)}" if self.skipped else ""
        return f"loaded {len(self.matched)} tensors{afresh}"


def load_weights(network: nn.Module, path: str | None, spare: tuple[str, ...] = ()) -> WeightsReport | None:
    """Load a Lightning checkpoint of this package, or a plain state_dict, into `network` and print what was loaded.

    A checkpoint that fits only partly would train well enough to hide the mistake, so every parameter and buffer of
    the network must be in the file with its shape, and every key of the file must be used. The one exception are the
    keys under `head.`, since stage 1 may have had other classes: those that do not fit keep their fresh
    initialisation and are reported. Of a Lightning checkpoint only the keys under `network.` count.

    Args:
        network: network to fill, in place.
        path: file to read; None does nothing.
        spare: beginnings of keys that the file may hold and the network does without.

    Returns:
        What was loaded, or None without a path.

    Raises:
        UserError: the file is missing, is damaged or no checkpoint, holds Python objects beside tensors and plain
            values, or values that are not numbers, has no key of the network, or belongs to another architecture.
    """
    if path is None:
        return None
    found, wanted = _read(Path(path).expanduser()), network.state_dict()
    found = {key: value for key, value in found.items() if not key.startswith(spare)}
    if not found.keys() & wanted.keys():
        raise UserError(
            f"weights {path}: its keys ({_first(list(found))}) are none of this network's ({_first(list(wanted))}); "
            "give a checkpoint of stage 1 or the state_dict of the same network"
        )
    problems = differences(found, wanted)
    if broken := next((key for key in found if key not in problems and not is_finite(found[key])), None):
        raise UserError(f"weights {path}: {broken} holds values that are not numbers; give an earlier checkpoint")
    shared: dict[tuple[int, tuple[int, ...]], str] = {}
    for key, value in wanted.items():
        twin = shared.setdefault((value.data_ptr(), tuple(value.shape)), key)
        twins = twin != key and value.numel() > 0 and not {key, twin} & problems.keys()
        if twins and not torch.equal(found[key], found[twin]):
            problems[key] = f"{key} and {twin} differ in the file but are one here"
    if misfits := [text for key, text in problems.items() if not key.startswith(HEAD)]:
        raise UserError(
            f"weights {path} are of another architecture: {_first(misfits)}; "
            "give the network the same options as in stage 1"
        )
    matched = {key: value for key, value in found.items() if key not in problems}
    network.load_state_dict(matched, strict=False)
    report = WeightsReport(tuple(matched), tuple(problems))
    rank_zero_only(print)(f"weights {path}: {report}")
    return report


def _read(path: Path) -> dict[str, Tensor]:
    """Return the network's part of the file's state_dict."""
    try:
        content = read_torch_file(path)
    except FileNotFoundError as error:
        raise UserError(
            f"weights {path}: no such file; correct the path, or leave `weights` out to start afresh"
        ) from error
    except PythonObjectsError as error:
        raise UserError(
            f"weights {path}: holds Python objects beside its tensors ({error}), which are refused because reading "
            "them can run code; save the network alone with torch.save(network.state_dict(), path)"
        ) from error
    except UnreadableError as error:
        raise UserError(
            f"weights {path}: cannot be read as a PyTorch checkpoint ({error}); copy or save it again"
        ) from error
    state = content
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        whole = content["state_dict"]
        state = {key.removeprefix(PREFIX): value for key, value in whole.items() if str(key).startswith(PREFIX)}
    if isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        return state
    raise UserError(f"weights {path}: neither a Lightning checkpoint nor a state_dict; give a file that is one")


def _first(items: list[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return (", ".join(items[:count]) or "none") + more
