"""Every data set: its cases, its classes, its batches, and no look at the masks of unlabeled cases."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import h5py
import lightning
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from semiseg import data as families
from semiseg.data import layouts
from semiseg.data.cache import ArrayCache
from semiseg.data.datasets import TrainingSet
from semiseg.data.samplers import Draw
from semiseg.data.scenes import scene_2d, scene_3d
from semiseg.errors import UserError


@dataclass
class Layout:
    """How one data set is written and opened, and what must be found in it."""

    name: str
    write: object
    cases: int
    patients: int
    options: dict = field(default_factory=dict)
    train: int | None = None
    test: int | None = None
    channels: int = 3
    classes: int = 2
    size: tuple = (32, 32)
    root: str = ""

    def open(self, root, **options):
        """The data module, with three folds and one labeled patient."""
        options = {"num_folds": 3, "labeled_count": 1, **self.options, **options}
        return getattr(families, self.name)(root=str(root / self.root), **options)


SIZE_3D = (20, 18, 12)
LAYOUTS = {
    "glas": Layout("GlaS", lambda r: layouts.write_glas(r, 12, 3, 2, (40, 48)), 17, 9,
                   {"image_size": (32, 32)}, train=12, test=5),
    "ph2": Layout("PH2", lambda r: layouts.write_ph2(r, 8, (40, 48)), 8, 8, {"image_size": (32, 32)}),
    "hmeps": Layout("HMEPS", lambda r: layouts.write_hmeps(r, 6, 1, (32, 32)), 12, 6,
                    {"image_size": (32, 32)}, channels=1),
    "la": Layout("LeftAtrium", lambda r: layouts.write_la(r, 6, 2, SIZE_3D), 8, 8, {"patch_size": (16, 16, 8)},
                 train=6, test=2, channels=1, size=(16, 16, 8)),
    "la-nrrd": Layout("LeftAtrium", lambda r: layouts.write_la_nrrd(r, 6, SIZE_3D), 6, 6,
                      {"patch_size": (16, 16, 8)}, channels=1, size=(16, 16, 8)),
    "oct": Layout("OCTCME", lambda r: layouts.write_oct_cme(r, 7, (32, 40)), 7, 7, {"image_size": (32, 32)},
                  channels=1),
    "qata": Layout("QaTaCOV19", lambda r: layouts.write_qata(r, 7, 3, (32, 32)), 10, 10, {"image_size": (32, 32)},
                   train=7, test=3, channels=1),
    "acdc": Layout("ACDC", lambda r: layouts.write_acdc(r, 6, (3, 40, 36)), 36, 6, {"image_size": (32, 32)},
                   channels=1, classes=4),
    "folder": Layout("Folder", lambda r: layouts.write_folder(r / "my data", 8, size=(40, 32), unlabeled=2), 8, 8,
                     {"image_size": (32, 32)}, root="my data"),
    "folder-3d": Layout("Folder", lambda r: layouts.write_folder(r, 7, 3, SIZE_3D, 3, 1), 7, 7,
                        {"patch_size": (16, 16, 8)}, channels=1, classes=3, size=(16, 16, 8)),
    "synthetic": Layout("Synthetic", lambda r: None, 8, 8,
                        {"num_cases": 8, "size": (32, 32), "unlabeled": 1, "num_scene_classes": 3}, classes=3,
                        root="set"),
    "synthetic-3d": Layout("Synthetic", lambda r: None, 6, 6, {"num_cases": 6, "size": (16, 16, 8)}, channels=1,
                           size=(16, 16, 8), root="set"),
}  # fmt: skip
ALL = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def attach(data, streams=("labeled", "unlabeled"), **state):
    """A trainer that is just about to begin."""
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(streams=streams),
        **{"max_steps": 3, "global_step": 0, "global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1, **state},
    )
    return data


def training_batches(data, **options):
    data.prepare_data()
    attach(data, **options).setup("fit")
    return list(data.train_dataloader())


def same(one, other):
    """Whether two batches hold the same values."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def mask_files(root):
    return {case.mask for case in root.cases if case.mask}


@ALL
def test_cases_patients_and_parts(layout, tmp_path):
    layout.write(tmp_path)
    data = layout.open(tmp_path)
    assert len(data.cases) == len(data.by_name) == layout.cases
    assert len({case.patient for case in data.cases}) == layout.patients
    assert list(data.cases) == sorted(data.cases)
    assert all(case.image.exists() for case in data.cases)
    assert all(case.mask.exists() for case in data.cases if case.mask)
    parts = [case.official for case in data.cases]
    if layout.train is None:
        assert set(parts) == {None}
        with pytest.raises(UserError, match="no official test cases"):
            _ = layout.open(tmp_path, split="official").partition
    else:
        assert (parts.count("train"), parts.count("test")) == (layout.train, layout.test)
        assert len(layout.open(tmp_path, split="official").partition.test) == layout.test
    assert (data.in_channels, data.num_classes) == (layout.channels, layout.classes)
    assert len(data.class_names) == len(data.class_values) == layout.classes
    split = data.partition
    assert len({data.by_name[name].patient for name in split.labeled}) == 1
    assert split.hash in data.split_text()


def test_strata_and_patients_come_from_the_tables(tmp_path):
    layouts.write_glas(tmp_path / "glas", 6, 0, 0, (16, 16))
    layouts.write_ph2(tmp_path / "ph2", 3, (16, 16))
    cases = families.GlaS(str(tmp_path / "glas")).cases
    assert [(c.case, c.patient, c.stratum) for c in cases[:3]] == [
        ("train_1", "1", "benign"), ("train_2", "1", "benign"), ("train_3", "2", "benign"),
    ]  # fmt: skip
    assert cases[4].stratum == "malignant"
    strata = [case.stratum for case in families.PH2(str(tmp_path / "ph2")).cases]
    assert strata == ["common nevus", "atypical nevus", "melanoma"]
    for table in tmp_path.rglob("*.csv"):
        table.unlink()
    for table in tmp_path.rglob("*.txt"):
        table.unlink()
    assert {(c.patient == c.case, c.stratum) for c in families.GlaS(str(tmp_path / "glas")).cases} == {(True, "")}
    assert {case.stratum for case in families.PH2(str(tmp_path / "ph2")).cases} == {""}


@ALL
def test_class_maps_hold_the_scenes_classes(layout, tmp_path):
    """The writers' masks are known: each data set has to find them again behind its format."""
    layout.write(tmp_path)
    data = layout.open(tmp_path)
    case = next(case for case in data.cases if case.mask)
    classes = data.native_mask(case)
    assert classes.dtype == np.uint8
    assert classes.shape == data.read_image(case).array.shape[1:]
    name, index, size = layout.name, data.cases.index(case), classes.shape
    if name == "LeftAtrium":
        names = [p.parent.name for p in (*tmp_path.rglob("mri_norm2.h5"), *tmp_path.rglob("lgemri.nrrd"))]
        index = layouts._la_names(len(names), 0).index(case.case)
    if name == "QaTaCOV19":  # here and in GlaS, test cases are listed first; covid_10 before covid_8
        index = 9
    scene = {2: scene_2d, 3: scene_3d}[data.spatial_dims]
    if name == "ACDC":
        expected = scene_3d(0, 0, (3, 40, 36), 4)[1][0]
    else:
        count = 3 if name == "HMEPS" else layout.classes
        expected = scene(0, index, size, count)[1]
    if name == "HMEPS":
        expected = expected == 1
    if name == "OCTCME":
        from scipy.ndimage import binary_fill_holes

        expected = binary_fill_holes(expected)
    if case.image.suffix == ".nrrd":  # its axes point left and posterior, ours right and anterior
        expected = expected[::-1, ::-1]
    np.testing.assert_array_equal(classes, expected)
    assert classes.max() == layout.classes - 1


def test_spacings(tmp_path):
    for name, expected in (("la", (0.625,) * 3), ("la-nrrd", (0.625,) * 3), ("acdc", (1.5, 1.5)),
                           ("folder-3d", (1.0, 1.0, 2.5)), ("ph2", (1.0, 1.0))):  # fmt: skip
        LAYOUTS[name].write(tmp_path / name)
        data = LAYOUTS[name].open(tmp_path / name)
        assert data.spacing_of(data.cases[0]) == pytest.approx(expected)


@ALL
def test_training_batches(layout, tmp_path):
    layout.write(tmp_path)
    data = layout.open(tmp_path, batch_size=2, unlabeled_batch_size=3)
    batches = training_batches(data)
    assert len(batches) == 3
    parts = {part: set(getattr(data.partition, part)) for part in ("labeled", "unlabeled")}
    for batch in batches:
        assert set(batch) == {"labeled", "unlabeled"}
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        assert (set(labeled), set(unlabeled)) == ({"image", "mask", "case"}, {"image", "case"})
        assert (labeled["image"].shape, labeled["image"].dtype) == ((2, layout.channels, *layout.size), torch.float32)
        assert (labeled["mask"].shape, labeled["mask"].dtype) == ((2, *layout.size), torch.int64)
        assert (unlabeled["image"].shape, unlabeled["image"].dtype) == (
            (3, layout.channels, *layout.size),
            torch.float32,
        )
        assert labeled["image"].isfinite().all()
        assert 0 <= labeled["mask"].min() <= labeled["mask"].max() < layout.classes
        assert set(labeled["case"]) <= parts["labeled"]
        assert set(unlabeled["case"]) <= parts["unlabeled"]
    assert max(batch["labeled"]["mask"].max() for batch in batches) > 0
    assert (data.preprocessing.mean is None) == (data.spatial_dims == 3)
    alone = training_batches(layout.open(tmp_path, ignore_unlabeled=True), streams=("labeled",))
    assert all(set(batch) == {"labeled"} for batch in alone)


def forget_masks(data, how):
    """Delete, or replace by garbage, the masks of the unlabeled cases (in an h5 file: the label)."""
    count = 0
    for case in data.part("unlabeled"):
        if case.mask is None:
            continue
        count += 1
        if case.mask == case.image:
            with h5py.File(case.image, "a") as file:
                if "label" in file:
                    del file["label"]
        elif how == "delete":
            case.mask.unlink()
        else:
            case.mask.write_bytes(b"garbage")
    return count


@pytest.mark.parametrize("how", ["delete", "garbage"])
@ALL
def test_masks_of_unlabeled_cases_are_never_opened(layout, how, tmp_path):
    layout.write(tmp_path)
    data = layout.open(tmp_path)
    split = data.partition
    assert forget_masks(data, how) > 0
    fresh = data
    if not (layout.name in ("Folder", "Synthetic") and how == "delete"):  # there a mask that is gone was never there
        fresh = layout.open(tmp_path)
        assert fresh.partition == split
    batches = training_batches(fresh)
    assert {name for batch in batches for name in batch["unlabeled"]["case"]} <= set(split.unlabeled)
    for loader in (fresh.val_dataloader(), fresh.test_dataloader()):
        assert len([case for batch in loader for case in batch["case"]]) > 0
    assert fresh.num_classes == layout.classes
    alone = layout.open(tmp_path, ignore_unlabeled=True)
    alone.partition = split
    assert training_batches(alone, streams=("labeled",))


@pytest.mark.parametrize("part", ["labeled", "validation", "test"])
@pytest.mark.parametrize("name", ["glas", "la", "la-nrrd", "oct", "acdc", "hmeps"])
def test_a_mask_that_is_needed_and_missing_is_named_before_training(name, part, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    case = layout.open(tmp_path).part(part)[0]
    if case.mask == case.image:
        with h5py.File(case.image, "a") as file:
            del file["label"]
    else:
        case.mask.unlink()
    with pytest.raises(UserError) as error:
        layout.open(tmp_path).prepare_data()
    assert str(case.mask.parent) in str(error.value)


@ALL
def test_evaluation_at_native_and_network_resolution(layout, tmp_path):
    layout.write(tmp_path)
    data = layout.open(tmp_path)
    native = list(data.val_dataloader())
    cases = data.part("validation")
    assert [name for batch in native for name in batch["case"]] == [case.case for case in cases]
    index = 0
    for batch in native:
        assert set(batch) == {"image", "target", "case", "patient", "spacing"}
        assert batch["image"].dtype == torch.float32
        for image, target, spacing in zip(batch["image"], batch["target"], batch["spacing"], strict=True):
            case = cases[index]
            index += 1
            assert target.shape == data.read_image(case).array.shape[1:]
            assert torch.equal(target, torch.from_numpy(data.read_classes(case)))
            assert spacing == data.spacing_of(case)
            assert image.shape == (layout.channels, *(data.image_size or target.shape))
    network = list(layout.open(tmp_path, evaluation="network").test_dataloader())
    for batch in network:
        for image, target, spacing in zip(batch["image"], batch["target"], batch["spacing"], strict=True):
            assert target.shape == image.shape[1:]
            assert spacing == (1.0,) * data.spatial_dims
            assert target.max() < layout.classes


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_evaluation_and_have_equally_many(ranks, tmp_path):
    layout = LAYOUTS["glas"]
    layout.write(tmp_path)
    data = layout.open(tmp_path, split="official")
    shares = []
    for rank in range(ranks):
        attach(data, global_rank=rank, world_size=ranks)
        shares.append([name for batch in data.test_dataloader() for name in batch["case"]])
    assert len({len(share) for share in shares}) == 1
    assert {name for share in shares for name in share} == set(data.partition.test)


@pytest.mark.parametrize("name", ["glas", "la"])
def test_workers_do_not_change_the_batches(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    batches = [training_batches(layout.open(tmp_path, num_workers=n, seed=4), max_steps=4) for n in (0, 2)]
    assert all(same(one, other) for one, other in zip(*batches, strict=True))
    other_seed = training_batches(layout.open(tmp_path, seed=5), max_steps=4)
    assert not any(same(one, other) for one, other in zip(batches[0], other_seed, strict=True))


def test_an_image_that_comes_twice_in_a_batch_is_augmented_twice(tmp_path):
    layout = LAYOUTS["ph2"]
    layout.write(tmp_path)
    (batch, *_) = training_batches(layout.open(tmp_path, batch_size=8))
    assert len(set(batch["labeled"]["case"])) == 1
    assert len({image.numpy().tobytes() for image in batch["labeled"]["image"]}) > 4


def test_two_ranks_see_what_one_sees(tmp_path):
    layout = LAYOUTS["ph2"]
    layout.write(tmp_path)
    one = training_batches(layout.open(tmp_path, batch_size=4))
    pair = [training_batches(layout.open(tmp_path, batch_size=2), global_rank=r, world_size=2) for r in range(2)]
    for step, batch in enumerate(one):
        for stream in batch:
            together = torch.cat([ranks[step][stream]["image"] for ranks in pair])
            assert torch.equal(together, batch[stream]["image"])


def test_resuming_gives_the_same_batches(tmp_path):
    layout = LAYOUTS["la"]
    layout.write(tmp_path)
    whole, resumed = (training_batches(layout.open(tmp_path), max_steps=5, global_step=start) for start in (0, 3))
    assert len(resumed) == 2
    assert all(same(one, other) for one, other in zip(whole[3:], resumed, strict=True))


class Recorder(lightning.LightningModule):
    """Learns next to nothing and writes down what it saw."""

    streams = ("labeled", "unlabeled")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append([batch[s]["image"].mean().item() for s in self.streams])
        return (self.weight - 1).square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_lightning_run_goes_on_with_the_next_images(accumulate, tmp_path):
    layout = LAYOUTS["ph2"]
    layout.write(tmp_path)

    def fit(steps, checkpoint=None):
        module = Recorder()
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False, barebones=False,
            accumulate_grad_batches=accumulate,
        )  # fmt: skip
        trainer.fit(module, layout.open(tmp_path), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert trainer.global_step == steps
        return module.seen

    whole = fit(6)
    first = fit(4)
    second = fit(6, tmp_path / "last.ckpt")
    assert len(whole) == 6 * accumulate
    assert len({tuple(seen) for seen in whole}) == len(whole)
    assert first + second == whole


def test_the_training_set_survives_pickling_without_the_trainer(tmp_path):
    """Loader processes that are not forked (macOS, Python 3.14) get it so."""
    layout = LAYOUTS["ph2"]
    layout.write(tmp_path)
    data = layout.open(tmp_path)
    data.prepare_data()
    attach(data).trainer.model = lambda: None  # cannot be pickled
    stream = TrainingSet(data, {"labeled": data.part("labeled")})
    draw = Draw("labeled", 0, 0, 0)
    content = pickle.dumps(stream)
    assert len(content) < 100_000
    assert torch.equal(pickle.loads(content)[draw]["image"], stream[draw]["image"])
    assert data.trainer is not None


def test_a_trained_step_looks_at_no_source_and_verifies_nothing(tmp_path, monkeypatch):
    layout = LAYOUTS["glas"]
    layout.write(tmp_path)
    data = layout.open(tmp_path)
    data.prepare_data()
    stream = TrainingSet(data, {"labeled": data.part("labeled")})
    first = stream[Draw("labeled", 0, 0, 0)]
    monkeypatch.setattr(Path, "stat", lambda *_: pytest.fail("looked at a file"))
    monkeypatch.setattr(Path, "exists", lambda *_: pytest.fail("looked at a file"))
    for name in ("fingerprint", "find", "_verify"):
        monkeypatch.setattr(ArrayCache, name, lambda *_: pytest.fail("looked at a file"))
    assert torch.equal(stream[Draw("labeled", 0, 0, 0)]["image"], first["image"])


def test_normalisation_is_learnt_from_training_images_only(tmp_path):
    layout = LAYOUTS["ph2"]
    layout.write(tmp_path)
    data = layout.open(tmp_path)
    images = [data.prepared_image(case) for part in ("labeled", "unlabeled") for case in data.part(part)]
    pixels = np.concatenate([image.reshape(3, -1) for image in images], 1)
    np.testing.assert_allclose(data.preprocessing.mean, pixels.mean(1), rtol=1e-5)
    np.testing.assert_allclose(data.preprocessing.std, pixels.std(1), rtol=1e-5)
    for case in (*data.part("validation"), *data.part("test")):
        Pillow.new("RGB", (48, 40), "white").save(case.image)
    assert layout.open(tmp_path).preprocessing == data.preprocessing


def test_patches_hold_foreground_as_often_as_asked_and_the_volume_where_they_say(tmp_path):
    layout = LAYOUTS["la"]
    layout.write(tmp_path)
    share = {}
    for wanted in (0.0, 1.0):
        data = layout.open(tmp_path, foreground_share=wanted, patch_size=(4, 4, 4), batch_size=8)
        batches = training_batches(data, max_steps=20)
        masks = torch.cat([batch["labeled"]["mask"] for batch in batches])
        share[wanted] = (masks > 0).flatten(1).any(1).float().mean().item()
    assert share[1.0] == 1
    assert share[0.0] < 0.8


def test_resampled_volumes_are_scored_at_their_own_spacing(tmp_path):
    layout = LAYOUTS["folder-3d"]
    layout.write(tmp_path)
    data = layout.open(tmp_path, spacing=(2, 2, 2.5), patch_size=(8, 8, 8))
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape[2:] == (10, 9, 12)
    assert batch["target"][0].shape == SIZE_3D
    assert batch["spacing"] == [(1.0, 1.0, 2.5)]
    data = layout.open(tmp_path, spacing=(2, 2, 2.5), patch_size=(8, 8, 8), evaluation="network")
    batch = next(iter(data.val_dataloader()))
    assert batch["target"][0].shape == (10, 9, 12)


# What a user can get wrong


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("la", {"patch_size": (16, 16, 13)}, r"volume 20 x 18 x 12 is smaller than --data.patch_size 16 x 16 x 13"),
        ("la", {"patch_size": (16, 16)}, r"patch_size \[16, 16\]: give 3 positive numbers"),
        ("glas", {"image_size": (32, 32, 32)}, r"image_size \[32, 32, 32\]: give 2"),
        ("glas", {"image_size": (0, 32)}, r"image_size \[0, 32\]"),
        ("glas", {"labeled_fraction": 1.0, "labeled_count": None}, "no.*unlabeled|none is left: lower"),
        ("glas", {"batch_size": -1}, "batch_size -1: use 1 or more"),
        ("folder-3d", {"spacing": (1, 1)}, "spacing .*give 3"),
    ],
)
def test_options_that_do_not_fit_are_named(name, options, words, tmp_path):
    LAYOUTS[name].write(tmp_path)
    with pytest.raises(UserError, match=words):
        training_batches(LAYOUTS[name].open(tmp_path, **options))


def test_a_run_needs_a_budget_and_cases(tmp_path):
    layout = LAYOUTS["ph2"]
    layout.write(tmp_path)
    with pytest.raises(UserError, match="max_steps is not set"):
        training_batches(layout.open(tmp_path), max_steps=-1)
    (tmp_path / "empty").mkdir()
    for name in ("GlaS", "PH2", "HMEPS", "LeftAtrium", "OCTCME", "QaTaCOV19", "ACDC"):
        with pytest.raises(UserError, match=r"empty: no cases found; expected \S+"):
            _ = getattr(families, name)(str(tmp_path / "empty")).cases
    with pytest.raises(UserError, match="no such folder"):
        _ = families.GlaS(str(tmp_path / "nowhere")).cases
    with pytest.raises(UserError, match="has no folder images/"):
        _ = families.Folder(str(tmp_path / "empty")).cases


def test_images_without_mask_and_a_method_that_cannot_use_them(tmp_path):
    layout = LAYOUTS["folder"]
    layout.write(tmp_path)
    with pytest.raises(UserError, match=r"case_006.png: no mask, and 2 such"):
        training_batches(layout.open(tmp_path), streams=("labeled",))


def test_the_same_case_twice_is_refused(tmp_path):
    for copy in "ab":
        layouts.write_qata(tmp_path / copy, 2, 1, (16, 16))
    with pytest.raises(UserError, match="is there twice"):
        _ = families.QaTaCOV19(str(tmp_path)).cases


def test_images_of_several_sizes_need_a_size(tmp_path):
    layouts.write_ph2(tmp_path, 6, (32, 32))
    image = next(tmp_path.rglob("IMD003.bmp"))
    for path in (image, image.parent.parent / "IMD003_lesion" / "IMD003_lesion.bmp"):
        Pillow.open(path).resize((40, 40)).save(path)
    options = {"root": str(tmp_path), "num_folds": 6, "fold": 0}
    fold = next(f for f in range(6) if "IMD003" in families.PH2(**{**options, "fold": f}).partition.labeled)
    with pytest.raises(UserError, match="differ in size"):
        families.PH2(**{**options, "fold": fold}, image_size=None).prepare_data()
    families.PH2(**{**options, "fold": fold}, image_size=None, patch_size=(16, 16)).prepare_data()
    one_by_one = families.PH2(**{**options, "fold": fold}, image_size=None, batch_size=1)
    attach(one_by_one, streams=("labeled",)).prepare_data()
    with pytest.raises(UserError, match="differ in size"):  # a labeled and an unlabeled one go together
        attach(one_by_one).prepare_data()


def test_broken_files_are_named_before_training(tmp_path):
    for name, pattern in (("glas", "train_*_anno.bmp"), ("acdc", "*frame01.h5"), ("qata", "Images/*.png")):
        layout = LAYOUTS[name]
        layout.write(tmp_path / name)
        for path in (tmp_path / name).rglob(pattern):
            path.write_bytes(path.read_bytes()[:80])
        with pytest.raises(UserError, match=str(tmp_path / name)):
            layout.open(tmp_path / name).prepare_data()


def test_a_table_that_lacks_a_column_is_named(tmp_path):
    layouts.write_glas(tmp_path, 4, 0, 0, (16, 16))
    (table,) = tmp_path.rglob("Grade.csv")
    table.write_text("image,grade\ntrain_1,benign\n")
    with pytest.raises(UserError, match=r"Grade.csv: the file lacks what is needed: name"):
        _ = families.GlaS(str(tmp_path)).cases


def test_acdc_labels_out_of_range(tmp_path):
    layouts.write_acdc(tmp_path, 3, (2, 16, 16))
    for path in tmp_path.rglob("*.h5"):
        with h5py.File(path, "a") as file:
            file["label"][...] = 7
    with pytest.raises(UserError, match=r"label values \[7\], expected 0 to 3"):
        families.ACDC(str(tmp_path), num_folds=3).prepare_data()


# Other layouts of the same data sets


def test_hmeps_later_release_and_oct_flat_folders(tmp_path):
    layouts.write_hmeps(tmp_path / "h", 3, 1, (16, 16))
    (tmp_path / "h/annotation").mkdir()
    (tmp_path / "h/pngs").rename(tmp_path / "h/annotation/png")
    assert all(case.mask.exists() for case in families.HMEPS(str(tmp_path / "h")).cases)
    for folder in ("images", "masks"):
        (tmp_path / "o" / folder).mkdir(parents=True)
    outline = np.zeros((16, 16), np.uint8)
    outline[4:10, 4:10], outline[5:9, 5:9] = 255, 0
    for number in range(3):
        Pillow.fromarray(outline).save(tmp_path / f"o/images/{number}.png")
        Pillow.fromarray(outline).save(tmp_path / f"o/masks/{number}.png")
    data = families.OCTCME(str(tmp_path / "o"))
    assert [case.patient for case in data.cases] == ["0", "1", "2"]
    assert data.native_mask(data.cases[0]).sum() == 36


def test_glas_and_ph2_roots_at_either_level(tmp_path):
    layouts.write_glas(tmp_path, 3, 0, 0, (16, 16))
    layouts.write_ph2(tmp_path, 3, (16, 16))
    (inner,) = tmp_path.glob("Warwick*")
    assert len(families.GlaS(str(inner)).cases) == len(families.GlaS(str(tmp_path)).cases) == 3
    assert len(families.PH2(str(tmp_path / "PH2Dataset")).cases) == len(families.PH2(str(tmp_path)).cases) == 3


# Synthetic


def test_synthetic_is_written_once_into_the_cache_and_the_same_everywhere(own_cache, tmp_path):
    options = {"num_cases": 3, "size": (16, 16)}
    data = families.Synthetic(**options)
    assert data.root.parent == own_cache
    assert data.dataset_name == "synthetic2d"
    before = [path.stat().st_mtime_ns for path in sorted(data.root.rglob("*.png"))]
    again = families.Synthetic(**options)
    assert [path.stat().st_mtime_ns for path in sorted(again.root.rglob("*.png"))] == before
    other = families.Synthetic(str(tmp_path / "own"), **options)
    for one, two in zip(data.cases, other.cases, strict=True):
        assert one.image.read_bytes() == two.image.read_bytes()
    assert families.Synthetic(**options, scene_seed=1).root != data.root
    assert list(own_cache.glob("tmp*")) == []


def test_synthetic_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/set: cannot be written"):
        families.Synthetic(str(tmp_path / "file" / "set"), num_cases=2, size=(16, 16))
