"""Two processes learn what one learns with twice the batch: every method, to the rounding of double precision."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_batch_steps import METHODS, train_all

from semiseg import methods

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["semiseg.methods", "semiseg.running.callbacks", "torch._dynamo"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What became of each method, in one process and in two."""
    folder = tmp_path_factory.mktemp("trained")
    pair = [CONTEXT.Process(target=train_all, args=(folder, rank)) for rank in (0, 1)]
    for process in pair:
        process.start()
    try:
        train_all(folder)
        for process in pair:
            process.join(240)
        assert [process.exitcode for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
    return folder


def test_no_method_is_left_out():
    bases = ("Method", "PretrainingMethod", "SegmentationMethod", "SemiSupervisedMethod", "TeacherStudentMethod")
    assert {kind for kind, _ in METHODS.values()} == set(methods.__all__) - set(bases)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one_with_twice_the_batch(name: str, folder: Path):
    alone, first, second = (result(folder, name, process) for process in ("alone", 0, 1))
    close = {"rtol": 1e-9, "atol": 1e-12}
    for pair in (first, second):
        for step, (expected, logged) in enumerate(zip(alone["logged"], pair["logged"], strict=True)):
            # the masks of other images are those of the process
            same = {key: value for key, value in logged.items() if key != "collapse/shuffled"}
            assert same == pytest.approx({key: expected[key] for key in same}, rel=1e-9, abs=1e-12), f"step {step}"
        torch.testing.assert_close(pair["weights"], alone["weights"], **close)


def result(folder: Path, name: str, process: Any) -> dict[str, Any]:
    return torch.load(folder / f"{name}-{process}.pt", weights_only=True)
