"""The trivial controls: against closed forms, brute force and loops; and no look at masks that have no say."""

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.data import Folder, GlaS, Synthetic, layouts
from semiseg.data.preprocessing import resize
from semiseg.evaluation.controls import class_frequencies, otsu_threshold, score_controls
from semiseg.evaluation.metrics import case_metrics

OPTIONS = {"num_folds": 3, "labeled_count": 3}


def synthetic(root, **options):
    return Synthetic(str(root / "set"), **{"num_cases": 12, "size": (24, 24), **OPTIONS, **options})


def rows_of(prediction, data):
    """Rows of the test cases for `prediction(case)`, scored by hand at the network's resolution."""
    spacing = (1.0,) * data.spatial_dims
    return [
        {
            "case": case.case,
            "patient": case.patient,
            **case_metrics(
                torch.from_numpy(prediction(case)), torch.from_numpy(np.array(data.prepared_mask(case))),
                data.class_names, spacing,
            ),
        }
        for case in data.part("test")
    ]  # fmt: skip


@pytest.fixture(params=["2d", "3d", "3d-native"])
def data(request, tmp_path):
    if request.param == "2d":
        return synthetic(tmp_path)
    evaluation = "native" if request.param == "3d-native" else "network"
    return synthetic(tmp_path, size=(16, 12, 8), patch_size=(8, 8, 8), evaluation=evaluation)


def test_everything_foreground_has_the_dice_of_the_closed_form(data) -> None:
    table = score_controls(data)["everything_foreground"]
    assert len(table) == 4
    for row in table.rows:
        share = data.native_mask(data.by_name[row["case"]]).mean()
        assert 0 < share < 1
        assert row["dice"] == pytest.approx(2 * share / (1 + share))
        assert row["fn_foreground"] == 0


def brute_force(image):
    """The between-class variance at every cut, written out; the best cut."""
    values = np.unique(image)
    cuts = (values[1:] + values[:-1]) / 2

    def variance(cut):
        low, high = image[image < cut], image[image > cut]
        shares = low.size / image.size, high.size / image.size
        return shares[0] * (low.mean() - image.mean()) ** 2 + shares[1] * (high.mean() - image.mean()) ** 2

    return max(cuts, key=variance)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_the_best_of_all_cuts(seed) -> None:
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, (9, 11)).astype(np.uint8)
    modes = np.concatenate([random.normal(-1, 0.5, 30 + 40 * seed), random.normal(2, 1, 100)])
    for image in (levels, modes, modes.astype(np.float16)):
        assert otsu_threshold(image) == pytest.approx(brute_force(image.astype(np.float64)))


def test_otsu_of_a_constant_image_is_its_value() -> None:
    assert otsu_threshold(np.full((4, 4), 7, np.uint8)) == 7


def squares(root, inside, outside, count=9):
    """RGB images of a square in a noisy ground; only the mean over channels tells them apart."""
    random = np.random.default_rng(0)
    for index in range(count):
        mask = np.zeros((20, 20), np.uint8)
        mask[3 + index % 5 : 12, 4:13] = 255
        image = random.normal(np.where(mask, inside, outside)[..., None], 5, (20, 20, 3))
        image += np.array([60, 0, -60]) * random.choice([-1, 1], (20, 20, 1))
        for folder, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{index}.png")
    return Folder(str(root), image_size=(20, 20), **OPTIONS)


@pytest.mark.parametrize(("inside", "outside"), [(80, 160), (160, 80)], ids=["dark", "bright"])
def test_otsu_chooses_the_side_of_the_foreground(tmp_path, inside, outside) -> None:
    assert score_controls(squares(tmp_path / "set", inside, outside))["otsu"].summary()["dice"] > 0.99


def test_the_side_is_that_of_the_labeled_cases(tmp_path) -> None:
    """Also where it is the wrong one for all test cases."""
    data = squares(tmp_path / "set", 160, 80)
    for case in data.part("labeled"):
        image = np.asarray(Image.open(case.image))
        Image.fromarray(255 - image).save(case.image)
    assert score_controls(data)["otsu"].summary()["dice"] < 0.01


def test_otsu_by_hand(data) -> None:
    data.evaluation = "network"

    def prediction(case, sign):
        image = np.array(data.prepared_image(case), np.float64).mean(0)
        return (sign * image > sign * otsu_threshold(image)).astype(np.int64)

    def labeled_dice(sign):
        pairs = [(prediction(case, sign), data.prepared_mask(case)) for case in data.part("labeled")]
        return np.mean([2 * (p * m).sum() / (p.sum() + m.sum()) for p, m in pairs])

    sign = max((1, -1), key=labeled_dice)
    assert score_controls(data)["otsu"].rows == rows_of(lambda case: prediction(case, sign), data)


def test_mean_mask_against_a_loop(data) -> None:
    data.evaluation = "network"
    masks = [data.prepared_mask(case) for case in data.part("labeled")]
    mean = np.zeros(masks[0].shape, np.int64)
    for place in np.ndindex(*mean.shape):
        mean[place] = sum(int(mask[place]) for mask in masks) > 1.5
    assert 0 < mean.sum() < mean.size
    assert score_controls(data)["mean_mask"].rows == rows_of(lambda case: mean, data)


def test_masks_of_different_sizes_meet_at_the_median() -> None:
    masks = [np.zeros((4, 8, 2), np.uint8), np.ones((6, 4, 2), np.uint8), np.full((8, 4, 2), 2, np.uint8)]
    masks[0][:, 4:] = 2
    frequencies = class_frequencies(masks, 3)
    assert frequencies.shape == (3, 6, 4, 2)
    third = torch.full((6, 2, 2), 1 / 3)
    torch.testing.assert_close(frequencies[:, :, :2], torch.stack([third, third, third]))
    torch.testing.assert_close(frequencies[:, :, 2:], torch.stack([0 * third, third, 2 * third]))


def test_volumes_of_different_sizes(tmp_path) -> None:
    """The mean mask is brought to the size of each test case."""
    for count, size in ((3, (12, 12, 8)), (6, (16, 12, 8)), (9, (14, 16, 10))):  # later cases keep their own size
        layouts.write_folder(tmp_path / f"{count}", count, 3, size)
    root = tmp_path / "9"
    for smaller in (6, 3):
        for file in (tmp_path / f"{smaller}").rglob("*.nii.gz"):
            file.replace(root / file.relative_to(tmp_path / f"{smaller}"))
    data = Folder(str(root), patch_size=(8, 8, 8), **OPTIONS)
    assert len({data.native_mask(case).shape for case in data.part("labeled")}) > 1
    tables = score_controls(data)
    frequencies = class_frequencies([data.native_mask(case) for case in data.part("labeled")], 2).numpy()
    for row in tables["mean_mask"].rows:
        mask = data.native_mask(data.by_name[row["case"]])
        predicted = resize(frequencies, mask.shape).argmax(0)
        assert row["tp_foreground"] == (predicted * mask).sum()
        assert row["volume_true_foreground"] == pytest.approx(2.5 * mask.sum())  # mm: spacing 1 x 1 x 2.5


def test_several_classes(tmp_path) -> None:
    data = synthetic(tmp_path, num_scene_classes=4, scene_seed=3)
    tables = score_controls(data)
    masks = np.stack([data.prepared_mask(case) for case in data.part("labeled")])
    largest = 1 + max(range(3), key=lambda k: (masks == k + 1).sum())
    assert largest == 3  # not the first
    others = [name for k, name in enumerate(data.class_names) if k not in (0, largest)]
    name = data.class_names[largest]
    everything = np.full((24, 24), largest)
    assert tables["everything_foreground"].rows == rows_of(lambda case: everything, data)
    for row in tables["otsu"].rows:
        assert row[f"tp_{name}"] + row[f"fp_{name}"] > 0
        assert all(row[f"tp_{other}"] + row[f"fp_{other}"] == 0 for other in others)
    frequencies = np.stack([(masks == k).mean(0) for k in range(4)])
    assert len(np.unique(frequencies.argmax(0))) == 4
    assert tables["mean_mask"].rows == rows_of(lambda case: frequencies.argmax(0), data)


def test_native_resolution(tmp_path) -> None:
    """Scored at the images' own size, from controls on the network's grid."""
    options = {"size": (24, 32), "image_size": (12, 12)}
    native = score_controls(synthetic(tmp_path, **options))
    network = score_controls(synthetic(tmp_path, **options, evaluation="network"))
    for name, table in native.items():
        for row, coarse in zip(table.rows, network[name].rows, strict=True):
            sizes = [sum(r[f"{part}_foreground"] for part in ("tp", "fn")) for r in (row, coarse)]
            assert sizes[0] > 3 * sizes[1]
            assert row["dice"] == pytest.approx(coarse["dice"], abs=0.1)


def test_masks_of_unlabeled_cases_have_no_say(tmp_path, own_glas) -> None:
    whole = {name: table.rows for name, table in score_controls(own_glas(tmp_path / "one")).items()}
    data = own_glas(tmp_path / "two")
    unlabeled = data.part("unlabeled")
    assert len(unlabeled) > 3
    for case in unlabeled:
        case.mask.unlink()
    assert {name: table.rows for name, table in score_controls(data).items()} == whole


@pytest.fixture
def own_glas():
    """GlaS with its official split, written and decoded anew in each folder."""

    def make(root):
        layouts.write_glas(root, 14, 3, 2, (24, 30))
        return GlaS(
            str(root), image_size=(16, 16), split="official", labeled_fraction=0.2, num_folds=3,
            cache_dir=str(root / "cache"),
        )  # fmt: skip

    return make


def test_the_official_split(tmp_path, own_glas) -> None:
    tables = score_controls(own_glas(tmp_path))
    assert list(tables) == ["everything_foreground", "otsu", "mean_mask"]
    for table in tables.values():
        assert [row["case"] for row in table.rows] == ["testA_1", "testA_2", "testA_3", "testB_1", "testB_2"]
        assert {"dice", "hd95", "asd", "dice_gland"} <= set(table.columns)
