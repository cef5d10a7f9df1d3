"""The cache of decoded arrays: never stale, never damaged, never half an array, never in the way."""

import errno
import json
import mmap
import multiprocessing
import os
import shutil
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from semiseg.data import cache as cache_module
from semiseg.data.cache import HEADER, MAGIC, ArrayCache, default_directory
from semiseg.data.command import data_command
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


@pytest.fixture
def settled(monkeypatch):
    """Files count as old enough to be known by their state."""
    monkeypatch.setattr("semiseg.data.fingerprint.COARSE_NS", -(10**12))


def entries(cache):
    return sorted(cache.directory.glob("*"))


def get(cache, source, preparation, build):
    return cache.find(source, preparation, build).map()


def failing(code):
    """A function that raises an error of the system."""

    def call(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return call


def test_an_array_is_built_once_and_then_mapped(source):
    cache, build = ArrayCache(), Builder()
    first = get(cache, source, {"size": (3, 4)}, build)
    again = get(ArrayCache(), source, {"size": (3, 4)}, build)
    assert build.calls == 1
    assert isinstance(again.base, mmap.mmap)
    assert not again.flags.writeable
    assert again.ctypes.data % 64 == 0
    np.testing.assert_array_equal(first, build.array)
    np.testing.assert_array_equal(again, build.array)
    assert [path.suffix for path in entries(cache)] == [".array"]


@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", ">u2", "<f2", "<f4", ">f8", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_type_and_order_come_back_as_they_were(source, dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4).astype(dtype), order=order)
    for _ in range(2):
        found = get(ArrayCache(), source, {}, lambda: array)
        np.testing.assert_array_equal(found, array)
        assert (found.dtype, found.strides) == (array.dtype, array.strides)


def test_the_folder_follows_the_variable(own_cache):
    assert ArrayCache().directory == default_directory() == own_cache
    assert not own_cache.exists()


@pytest.mark.parametrize(
    ("change", "calls"), [("content", 2), ("preparation", 2), ("suffix", 2), ("time", 1), ("place", 1), ("copy", 1)]
)
def test_another_content_or_preparation_is_another_entry_and_another_place_is_not(source, tmp_path, change, calls):
    cache, build, preparation = ArrayCache(), Builder(), {"size": 1}
    get(cache, source, preparation, build)
    if change == "content":
        source.write_bytes(b"CONTENT")
    elif change == "time":
        os.utime(source, (1, 1))
    elif change == "preparation":
        preparation = {"size": 2}
    elif change == "copy":
        source = shutil.copy(source, tmp_path / "copy.png")
    else:
        source = source.rename(tmp_path / ("moved.png" if change == "place" else "image.tif"))
    get(cache, tmp_path / source, preparation, build)
    assert build.calls == calls


def test_a_folder_changes_with_each_of_its_files(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    for name in "ab":
        (series / name).write_bytes(b"slice")
    cache, build, preparation = ArrayCache(), Builder(), {}
    get(cache, series, preparation, build)
    get(cache, series, preparation, build)
    assert build.calls == 1
    (series / "b").write_bytes(b"SLICE")
    get(cache, series, preparation, build)
    assert build.calls == 2


@pytest.mark.parametrize("keep", [0, 5, 255, 256, 300, -8])
def test_a_truncated_entry_is_rebuilt(source, keep):
    cache, build = ArrayCache(), Builder(np.arange(100))
    get(cache, source, {}, build)
    (path,) = entries(cache)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    np.testing.assert_array_equal(get(cache, source, {}, build), np.arange(100))
    assert build.calls == 2
    assert path.read_bytes() == content


def test_no_flipped_byte_of_header_or_data_goes_unnoticed(source):
    cache, build = ArrayCache(), Builder()
    get(cache, source, {}, build)
    (path,) = entries(cache)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 + place % 255
        path.write_bytes(damaged)
        np.testing.assert_array_equal(get(cache, source, {}, build), build.array)
        assert build.calls == place + 2
        assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["garbage", "longer", "folder", "fifo", "pickle", "empty"])
def test_what_is_no_entry_is_replaced(source, kind):
    cache, build = ArrayCache(), Builder()
    get(cache, source, {}, build)
    (path,) = entries(cache)
    content = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        with pytest.raises(UserError, match=r"cache folder .*Is a directory"):
            get(cache, source, {}, build)
        return
    elif kind == "pickle":
        np.save(path.with_suffix(".npy"), np.array([{"a": 1}], object), allow_pickle=True)
        path.with_suffix(".npy").rename(path)
    else:
        path.write_bytes({"garbage": b"not an array " * 99, "longer": content + b"\0", "empty": b""}[kind])
    np.testing.assert_array_equal(get(cache, source, {}, build), build.array)
    assert build.calls == 2
    assert path.read_bytes() == content


def test_an_entry_under_the_name_of_another_is_rebuilt(source):
    cache, one, other = ArrayCache(), Builder(np.zeros(4)), Builder(np.ones(4))
    get(cache, source, {"n": 1}, one)
    get(cache, source, {"n": 2}, other)
    paths = [cache.directory / f"{cache.key(source, {'n': n})}.array" for n in (1, 2)]
    shutil.copy(paths[0], paths[1])
    assert get(cache, source, {"n": 2}, other).all()
    assert other.calls == 2


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": shape} for shape in ([-3, -4], [3.0, 4.0], [3], [True, 12], "34", None, [2**62, 2**62])),
        *({"dtype": dtype} for dtype in ("|O", "f8,f8", "<c16", "<U8", 8, None, ["<f8"])),
        *({"order": order} for order in ("K", "", None)),
        {"key": "0" * 32},
        {"crc": "0"},
    ],
)
def test_a_header_that_lies_is_refused_although_its_checksum_is_right(source, change):
    cache, build = ArrayCache(), Builder()
    get(cache, source, {}, build)
    (path,) = entries(cache)
    content = path.read_bytes()
    facts = {**json.loads(content[len(MAGIC) : HEADER - 4]), **change}
    head = (MAGIC + json.dumps(facts).encode()).ljust(HEADER - 4)
    path.write_bytes(head + zlib.crc32(head).to_bytes(4, "little") + content[HEADER:])
    np.testing.assert_array_equal(get(cache, source, {}, build), build.array)
    assert build.calls == 2


def _get_many(source, directory, barrier, results):
    cache = ArrayCache(directory)

    def slow():
        time.sleep(0.02)
        return np.full((50, 50), 7.0)

    barrier.wait()
    results.put(all((get(cache, source, {"n": n}, slow) == 7).all() for n in range(10)))


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
    assert len([name for name in names if name.endswith(".array")]) == 10
    assert all(name.endswith((".array", ".hash")) for name in names)


def test_a_build_that_fails_leaves_nothing(source):
    cache = ArrayCache()
    with pytest.raises(UserError, match="broken"):
        cache.find(source, {}, lambda: (_ for _ in ()).throw(UserError("broken")))
    assert entries(cache) == []
    with pytest.raises(MemoryError):
        cache.find(source, {}, lambda: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ValueError, match=r"object.*cannot be cached"):
        cache.find(source, {}, lambda: np.array([object()]))
    assert entries(cache) == []


def test_a_source_that_changes_while_it_is_decoded_leaves_nothing(source):
    cache = ArrayCache()

    def build():
        source.write_bytes(b"CONTENT")
        return np.zeros(3)

    with pytest.raises(UserError, match=r"image\.png: changes while it is read"):
        cache.find(source, {}, build)
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EMFILE, "too many open files"), (errno.ENFILE, "too many open"), (errno.ENOMEM, "memory")]
)
@pytest.mark.parametrize("moment", ["verify", "map", "mmap", "write"])
def test_a_lack_of_descriptors_or_memory_is_not_the_fault_of_an_entry(source, monkeypatch, code, said, moment):
    cache, build = ArrayCache(), Builder()
    path = Path(cache.find(source, {}, build).path)
    entry = cache.find(source, {}, build)
    content = path.read_bytes()
    if moment == "write":
        path.unlink()
    with monkeypatch.context() as patch:
        if moment == "verify":
            patch.setattr(cache, "key", lambda *args: path.stem)  # without opening the source
        module, name = {"mmap": (mmap, "mmap"), "write": (tempfile, "mkstemp")}.get(moment, (os, "open"))
        patch.setattr(module, name, failing(code))
        with pytest.raises(UserError, match=f"not opened: .*{said}") as caught:
            entry.map() if "map" in moment else cache.find(source, {}, build)
    assert "damaged" not in str(caught.value)
    assert build.calls == 1 + (moment == "write")
    assert moment == "write" or path.read_bytes() == content


def test_a_disk_that_fails_to_read_an_entry_has_it_rebuilt(source, monkeypatch):
    cache, build = ArrayCache(), Builder()
    entry = cache.find(source, {}, build)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "key", lambda *args: Path(entry.path).stem)
        patch.setattr(cache_module, "open_regular", failing(errno.EIO))
        np.testing.assert_array_equal(get(cache, source, {}, build), build.array)
    assert build.calls == 2


def test_a_read_only_folder_gives_what_it_holds_and_names_itself_for_the_rest(source, monkeypatch, settled):
    held, missing = Builder(), Builder()
    get(ArrayCache(), source, {"n": 0}, held)
    for module, name in ((os, "utime"), (os, "unlink"), (tempfile, "mkstemp")):
        monkeypatch.setattr(module, name, failing(errno.EROFS))
    for fingerprints in (True, False):
        if not fingerprints:
            for path in ArrayCache().directory.glob("*.hash"):
                path.rename(path.with_suffix(".gone"))
        np.testing.assert_array_equal(get(ArrayCache(), source, {"n": 0}, held), held.array)
        assert held.calls == 1
        with pytest.raises(UserError, match=r"cache folder .*Read-only file system; .*--data.cache_dir DIR"):
            get(ArrayCache(), source, {"n": 1}, missing)
    assert ArrayCache(limit_gb=0).trim() > 0


def test_trim_removes_what_was_used_least_recently(source):
    size = 10_000
    cache = ArrayCache(limit_gb=3.5 * size / 1e9)
    builds = [Builder(np.zeros(size - HEADER, np.uint8)) for _ in range(4)]
    for number, build in enumerate(builds):
        get(cache, source, {"n": number}, build)
        os.utime(cache.directory / f"{cache.key(source, {'n': number})}.array", (1000 + number, 1000 + number))
    held = get(cache, source, {"n": 0}, builds[0])  # used again: now the youngest
    assert cache.trim() == 3 * size
    for number, build in enumerate(builds):
        get(cache, source, {"n": number}, build)
    assert [build.calls for build in builds] == [1, 2, 1, 1]
    ArrayCache(limit_gb=0).trim()
    assert entries(cache) == []
    assert (held == 0).all()


def test_entries_of_a_clock_that_was_set_back_age_from_now_on(source):
    size, now = 10_000, time.time()
    cache = ArrayCache(limit_gb=1.5 * size / 1e9)
    paths = []
    for number in range(2):
        path = cache.find(source, {"n": number}, Builder(np.zeros(size - HEADER, np.uint8))).path
        os.utime(path, (now + 1e6 * (1 - number),) * 2)
        paths.append(path)
    beginning = cache.directory / ".semiseg-abc.array"
    beginning.touch()
    os.utime(beginning, (now + 1e6,) * 2)
    os.utime(paths[1], (now - 10,) * 2)
    cache.trim()
    assert [os.path.exists(path) for path in paths] == [True, False]
    assert abs(os.stat(paths[0]).st_mtime - now) < 100
    assert abs(beginning.stat().st_mtime - now) < 100


OURS = {"arrays": [f"{'0' * 32}.npy"], "temporary files": ["tmpabcd1234.tmp", ".semiseg-x.array", ".semiseg-folder"]}
FOREIGN = ("notes.txt", "my.npy", "my.tmp", "semiseg.array", "x.hash", ".hidden", "synthetic-2-3")


def fill(directory):
    for name in (*OURS["arrays"], *OURS["temporary files"], *FOREIGN):
        if name.endswith(("folder", "3")):
            (directory / name / "images").mkdir(parents=True)
        else:
            (directory / name).write_text("x")


def test_trim_removes_what_killed_processes_left_and_spares_the_rest(source):
    cache = ArrayCache()
    assert cache.trim() == 0
    get(cache, source, {}, Builder())
    fill(cache.directory)
    before = {path.name for path in entries(cache)}
    cache.trim()
    assert {path.name for path in entries(cache)} == before
    for path in entries(cache):
        os.utime(path, (1, 1))
    cache.trim()
    assert {path.name for path in entries(cache)} == before - {*OURS["temporary files"]}
    ArrayCache(limit_gb=0).trim()
    assert {path.name for path in entries(cache)} == {*FOREIGN}


def test_the_command_shows_and_clears_all_of_ours_and_nothing_else(source, settled, capsys):
    cache = ArrayCache()
    assert data_command(["cache"]) == data_command(["cache", "--clear"]) == 0
    assert "0 arrays" in capsys.readouterr().out
    get(cache, source, {}, Builder())
    fill(cache.directory)
    for _ in range(2):
        data_command(["cache"])
        assert "2 arrays (0.0 MB), 1 fingerprints (0.0 MB), 3 temporary files" in capsys.readouterr().out
    data_command(["cache", "--clear"])
    assert "removed 2 arrays (0.0 MB), 1 fingerprints (0.0 MB), 3 temporary files" in capsys.readouterr().out
    assert {path.name for path in entries(cache)} == {*FOREIGN}


def test_what_is_shown_is_not_trimmed(source, monkeypatch):
    cache = ArrayCache()
    get(cache, source, {}, Builder())
    monkeypatch.setattr(ArrayCache, "trim", lambda self: pytest.fail("trimmed"))
    data_command(["cache"])
    assert len(entries(cache)) == 1


def test_a_folder_that_is_cleared_during_a_write_is_written_again(source, monkeypatch):
    cache, build = ArrayCache(), Builder()
    replace = os.replace

    def cleared(name, path):
        monkeypatch.setattr(os, "replace", replace)
        shutil.rmtree(cache.directory)
        replace(name, path)

    monkeypatch.setattr(os, "replace", cleared)
    np.testing.assert_array_equal(get(cache, source, {}, build), build.array)
    assert (build.calls, len(entries(cache))) == (1, 1)


def test_a_full_disk_is_named_and_leaves_nothing(source, monkeypatch):
    cache = ArrayCache()
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC))
    with pytest.raises(UserError, match=r"No space left.*--data.cache_dir"):
        get(cache, source, {}, Builder())
    assert entries(cache) == []


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    cache = ArrayCache(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"file/cache.*--data.cache_dir") as caught:
        get(cache, source, {}, Builder())
    assert "\n" not in str(caught.value)


def test_a_source_that_vanished_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png"):
        get(ArrayCache(), tmp_path / "gone.png", {}, Builder())
