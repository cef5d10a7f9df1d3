"""Every test has a cache of its own and one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import SimpleITK as sitk
import torch

sitk.ProcessObject_SetGlobalDefaultNumberOfThreads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The folder that decoded arrays go to."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEMISEG_CACHE", str(folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
