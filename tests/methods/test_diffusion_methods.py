"""Diffusion pretraining and teacher-student: losses by their formulas, where gradients go, what is left at R = 0."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.autograd.graph import saved_tensors_hooks

from semiseg.cli import main
from semiseg.components import ConstantWeight
from semiseg.methods import CPS, DiffusionPretrain, DiffusionTeacherStudent
from semiseg.methods.diffusion import teacher_student
from semiseg.methods.diffusion.teacher_student import settled
from semiseg.networks import Denoiser

SIZES = {2: (16, 24), 3: (8, 8, 16)}


def tiny(in_channels, num_classes, spatial_dims, **options):
    return Denoiser(in_channels, num_classes, spatial_dims, widths=(4, 6, 8), dropout=(0, 0, 0), **options)


def two(in_channels, num_classes, spatial_dims, **options):
    return tiny(in_channels, num_classes, spatial_dims, shared=False, **options)


def weight(max_steps):
    return ConstantWeight(max_steps, peak=0.7)


def built(kind, dims=2, network=tiny, **options):
    torch.manual_seed(0)
    method = kind(network=network, in_channels=1, num_classes=3, spatial_dims=dims, **options)
    method._trainer = SimpleNamespace(global_step=0, max_steps=100, log_every_n_steps=1)
    method.logged = {}
    method.log_dict = method.logged.update
    method.log = method.logged.__setitem__
    return method


def drawn(dims=2):
    g = torch.Generator().manual_seed(3)

    def image():
        return torch.randn(2, 1, *SIZES[dims], generator=g)

    mask = torch.randint(0, 3, (2, *SIZES[dims]), generator=g)
    return {"labeled": {"image": image(), "mask": mask}, "unlabeled": {"image": image()}}


def recorded(monkeypatch, module, names):
    """Every output of some methods of an object, in order."""
    calls = []
    for name in names:
        original = getattr(module, name)

        def call(*args, original=original, name=name):
            calls.append((name, args, original(*args)))
            return calls[-1][2]

        monkeypatch.setattr(module, name, call)
    return calls


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("weighting", ["balanced", "paper"])
def test_pretraining_finds_the_image_again(dims, weighting, monkeypatch):
    method, batch = built(DiffusionPretrain, dims, weighting=weighting), drawn(dims)
    mask_calls = recorded(monkeypatch, method.network, ["mask", "noise"])
    loss = method.training_step(batch, 0)

    (_, (image, _, _), logits), (_, (start, given, s), noise) = mask_calls[:2]
    assert image is batch["unlabeled"]["image"]
    assert torch.allclose(given, logits.softmax(1)), "the mask is handed on as probabilities"
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[s].view(-1, *(1,) * (dims + 1))
    found = (start - (1 - kept).sqrt() * noise) / kept.sqrt()
    squared = (image - found) ** 2 * (kept if weighting == "balanced" else 1)
    assert loss.item() == pytest.approx(squared.mean().item(), rel=1e-3)
    loss.backward()
    assert all(p.grad is not None for p in method.network.parameters()), "both pathways learn"


def test_what_becomes_of_the_mask_is_watched():
    method = built(DiffusionPretrain)
    with torch.no_grad():  # a network that says class 2 everywhere
        method.network.mask_pathway.head.weight.zero_()
        method.network.mask_pathway.head.bias.copy_(torch.tensor([-30.0, -30.0, 30.0]))
    method.training_step(drawn(), 0)
    assert method.logged["collapse/share_2"] == pytest.approx(1)
    assert method.logged["collapse/entropy"] == pytest.approx(0, abs=1e-4)
    assert method.logged["collapse/shuffled"] == pytest.approx(1, abs=1e-3), "such a mask tells nothing"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("network", [tiny, two])
def test_teacher_student(dims, rounds, network, monkeypatch):
    method, batch = built(DiffusionTeacherStudent, dims, network, rounds=rounds, weight=weight, loss="ce"), drawn(dims)
    calls = recorded(monkeypatch, method.network, ["mask", "noise"])
    student_calls = recorded(monkeypatch, method.student, ["mask"])
    loss = method.training_step(batch, 0)

    images = torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]])
    _, (seen, noise, t), teacher = calls[0]
    ((_, (also_seen, same_noise, same_t), student),) = student_calls
    assert torch.equal(seen, images)
    assert torch.equal(also_seen, images)
    assert torch.equal(noise, same_noise)
    assert torch.equal(t, same_t)
    truth = batch["labeled"]["mask"]
    supervised = F.cross_entropy(teacher[:2], truth) + F.cross_entropy(student[:2], truth)
    unsupervised = F.cross_entropy(student, teacher.argmax(1)) + F.cross_entropy(teacher, student.argmax(1))
    target = torch.cat([truth, student[2:].argmax(1)])
    assert len(calls) == 1 + 2 * rounds
    last = teacher
    for r in range(rounds):
        (_, (noised, given, s), noise), (_, (again, _, _), mask) = calls[1 + 2 * r : 3 + 2 * r]
        assert torch.allclose(given, last.softmax(1))
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[s].view(-1, *(1,) * (dims + 1))
        found = (noised - (1 - kept).sqrt() * noise) / kept.sqrt()
        for i in range(4):
            assert torch.allclose(again[i], found[i].clamp(images[i].min(), images[i].max()), atol=2e-3)
        unsupervised = (
            unsupervised + (kept * (images - found) ** 2).mean() / rounds + F.cross_entropy(mask, target) / rounds
        )
        last = mask
    assert loss.item() == pytest.approx((supervised + 0.7 * unsupervised).item(), rel=1e-3)
    loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad), "a process group would wait for it"


def test_decisions_carry_no_gradient():
    method = built(DiffusionTeacherStudent, rounds=0, weight=weight)
    teacher = torch.randn(4, 3, 16, 24, requires_grad=True)
    student = torch.randn(4, 3, 16, 24, requires_grad=True)
    outputs = {id(method.network): teacher, id(method.student): student}
    for network in (method.network, method.student):
        network.mask = lambda image, noise, t, network=network: outputs[id(network)]
    batch = drawn()
    method.supervised_loss = lambda logits, mask: logits.sum() * 0
    method.on_both = lambda function, first, second: torch.split(function(torch.cat([first, second])), 2)
    method.training_step(batch, 0).backward()
    wanted = torch.autograd.grad(0.7 * F.cross_entropy(student, teacher.argmax(1)), student)[0]
    assert torch.allclose(student.grad, wanted, atol=1e-6)


@pytest.mark.parametrize("truncate", [False, True])
def test_truncation_cuts_between_rounds(truncate):
    method = built(DiffusionTeacherStudent, rounds=1, truncate=truncate)
    mask = torch.randn(2, 3, 16, 24, requires_grad=True)
    loss = method.go_round(torch.randn(2, 1, 16, 24), mask, torch.zeros(2, 16, 24, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, mask, allow_unused=True)
    assert (gradient is None) == truncate


def test_without_rounds_it_is_cps_of_denoisers(monkeypatch):
    """With the noise taken away, both compute the same loss from the same two networks."""
    batch = drawn()
    ours = built(DiffusionTeacherStudent, rounds=0, weight=weight)

    def nothing(images, classes):
        return images.new_zeros(len(images), classes, *images.shape[2:]), torch.zeros(len(images))

    monkeypatch.setattr(ours.diffusion, "pure_masks", nothing)
    cps = built(CPS, weight=weight)
    cps.network.load_state_dict(ours.network.state_dict())
    cps.second.load_state_dict(ours.student.state_dict(), strict=False)  # it has an image pathway that it does not use
    assert ours.training_step(batch, 0).item() == pytest.approx(cps.training_step(batch, 0).item(), rel=1e-5)


def test_the_student_starts_afresh_and_the_teacher_from_pretraining(tmp_path):
    first = built(DiffusionPretrain)
    torch.save(first.network.state_dict(), tmp_path / "first.pt")
    method = built(
        DiffusionTeacherStudent, network=lambda *a, **o: tiny(*a, **{"weights": str(tmp_path / "first.pt"), **o})
    )
    for name, value in first.network.state_dict().items():
        assert torch.equal(method.network.state_dict()[name], value)
    assert method.student.image_pathway is None
    key = "mask_pathway.stem.weight"
    assert not torch.equal(method.student.state_dict()[key], first.network.state_dict()[key])


@pytest.mark.parametrize("score", ["student", "teacher"])
def test_what_is_scored(score):
    method = built(DiffusionTeacherStudent, score=score).eval()
    scored = method.student if score == "student" else method.network
    image = torch.randn(2, 1, 16, 24)
    before = method.scored_network(image)
    assert torch.equal(before, method.scored_network(image))
    with torch.no_grad():
        scored.mask_pathway.head.bias.add_(torch.tensor([5.0, 0, 0]))
    assert not torch.equal(before, method.scored_network(image))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("network", [tiny, two])
def test_the_denoiser(dims, network):
    denoiser = network(2, 3, dims)
    image, mask = torch.randn(2, 2, *SIZES[dims]), torch.randn(2, 3, *SIZES[dims])
    t = torch.tensor([3, 900])
    assert denoiser.mask(image, mask, t).shape == mask.shape
    assert denoiser.noise(image, mask, t).shape == image.shape
    assert denoiser(image).shape == mask.shape
    denoiser.eval()
    assert not torch.allclose(denoiser.mask(image, mask, t), denoiser.mask(image, mask, t.flip(0))), (
        "time has no effect"
    )
    shared = {id(p) for p in denoiser.mask_pathway.parameters()} & {id(p) for p in denoiser.image_pathway.parameters()}
    assert bool(shared) == (network is tiny)
    assert len(denoiser.image_only()) == (4 if network is tiny else len(list(denoiser.image_pathway.parameters())))


def test_a_settled_loss_has_the_same_value_and_gradient():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    unused = torch.nn.Parameter(torch.ones(2))
    weights = [*layers.parameters(), unused]
    x = torch.randn(5, 3)
    loss = layers(x).square().mean()
    wanted = torch.autograd.grad(loss, list(layers.parameters()))
    again = settled(layers(x).square().mean(), weights)
    assert again.item() == loss.item()
    (3 * again).backward()  # as the weight of the unsupervised loss
    for weight, gradient in zip(layers.parameters(), wanted, strict=True):
        assert torch.allclose(weight.grad, 3 * gradient)
    assert unused.grad is None


def kept_bytes(method, batch):
    """Memory that the graph of a step holds on to when the backward pass begins, without what is freed before."""
    held = {}

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            held[id(self)] = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()

        def __del__(self):
            held.pop(id(self), None)

    with saved_tensors_hooks(Held, lambda kept: kept.tensor):
        loss = method.training_step(batch, 0)
        size = sum(dict(held.values()).values())
        loss.backward()
    return size


@pytest.mark.parametrize("dims", [2, 3])
def test_memory_grows_with_the_rounds_unless_truncated(dims):
    batch = drawn(dims)
    grown = [kept_bytes(built(DiffusionTeacherStudent, dims, rounds=r), batch) for r in (0, 1, 2, 4)]
    assert grown[3] - grown[2] == pytest.approx(2 * (grown[2] - grown[1]), rel=0.05), "as much for each round"
    assert grown[1] - grown[0] > 0.5 * grown[0]
    flat = [kept_bytes(built(DiffusionTeacherStudent, dims, rounds=r, truncate=True), batch) for r in (0, 4)]
    gradients = sum(p.numel() * p.element_size() for p in built(DiffusionTeacherStudent, dims).network.parameters())
    assert flat[1] - flat[0] < 1.05 * 4 * gradients, "activations of a round are still there"
    assert 4 * gradients < 0.5 * (grown[3] - grown[0])


def test_truncated_gradients_are_those_of_the_same_loss(monkeypatch):
    gradients = []
    for function in (settled, lambda loss, weights: loss):
        monkeypatch.setattr(teacher_student, "settled", function)
        method = built(DiffusionTeacherStudent, rounds=3, truncate=True, weight=weight)
        torch.manual_seed(1)
        method.training_step(drawn(), 0).backward()
        gradients.append([p.grad for p in method.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    most = max(float(wanted.abs().max()) for wanted in gradients[1])
    for ours, wanted in zip(*gradients, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-3, atol=1e-5 * most)


def cases(size):
    image, mask = torch.randn(2, 1, *size), torch.randint(0, 3, (2, *size))
    patient = {"case": ["a", "b"], "patient": ["a", "b"], "spacing": [(1.0,) * len(size)] * 2}
    return {"image": image, "target": list(mask), **patient}


@pytest.mark.parametrize("dims", [2, 3])
def test_the_time_of_the_noise_is_found_on_validation(dims, monkeypatch):
    method = built(DiffusionTeacherStudent, dims)
    method._trainer = SimpleNamespace(world_size=1, state=SimpleNamespace(fn="fit"))
    method.preprocessing = SimpleNamespace(class_names=["background", "one", "two"], patch_size=None)
    batch = cases(SIZES[dims])
    best = F.one_hot(batch["target"][0], 3).movedim(-1, 0)[None].float() * 9

    def mask(image, noise, t):  # right from the noise of three quarters of T alone
        return best.expand(2, *best.shape[1:]) * (1 if t[0] == 749 else -1)

    monkeypatch.setattr(method.sampler, "mask", mask)
    method.on_validation_epoch_start()
    method.validation_step(batch, 0)
    method.on_validation_epoch_end()
    assert method.sampler.start.item() == 0.75
    assert method.logged["val/start"] == 0.75
    assert method.logged["val/dice"] == pytest.approx(method.logged["start/0.75"])
    assert method.logged["start/0.75"] > method.logged["start/0.5"]
    assert method.state_dict()["sampler.start"] == 0.75
    method._trainer.state.fn = "test"
    method.on_validation_epoch_start()
    assert list(method.tables) == [0.75], "nothing is searched outside of fit"


def test_a_run_tests_and_predicts_from_the_time_it_found(fit, tmp_path, capsys):
    data = ["--data", "Synthetic", "--data.root", str(tmp_path / "data"), "--data.num_cases", "10"]
    data += ["--data.labeled_fraction", "0.5", "--data.size"]
    config = ["--config", "configs/method/diffusion_teacher_student.yaml"]
    run = fit(*config, *data, "[32,32]", "--model.rounds", "2")
    assert {path.stem for path in (run / "figures").iterdir()} >= {"rounds", "training", "inference"}
    found = Image.open(run / "figures" / "rounds.png").width
    assert found > 6 * 192, "image, mask, and two of each round"
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/start"]]
    best = max(rows, key=lambda row: float(row["val/dice"]))
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert torch.load(checkpoint, weights_only=True)["state_dict"]["sampler.start"] == float(best["val/start"])

    images, maps = str(tmp_path / "data" / "images"), {}
    for count in (1, 5):
        out = tmp_path / str(count)
        assert (
            main(["predict", str(checkpoint), images, "--output", str(out), "--uncertainty", "--samples", str(count)])
            == 0
        )
        maps[count] = np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("*_uncertainty.png"))])
    assert (maps[1] != maps[5]).any()
    assert main(["predict", str(checkpoint), images, "--output", "out", "--samples", "0"]) == 2
    supervised = fit(*data, "[32,32]") / "checkpoints" / "best.ckpt"
    capsys.readouterr()
    assert main(["predict", str(supervised), images, "--output", "out", "--samples", "3"]) == 2
    assert "segments without noise" in capsys.readouterr().err


def test_figures_go_on_where_a_run_was_stopped(tmp_path):
    data = ["--data", "Synthetic", "--data.root", str(tmp_path / "data"), "--data.num_cases", "10"]
    data += ["--data.labeled_fraction", "0.5", "--data.size"]
    config = ["--config", "configs/method/diffusion_teacher_student.yaml", *data, "[16,16]", "--model.rounds", "1"]
    tiny = ["--model.network.widths", "[4,8]", "--model.network.dropout", "[0,0]", "--trainer.val_check_interval", "1"]
    assert main(["fit", *config, *tiny, "--trainer.max_steps", "3", "--runs_dir", str(tmp_path)]) == 0
    (last,) = tmp_path.rglob("last.ckpt")
    (watched,) = (v for k, v in torch.load(last, weights_only=True)["callbacks"].items() if "WatchTeaching" in k)
    assert [stage["step"] for stage in watched["stages"]] == [1, 2, 3]
    assert watched["stages"][0]["teacher"].shape == (16, 16)
    assert watched["starts"][0].keys() == {"step", "0", "0.25", "0.5", "0.75", "1"}


@pytest.mark.parametrize(("value", "says"), [("2", "--model.start"), ("somewhere", "start")])
def test_a_start_that_cannot_be(value, says, capsys):
    config = ["--config", "configs/method/diffusion_teacher_student.yaml", "--data", "Synthetic"]
    assert main(["fit", *config, "--model.start", value, "--trainer.max_steps", "1"]) == 2
    assert says in capsys.readouterr().err
