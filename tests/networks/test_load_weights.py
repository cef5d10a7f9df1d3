"""A network starts from all the weights of a file, or not at all; only the head may differ."""

import os
import pickle
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from semiseg.errors import UserError
from semiseg.networks import UNet, VNet, load_weights

small = partial(UNet, widths=(4, 8), dropout=(0, 0))


class Stage1(pl.LightningModule):
    """A stand-in for a training module: the network, and something else with parameters."""

    def __init__(self, network):
        super().__init__()
        self.save_hyperparameters({"name": "stage1", "widths": (4, 8)})
        self.network = network
        self.projector = torch.nn.Linear(2, 2)


class Arbitrary:
    """An object no checkpoint should hold."""


@pytest.fixture
def saved(tmp_path):
    network = small(1, 3)
    network(torch.randn(2, 1, 8, 8))  # moves the running statistics
    path = tmp_path / "network.pt"
    torch.save(network.state_dict(), path)
    return network, str(path)


def same(a, b, without=()):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a if key not in without)


def test_no_path_does_nothing():
    network = small(1, 2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert load_weights(network, None) is None
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_round_trip_of_a_state_dict(saved, monkeypatch):
    printed = []
    monkeypatch.setattr("builtins.print", printed.append)
    network, path = saved
    fresh = small(1, 3)
    assert not same(fresh, network)
    report = load_weights(fresh, path)
    assert same(fresh, network)
    assert set(report.matched) == set(network.state_dict())
    assert report.skipped == ()
    assert printed == [f"weights {path}: loaded {len(report.matched)} tensors"]


def test_constructor_loads(saved):
    network, path = saved
    assert same(small(1, 3, weights=path), network)


def test_round_trip_of_a_vnet_under_another_head(tmp_path):
    network, path = VNet(1, 2, spatial_dims=2, base=2), tmp_path / "v.pt"
    torch.save(network.state_dict(), path)
    loaded = VNet(1, 3, spatial_dims=2, base=2, weights=str(path))
    assert same(network, loaded, without=("head.1.weight", "head.1.bias"))


def test_lightning_checkpoint(tmp_path):
    module, path = Stage1(small(1, 3)), str(tmp_path / "stage1.ckpt")
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
        enable_model_summary=False,
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    fresh = small(1, 3)
    report = load_weights(fresh, path)
    assert same(fresh, module.network)
    assert not any("projector" in key for key in report.matched + report.skipped)


def test_head_of_other_classes_stays_fresh_and_is_reported(saved):
    network, path = saved
    fresh = small(1, 5)
    head = fresh.head[0].weight.clone()
    report = load_weights(fresh, path)
    assert set(report.skipped) == {"head.0.weight", "head.0.bias"}
    assert "head.0.weight, head.0.bias" in str(report)
    assert torch.equal(fresh.head[0].weight, head)
    assert same(network, fresh, without=report.skipped)


def test_head_of_another_kind_stays_fresh_and_is_reported(saved):
    network, path = saved
    fresh = small(1, 3, head="deep")
    report = load_weights(fresh, path)
    assert all(key.startswith("head.") for key in report.skipped)
    assert {"head.0.weight", "head.6.weight"} <= set(report.skipped)
    assert same(network, fresh, without=("head.0.weight", "head.0.bias"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (partial(small, 1, 3, norm="instance"), "is unexpected"),
        (partial(UNet, 1, 3, widths=(4, 8, 16), dropout=(0, 0, 0)), "is missing"),
        (partial(UNet, 1, 3, widths=(6, 8), dropout=(0, 0)), r"is \(4, 1, 3, 3\) instead of \(6, 1, 3, 3\)"),
        (partial(small, 1, 3, spatial_dims=3), r"is \(4, 1, 3, 3\) instead of \(4, 1, 3, 3, 3\)"),
        (partial(small, 1, 3, upsample="bilinear"), r"decoder\.ups\.0\.0\.weight is missing"),
        (partial(VNet, 1, 3, spatial_dims=2, base=2), "none of this network"),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(saved, other, message):
    network = other()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(network, saved[1])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_one_missing_buffer_is_refused(saved, tmp_path):
    network, _ = saved
    state = network.state_dict()
    del state["encoder.levels.0.2.running_var"]
    torch.save(state, tmp_path / "partial.pt")
    with pytest.raises(UserError, match=r"encoder\.levels\.0\.2\.running_var is missing"):
        load_weights(small(1, 3), str(tmp_path / "partial.pt"))


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere/x\.ckpt: no such file"):
        load_weights(small(1, 2), "nowhere/x.ckpt")


@pytest.mark.parametrize("content", ["text", "cut", "empty"])
def test_damaged_file(saved, tmp_path, content):
    with open(saved[1], "rb") as file:
        whole = file.read()
    path = tmp_path / "damaged.pt"
    path.write_bytes({"text": b"hello world\n" * 9, "cut": whole[: len(whole) // 2], "empty": b""}[content])
    with pytest.raises(UserError, match=r"damaged\.pt: cannot be read as a PyTorch checkpoint"):
        load_weights(small(1, 2), str(path))


def test_pickled_objects_are_refused(saved, tmp_path):
    network, _ = saved
    path = tmp_path / "objects.pt"
    torch.save({"state_dict": network.state_dict(), "extra": Arbitrary()}, path)
    with pytest.raises(UserError, match="Python objects beside its tensors"):
        load_weights(small(1, 3), str(path))
    path.write_bytes(pickle.dumps(Arbitrary(), protocol=2))
    with pytest.raises(UserError, match="weights"):
        load_weights(small(1, 3), str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.fill_(float("nan")), "holds values that are not numbers"),
        (lambda w: w.index_fill(0, torch.tensor(0), float("inf")), "holds values that are not numbers"),
        (lambda w: w.long(), r"is torch\.int64 instead of torch\.float32"),
        (lambda w: torch.zeros(1).expand(w.shape), "has fewer values in the file"),
        (lambda w: torch.zeros(1).expand(10**6, 10**6), "has fewer values in the file"),
        (lambda w: torch.zeros(2 * 10**5).as_strided((10**5, 10**5), (1, 1)), "has fewer values in the file"),
        (lambda w: w.to(torch.complex64), "Python objects beside"),
        (lambda w: w.to(torch.float8_e4m3fn), "Python objects beside"),
        (lambda w: w.flatten(1).to_sparse(), "Python objects beside"),
        (lambda w: torch.empty_like(w, device="meta"), "Python objects beside"),
    ],
)
def test_tensors_that_cannot_be_weights(saved, tmp_path, change, message):
    network, _ = saved
    state = {**network.state_dict()}
    state["encoder.levels.0.1.weight"] = change(state["encoder.levels.0.1.weight"].clone())
    path = tmp_path / "odd.pt"
    torch.save(state, path)
    fresh = small(1, 3)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(UserError, match=rf"weights .*odd\.pt.*{message}") as error:
        load_weights(fresh, str(path))
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_weights_of_another_precision_are_rounded(saved, tmp_path):
    network, _ = saved
    torch.save({key: value.double() if "num" not in key else value for key, value in network.state_dict().items()},
               tmp_path / "double.pt")  # fmt: skip
    assert same(small(1, 3, weights=str(tmp_path / "double.pt")), network)


def test_one_flipped_byte_is_noticed(saved, tmp_path):
    content = bytearray(Path(saved[1]).read_bytes())
    for place in range(500, len(content) - 2000, 997):
        changed = content.copy()
        changed[place] ^= 4
        path = tmp_path / "flipped.pt"
        path.write_bytes(changed)
        try:
            loaded = small(1, 3, weights=str(path))
        except UserError:
            continue
        assert same(loaded, saved[0])  # between the records, where nothing is


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.pt")
    for path in (tmp_path / "fifo.pt", tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="cannot be read as a PyTorch checkpoint"):
            load_weights(small(1, 2), str(path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {0: torch.zeros(1)}, torch.zeros(2)])
def test_file_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="neither a Lightning checkpoint nor a state_dict"):
        load_weights(small(1, 2), str(tmp_path / "other.pt"))


def test_lightning_checkpoint_without_a_network(tmp_path):
    torch.save({"state_dict": {"model.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"its keys \(none\) are none of this network's"):
        load_weights(small(1, 2), str(tmp_path / "other.ckpt"))
