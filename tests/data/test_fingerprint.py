"""Fingerprints of files: the same for the same content, another for another, however it was put there."""

import errno
import os
import time

import numpy as np
import pytest
import SimpleITK as sitk

from semiseg.data import cache as cache_module
from semiseg.data import fingerprint as fingerprint_module
from semiseg.data.cache import ArrayCache
from semiseg.errors import UserError


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def settled(monkeypatch):
    """Files count as old enough to be known by their state."""
    monkeypatch.setattr(fingerprint_module, "COARSE_NS", -(10**12))


def replace(path, content, how):
    """Put other content of the same size in a file's place, with the same modification time."""
    state = path.stat()
    if how == "by rename":
        other = path.with_name("other")
        other.write_bytes(content)
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.rename(path)
    else:
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_a_fingerprint_is_of_the_content_and_not_of_name_time_or_folder(source, tmp_path):
    (tmp_path / "folder").mkdir()
    other = tmp_path / "folder" / "copy.bmp"
    other.write_bytes(b"content")
    os.utime(other, (1, 1))
    cache = ArrayCache()
    assert cache.fingerprint(source) == cache.fingerprint(other)
    assert len(cache.fingerprint(source)) == 32
    other.write_bytes(b"Content")
    assert cache.fingerprint(source) != cache.fingerprint(other)


@pytest.mark.parametrize("how", ["by rename", "in place"])
def test_a_file_replaced_at_once_under_equal_size_and_time_is_noticed(source, how):
    cache = ArrayCache()
    seen = {cache.fingerprint(source)}
    for number in range(20):
        replace(source, b"%7d" % number, how)
        seen.add(cache.fingerprint(source))
    assert len(seen) == 21


@pytest.mark.parametrize("how", ["by rename", "in place"])
def test_a_known_file_replaced_under_equal_size_and_time_is_noticed(source, how, settled):
    seen = {ArrayCache().fingerprint(source)}
    for number in range(20):
        time.sleep(0.02)  # more than a step of the kernel's clock
        replace(source, b"%7d" % number, how)
        seen.add(ArrayCache().fingerprint(source))
    assert len(seen) == 21


def test_a_settled_file_is_read_once_by_all_processes(source, settled, monkeypatch):
    cache = ArrayCache()
    found = cache.fingerprint(source)
    monkeypatch.setattr(cache_module, "hash_of", lambda files: pytest.fail("read again"))
    assert cache.fingerprint(source) == ArrayCache().fingerprint(source) == found
    (memo,) = cache.directory.iterdir()
    memo.unlink()
    assert cache.fingerprint(source) == found


@pytest.mark.parametrize("ahead", [-1.0, 1e6])
def test_a_file_of_now_or_of_the_future_is_read_each_time(source, ahead):
    os.utime(source, (time.time() + ahead,) * 2)
    cache = ArrayCache()
    cache.fingerprint(source)
    assert not cache.directory.exists()
    assert cache._fingerprints == {}


@pytest.mark.parametrize(
    ("modified", "now", "settled"),  # in seconds after the change of the file's state
    [
        (0, 1.9, False),
        (0, 2.1, True),
        (0, -1, False),
        (-1e6, 1.9, False),
        (-1e6, 2.1, True),
        (5, 6.9, False),
        (5, 7.1, True),
    ],
)
def test_a_file_is_settled_two_seconds_after_its_newest_time(source, monkeypatch, modified, now, settled):
    changed = source.stat().st_ctime_ns
    os.utime(source, ns=(changed + int(modified * 1e9),) * 2)
    changed = source.stat().st_ctime_ns
    monkeypatch.setattr(fingerprint_module.time, "time_ns", lambda: changed + int(now * 1e9))
    assert fingerprint_module.state_of([source])[1] is settled


def test_a_damaged_note_of_a_fingerprint_is_not_believed(source, settled):
    found = ArrayCache().fingerprint(source)
    (memo,) = ArrayCache().directory.iterdir()
    content = memo.read_bytes()
    for place in range(len(content)):
        memo.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert ArrayCache().fingerprint(source) == found
        memo.write_bytes(content[:place])
        assert ArrayCache().fingerprint(source) == found
    memo.unlink()
    os.mkfifo(memo)
    assert ArrayCache().fingerprint(source) == found


def test_a_note_of_another_file_is_not_believed(source, tmp_path, settled):
    other = tmp_path / "other.png"
    other.write_bytes(b"another")
    one, two = ArrayCache().fingerprint(source), ArrayCache().fingerprint(other)
    first, second = ArrayCache().directory.iterdir()
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert (ArrayCache().fingerprint(source), ArrayCache().fingerprint(other)) == (one, two)


def test_a_series_is_its_visible_files_with_their_names(tmp_path):
    series = tmp_path / "series"
    (series / "deeper").mkdir(parents=True)
    for name in "ab":
        (series / name).write_bytes(name.encode())
    cache = ArrayCache()
    found = cache.fingerprint(series)
    (series / ".hidden").write_bytes(b"of the system")
    (series / "deeper" / "c").write_bytes(b"not of the series")
    assert cache.fingerprint(series) == found
    assert cache.fingerprint(series.rename(tmp_path / "moved")) == found
    series = tmp_path / "moved"
    seen = {found}
    (series / "a").rename(series / "aa")
    seen.add(cache.fingerprint(series))
    (series / "b").write_bytes(b"B")
    seen.add(cache.fingerprint(series))
    (series / "c").write_bytes(b"")
    seen.add(cache.fingerprint(series))
    (series / "b").unlink()
    seen.add(cache.fingerprint(series))
    assert len(seen) == 5


@pytest.mark.parametrize("suffix", [".mhd", ".nrrd"])
def test_the_data_file_of_a_header_belongs_to_it(tmp_path, suffix):
    volume = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    sitk.WriteImage(volume, str(tmp_path / {".mhd": "a.mhd", ".nrrd": "a.nhdr"}[suffix]))
    header = tmp_path / f"a{suffix}"
    if suffix == ".nrrd":
        (tmp_path / "a.nhdr").rename(header)
    cache = ArrayCache()
    before = cache.fingerprint(header)
    replace(tmp_path / "a.raw", b"x" * 120, "in place")
    assert cache.fingerprint(header) != before
    (tmp_path / "a.raw").unlink()
    with pytest.raises(UserError, match=rf"a\{suffix}: its data file a\.raw is not there"):
        cache.fingerprint(header)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_volume_in_one_file_is_that_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(path))
    assert fingerprint_module.files_of(path) == [path]
    if suffix == ".nrrd":  # such a line is data
        path.write_bytes(path.read_bytes() + b"\ndata file: a.raw\n")
        assert fingerprint_module.files_of(path) == [path]


@pytest.mark.parametrize("suffix", [".png", ".mha"])
@pytest.mark.parametrize("kind", ["missing", "fifo", "dangling", "device"])
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, kind, suffix):
    path = tmp_path / f"image{suffix}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind != "missing":
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "gone")
    with pytest.raises(UserError, match=rf"image\{suffix}: cannot be read \(.*\); restore it") as caught:
        ArrayCache().fingerprint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("code", "said"), [(errno.EMFILE, "too many open files"), (errno.ENOMEM, "out of memory")])
def test_a_lack_of_descriptors_or_memory_is_not_the_fault_of_a_file(source, monkeypatch, code, said):
    def lacking(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fingerprint_module.os, "open", lacking)
    with pytest.raises(UserError, match=rf"image\.png was not opened: {said}"):
        ArrayCache().fingerprint(source)


def test_a_file_that_changes_while_it_is_read_is_refused(source, monkeypatch, settled):
    hash_of = cache_module.hash_of

    def slow(files):
        found = hash_of(files)
        source.write_bytes(b"longer content")
        return found

    monkeypatch.setattr(cache_module, "hash_of", slow)
    cache = ArrayCache()
    with pytest.raises(UserError, match=r"image\.png: changes while it is read"):
        cache.fingerprint(source)
    assert not cache.directory.exists()


def test_a_folder_that_cannot_keep_fingerprints_still_gives_them(source, tmp_path, settled):
    (tmp_path / "file").write_text("")
    cache = ArrayCache(tmp_path / "file" / "cache")
    assert cache.fingerprint(source) == ArrayCache().fingerprint(source)


def test_a_known_file_is_read_again_where_the_clock_was_set_back(source, monkeypatch):
    cache, read, changed = ArrayCache(), [], source.stat().st_ctime_ns
    hash_of = cache_module.hash_of
    monkeypatch.setattr(cache_module, "hash_of", lambda files: read.append(files) or hash_of(files))
    for seconds, times in ((10, 1), (10, 1), (-3600, 2), (10, 2)):
        monkeypatch.setattr(fingerprint_module.time, "time_ns", lambda s=seconds: changed + s * 10**9)
        cache.fingerprint(source)
        assert len(read) == times
