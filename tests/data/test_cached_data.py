"""Data sets on the cache: few descriptors, arrays that vanish, and what the files of a run hold."""

import errno
import mmap
import os
import pickle
import resource
import shutil

import numpy as np
import pytest
from PIL import Image as Pillow

from semiseg.data import ACDC, Folder, datasets, layouts
from semiseg.data.cache import ArrayCache, Entry
from semiseg.data.datasets import TrainingSet
from semiseg.data.samplers import Draw
from semiseg.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures, two of them without mask."""
    root = tmp_path / "set"
    layouts.write_folder(root, 12, 2, (24, 20), 2, unlabeled=2)
    return root


@pytest.fixture
def volumes(tmp_path):
    root = tmp_path / "volumes"
    layouts.write_folder(root, 6, 3, (12, 10, 8), 3)
    return root


def open_pictures(root, **options):
    return Folder(str(root), **{"num_folds": 3, "labeled_count": 2, "image_size": (16, 16), **options})


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def repaint(path):
    """Another picture of the same size."""
    with Pillow.open(path) as picture:
        Pillow.fromarray(np.asarray(picture)[::-1].copy()).save(path)


def test_open_files_do_not_grow_with_the_cases(tmp_path):
    layouts.write_folder(tmp_path / "set", 120, 2, (8, 8), 2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for labels in ({"labeled_fraction": 1.0}, {"labeled_fraction": 0.1}):
        data = Folder(str(tmp_path / "set"), num_folds=3, image_size=(6, 6), **labels)
        before = descriptors()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + 24, limits[1]))
            data.prepare_data()
            _ = data.preprocessing
            for case in (*data.part("labeled"), *data.part("validation"), *data.part("test")):
                data.prepared_image(case), data.prepared_mask(case), data.native_mask(case)
            list(data.evaluation_loader(data.part("test")))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert descriptors() <= before


def test_what_is_kept_of_a_case_is_an_entry(volumes):
    data = Folder(str(volumes), num_folds=3, patch_size=(4, 4, 4))
    data.prepare_data()
    for case in data.cases:
        data.prepared_image(case), data.native_mask(case), data.spacing_of(case)
    kept = [value for found in data._found.values() for value in found.values()]
    assert kept
    assert all(isinstance(value, Entry) or all(isinstance(s, float) for s in value) for value in kept)


def test_a_full_descriptor_table_is_said_and_rebuilds_nothing(pictures, monkeypatch):
    data = open_pictures(pictures)
    data.prepare_data()

    def full(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(data, "read_image", lambda case: pytest.fail("decoded again"))
    monkeypatch.setattr(mmap, "mmap", full)
    with pytest.raises(UserError, match="too many open files"):
        data.prepared_image(data.cases[0])


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_arrays_that_vanish_during_a_run_are_built_again(pictures, how):
    data = open_pictures(pictures)
    data.prepare_data()
    case = data.part("labeled")[0]
    arrays = {name: getattr(data, name)(case) for name in ("prepared_image", "prepared_mask", "native_mask")}
    expected = {name: np.array(array) for name, array in arrays.items()}
    for name in arrays:
        for path in data.cache.directory.glob("*.array"):
            path.unlink() if how == "removed" else os.truncate(path, 100)
        np.testing.assert_array_equal(getattr(data, name)(case), expected[name])
    if how == "removed":
        np.testing.assert_array_equal(arrays["native_mask"], expected["native_mask"])  # maps stay valid


@pytest.mark.parametrize("changed", ["image", "mask"])
def test_arrays_that_vanish_are_not_built_from_other_content(pictures, changed):
    data = open_pictures(pictures)
    data.prepare_data()
    case = data.part("labeled")[0]
    data.native_mask(case)
    shutil.rmtree(data.cache.directory)
    repaint(getattr(case, changed))
    with pytest.raises(UserError, match=r"has changed during the run"):
        data.prepared_image(case)


def test_arrays_that_vanish_each_time_end_in_one_line(pictures, monkeypatch):
    data = open_pictures(pictures)
    find = ArrayCache.find

    def vanishing(self, *args):
        entry = find(self, *args)
        os.unlink(entry.path)
        return entry

    monkeypatch.setattr(ArrayCache, "find", vanishing)
    with pytest.raises(UserError, match=r"cache folder .*arrays vanish .*--data.cache_gb"):
        data.prepared_image(data.cases[0])


def test_a_moved_data_set_is_not_decoded_again(pictures, monkeypatch):
    open_pictures(pictures).prepare_data()
    data = open_pictures(pictures.rename(pictures.with_name("moved")))
    _ = data.in_channels
    monkeypatch.setattr(Folder, "read_image", lambda self, case: pytest.fail("decoded again"))
    monkeypatch.setattr(Folder, "read_raw_mask", lambda self, case: pytest.fail("decoded again"))
    data.prepare_data()


def test_a_loader_process_that_is_not_forked_gets_the_entries(pictures, monkeypatch):
    data = open_pictures(pictures)
    data.prepare_data()
    copy = pickle.loads(pickle.dumps(data))
    monkeypatch.setattr(ArrayCache, "find", lambda *args: pytest.fail("looked at a source"))
    case = data.part("labeled")[0]
    np.testing.assert_array_equal(copy.prepared_image(copy.by_name[case.case]), data.prepared_image(case))


def test_indices_of_foreground_are_bounded_and_change_nothing(volumes, monkeypatch):
    def crops(bound):
        monkeypatch.setattr(datasets, "FOREGROUND_BYTES", bound)
        data = Folder(str(volumes), num_folds=3, patch_size=(4, 4, 4), foreground_share=1.0)
        stream = TrainingSet(data, {"labeled": data.part("labeled")})
        draws = [Draw("labeled", step, 0, step % len(stream.streams["labeled"])) for step in range(12)]
        found = [stream[draw]["mask"].numpy() for draw in draws]
        held = [f for classes in stream._foreground.values() for f in classes]
        assert stream._foreground_bytes == sum(f.nbytes for f in held)
        assert all(f.base is None for f in held)  # no view that keeps all indices
        return np.stack(found), len(stream._foreground)

    (all_kept, cases), (some_kept, few) = crops(10**9), crops(2000)
    np.testing.assert_array_equal(all_kept, some_kept)
    assert cases > few >= 1


# Content


def test_content_names_the_images_and_the_masks_that_a_run_may_open(pictures):
    data = open_pictures(pictures)
    both = data.content(("labeled", "unlabeled"))
    may_open = {case.case for part in ("labeled", "validation", "test") for case in data.part(part)}
    assert set(both["images"]) == set(data.by_name)
    assert set(both["masks"]) == may_open < {case.case for case in data.cases if case.mask is not None}
    assert both["images"] == {case.case: ArrayCache().fingerprint(case.image) for case in data.cases}
    assert both["masks"] == {case: ArrayCache().fingerprint(data.by_name[case].mask) for case in may_open}
    assert data.content(("labeled",)) == both
    assert data.content(("unlabeled",)) == {"images": both["images"], "masks": {}}
    assert open_pictures(shutil.copytree(pictures, pictures.with_name("copy"))).content(("labeled",)) == both


@pytest.mark.parametrize("streams", [("labeled", "unlabeled"), ("unlabeled",)])
def test_content_opens_no_other_mask(pictures, streams):
    data = open_pictures(pictures)
    opened = set(data.content(streams)["masks"])
    hidden = [case.mask for case in data.cases if case.mask is not None and case.case not in opened]
    assert hidden
    for mask in hidden:  # would be refused
        mask.unlink()
        os.mkfifo(mask)
    data.content(streams)


def test_content_changes_with_the_files_of_its_case_alone(pictures):
    before = open_pictures(pictures).content(("labeled",))
    data = open_pictures(pictures)
    image, mask = data.part("unlabeled")[0], data.part("test")[0]
    repaint(image.image)
    repaint(mask.mask)
    after = open_pictures(pictures).content(("labeled",))
    assert {case for case in data.by_name if after["images"][case] != before["images"][case]} == {image.case}
    assert {case for case in after["masks"] if after["masks"][case] != before["masks"][case]} == {mask.case}


def test_a_file_of_many_slices_is_hashed_once_for_content(tmp_path, monkeypatch):
    layouts.write_acdc(tmp_path, 3, (4, 16, 16))
    data = ACDC(str(tmp_path), num_folds=3, image_size=(16, 16))
    seen = []
    fingerprint = ArrayCache.fingerprint
    monkeypatch.setattr(ArrayCache, "fingerprint", lambda self, path: seen.append(path) or fingerprint(self, path))
    content = data.content(("labeled", "unlabeled"))
    assert len(seen) == len(set(seen)) == len({case.image for case in data.cases}) < len(data.cases)
    assert set(content["images"]) == set(data.by_name)
    assert all(content["images"][case] == found for case, found in content["masks"].items())


@pytest.mark.parametrize("missing", ["image", "mask"])
def test_content_names_a_missing_file(pictures, missing):
    data = open_pictures(pictures)
    case = data.part("test")[0]
    getattr(case, missing).unlink()
    with pytest.raises(UserError, match=rf"{missing}s/{case.case}\.png: ") as caught:
        data.content(("labeled",))
    assert "\n" not in str(caught.value)
