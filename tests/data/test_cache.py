"""The cache of decoded arrays: never stale, never half an array, never in the way."""

import multiprocessing
import os
import time

import numpy as np
import pytest

from semiseg.data.cache import ArrayCache, default_directory
from semiseg.errors import UserError


class Builder:
    """Counts how often an array is built."""

    def __init__(self, array=None):
        self.array = np.arange(12.0).reshape(3, 4) if array is None else array
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.array


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"content")
    return path


def entries(cache):
    return sorted(cache.directory.glob("*"))


def test_an_array_is_built_once_and_then_mapped(source):
    cache, build = ArrayCache(), Builder()
    first = cache.get(source, {"size": (3, 4)}, build)
    again = ArrayCache().get(source, {"size": (3, 4)}, build)
    assert build.calls == 1
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    np.testing.assert_array_equal(first, build.array)
    np.testing.assert_array_equal(again, build.array)
    assert [path.suffix for path in entries(cache)] == [".npy"]


def test_the_folder_follows_the_variable(own_cache):
    assert ArrayCache().directory == default_directory() == own_cache
    assert not own_cache.exists()


@pytest.mark.parametrize("change", ["content", "time", "preparation", "place"])
def test_another_file_state_or_preparation_is_another_entry(source, tmp_path, change):
    cache, build, preparation = ArrayCache(), Builder(), {"size": 1}
    cache.get(source, preparation, build)
    if change == "content":
        state = source.stat()
        source.write_bytes(b"longer content")
        os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "time":
        os.utime(source, (1, 1))
    elif change == "preparation":
        preparation = {"size": 2}
    else:
        source = source.rename(tmp_path / "moved.png")
    cache.get(source, preparation, build)
    assert build.calls == 2


def test_a_folder_changes_with_each_of_its_files(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    for name in "ab":
        (series / name).write_bytes(b"slice")
    cache, build, preparation = ArrayCache(), Builder(), {}
    cache.get(series, preparation, build)
    cache.get(series, preparation, build)
    assert build.calls == 1
    (series / "b").write_bytes(b"another slice")
    cache.get(series, preparation, build)
    assert build.calls == 2


@pytest.mark.parametrize("keep", [0, 5, 60, -8])
def test_a_truncated_entry_is_rebuilt(source, keep):
    cache, build = ArrayCache(), Builder(np.arange(100))
    cache.get(source, {}, build)
    (path,) = entries(cache)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    np.testing.assert_array_equal(cache.get(source, {}, build), np.arange(100))
    assert build.calls == 2
    assert path.read_bytes() == content


def test_garbage_is_rebuilt_and_never_unpickled(source):
    cache, build = ArrayCache(), Builder()
    cache.get(source, {}, build)
    (path,) = entries(cache)
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    np.testing.assert_array_equal(cache.get(source, {}, build), build.array)
    path.write_bytes(b"not an array at all, but long enough to be one" * 10)
    np.testing.assert_array_equal(cache.get(source, {}, build), build.array)
    assert build.calls == 3


def _get_many(source, directory, barrier, results):
    cache = ArrayCache(directory)

    def slow():
        time.sleep(0.02)
        return np.full((50, 50), 7.0)

    barrier.wait()
    results.put(all((cache.get(source, {"n": n}, slow) == 7).all() for n in range(10)))


def test_two_processes_build_the_same_entries_at_once(source, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_get_many, args=(source, tmp_path / "c", barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    names = [path.name for path in (tmp_path / "c").iterdir()]
    assert len(names) == 10
    assert all(name.endswith(".npy") for name in names)


def test_a_build_that_fails_leaves_nothing(source):
    cache = ArrayCache()
    with pytest.raises(UserError, match="broken"):
        cache.get(source, {}, lambda: (_ for _ in ()).throw(UserError("broken")))
    assert entries(cache) == []
    with pytest.raises(ValueError, match="Object arrays"):
        cache.get(source, {}, lambda: np.array([object()]))
    assert entries(cache) == []


def test_trim_removes_what_was_used_least_recently(source):
    size = 10_000
    cache = ArrayCache(limit_gb=3.5 * size / 1e9)
    builds = [Builder(np.zeros(size - 128, np.uint8)) for _ in range(4)]
    for number, build in enumerate(builds):
        cache.get(source, {"n": number}, build)
        os.utime(cache.directory / f"{cache.key(source, {'n': number})}.npy", (1000 + number, 1000 + number))
    held = cache.get(source, {"n": 0}, builds[0])  # used again: now the youngest
    assert cache.trim() == 3 * size
    for number, build in enumerate(builds):
        cache.get(source, {"n": number}, build)
    assert [build.calls for build in builds] == [1, 2, 1, 1]
    ArrayCache(limit_gb=0).trim()
    assert entries(cache) == []
    assert (held == 0).all()


def test_trim_and_clear_spare_foreign_files_and_remove_what_killed_processes_left(source):
    cache = ArrayCache()
    assert cache.trim() == 0
    assert cache.clear() == (0, 0)
    cache.get(source, {}, Builder())
    for name in ("old.tmp", "young.tmp", "notes.txt"):
        (cache.directory / name).write_text("x")
    os.utime(cache.directory / "old.tmp", (1, 1))
    cache.trim()
    assert {path.name for path in entries(cache) if path.suffix != ".npy"} == {"young.tmp", "notes.txt"}
    count, size = cache.clear()
    assert (count, size > 100) == (2, True)
    assert [path.name for path in entries(cache)] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    cache = ArrayCache(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"file/cache.*--data.cache_dir") as caught:
        cache.get(source, {}, Builder())
    assert "\n" not in str(caught.value)


def test_a_source_that_vanished_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png"):
        ArrayCache().get(tmp_path / "gone.png", {}, Builder())
