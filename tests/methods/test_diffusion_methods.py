"""Diffusion pretraining and teacher-student: losses by their formulas, where gradients go, what is left at R = 0."""

from __future__ import annotations

import contextlib
import csv
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.autograd.graph import saved_tensors_hooks

from semiseg.cli import main
from semiseg.components import ConstantWeight
from semiseg.errors import UserError
from semiseg.methods import CPS, DiffusionPretrain, DiffusionTeacherStudent
from semiseg.methods.diffusion import teacher_student, watching
from semiseg.methods.diffusion.teacher_student import settled
from semiseg.methods.diffusion.watching import WatchTeaching
from semiseg.networks import Denoiser
from semiseg.running import callbacks
from semiseg.running.folder import RunFolder

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
    given_to_pathway = []
    method.network.image_pathway.register_forward_pre_hook(lambda module, inputs: given_to_pathway.append(inputs))
    loss = method.training_step(batch, 0)

    (_, (image, _, t), logits), (_, (start, given, s), noise) = mask_calls
    _, (again, wrong, _) = given_to_pathway
    assert torch.equal(wrong, given.roll(1, 0))
    assert torch.equal(again, start)
    assert len({*t.tolist(), *s.tolist()}) == 4, "one time for all"
    assert image is batch["unlabeled"]["image"]
    assert torch.allclose(given, logits.softmax(1)), "the mask is handed on as probabilities"
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[s].view(-1, *(1,) * (dims + 1))
    found = (start - (1 - kept).sqrt() * noise) / kept.sqrt()
    squared = (image - found) ** 2 * (kept if weighting == "balanced" else 1)
    assert loss.item() == pytest.approx(squared.mean().item(), rel=1e-3)
    loss.backward()
    assert all(p.grad is not None for p in method.network.parameters()), "both pathways learn"
    assert method.logged["collapse/shuffled"] != pytest.approx(1, abs=1e-6)


def test_pretraining_starts_from_noise_of_nothing(monkeypatch):
    method = built(DiffusionPretrain)
    calls = recorded(monkeypatch, method.network, ["noise"])
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    method.training_step(drawn(), 0)
    assert calls[0][1][0].abs().max() == 0, "the image itself is in it"


def test_a_look_at_the_mask_changes_nothing(monkeypatch):
    states = []
    for every in (1, 1000):
        method = built(DiffusionPretrain)
        method._trainer.log_every_n_steps = every
        torch.manual_seed(1)
        method.training_step(drawn(), 0)
        assert ("collapse/shuffled" in method.logged) == (every == 1)
        states.append({name: value.clone() for name, value in method.network.named_buffers()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_becomes_of_the_mask_is_watched():
    method = built(DiffusionPretrain)
    with torch.no_grad():  # a network that says class 2 everywhere
        method.network.mask_pathway.head.weight.zero_()
        method.network.mask_pathway.head.bias.copy_(torch.tensor([-30.0, -30.0, 30.0]))
    method.training_step(drawn(), 0)
    assert method.logged["collapse/share_2"] == pytest.approx(1)
    assert method.logged["collapse/entropy"] == pytest.approx(0, abs=1e-4)
    assert method.logged["collapse/shuffled"] == pytest.approx(1, abs=1e-3), "such a mask tells nothing"
    assert method.logged["collapse/brightness"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_mask_that_copies_the_image_is_told_from_one_that_does_not(dims):
    method = built(DiffusionPretrain, dims)
    image = torch.randn(2, 1, *SIZES[dims])
    other = torch.rand(2, 3, *SIZES[dims])
    for mask in (torch.cat([image, -image, other[:, :1]], dim=1), other):
        method.watch(image, torch.randn_like(image), mask, torch.tensor([1, 500]), 1.0)
        found = [
            max(abs(np.corrcoef(i.flatten().numpy(), k.flatten().numpy())[0, 1]) for k in m)
            for i, m in zip(image, mask, strict=True)
        ]
        assert method.logged["collapse/brightness"].item() == pytest.approx(np.mean(found), rel=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("network", [tiny, two])
@pytest.mark.parametrize("truncate", [False, True])
def test_teacher_student(dims, rounds, network, truncate, monkeypatch):
    options = {"rounds": rounds, "truncate": truncate, "weight": weight, "loss": "ce"}
    method, batch = built(DiffusionTeacherStudent, dims, network, **options), drawn(dims)
    added = recorded(monkeypatch, method.diffusion, ["noised"])
    calls = recorded(monkeypatch, method.network, ["mask", "noise"])
    student_calls = recorded(monkeypatch, method.student, ["mask"])
    drawn_noise, draw = [], torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda x: drawn_noise.append(draw(x)) or drawn_noise[-1])
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
    last, noises, aligned, reconstructed = teacher, [noise], 0, 0
    added = [result for _, (clean, *_), result in added if torch.equal(clean, images)]
    for r in range(rounds):
        (_, (noised, given, s), noise), (_, (again, masks, t), mask) = calls[1 + 2 * r : 3 + 2 * r]
        assert torch.equal(noised, added[r]), "not the noised image"
        assert all(not torch.equal(masks, before) and masks.std() > 0.1 for before in noises), "no noise of its own"
        assert len(set(t.tolist())) > 1
        noises.append(masks)
        assert torch.allclose(given, last.softmax(1))
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[s].view(-1, *(1,) * (dims + 1))
        found = (noised - (1 - kept).sqrt() * noise) / kept.sqrt()
        for i in range(4):
            assert torch.allclose(again[i], found[i].clamp(images[i].min(), images[i].max()), atol=2e-3)
        assert torch.allclose((noised - kept.sqrt() * images) / (1 - kept).sqrt(), drawn_noise[r], atol=1e-3)
        assert torch.allclose(
            method.story[f"{r + 1}: found at t = {int(s[-1])}"],
            found[-1],
            atol=2e-3 * found.detach().abs().max().item(),
        )
        assert torch.equal(method.story[f"{r + 1}: mask"], mask[-1].argmax(0))
        reconstructed = reconstructed + (kept * (images - found) ** 2).mean() / rounds
        aligned = aligned + F.cross_entropy(mask, target) / rounds
        last = mask
    unsupervised = unsupervised + aligned + reconstructed
    assert float(method.logged["train/loss_alignment"]) == pytest.approx(aligned.item() if rounds else 0, rel=1e-3)
    assert float(method.logged["train/loss_reconstruction"]) == pytest.approx(
        reconstructed.item() if rounds else 0, rel=1e-3
    )
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


def test_alignment_teaches_the_image_pathway(monkeypatch):
    method, images = built(DiffusionTeacherStudent, rounds=1), torch.randn(2, 1, 16, 24)
    wrong, other = torch.zeros(1, requires_grad=True), torch.randn(2, 1, 16, 24)
    monkeypatch.setattr(method.diffusion, "kept", lambda t, like: torch.full((len(like), 1, 1, 1), 0.5))
    monkeypatch.setattr(method.network, "noise", lambda x, mask, s: (x - 0.5**0.5 * images) / 0.5**0.5 + wrong * other)
    method.go_round(images, torch.randn(2, 3, 16, 24), torch.zeros(2, 16, 24, dtype=torch.long)).backward()
    assert wrong.grad.abs() > 1e-5, "the image is found but for rounding: only the alignment can have a slope"


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
    for pathway in (denoiser.mask, denoiser.noise):
        assert not torch.allclose(pathway(image, mask, t), pathway(image, mask, t.flip(0))), "time has no effect"
    with pytest.raises(UserError, match="multiple"):
        denoiser.mask(image[..., :-1], mask[..., :-1], t)
    half = denoiser.to(torch.bfloat16)
    assert half.noise(image.bfloat16(), mask.bfloat16(), t).dtype == torch.bfloat16
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

    gathered = []
    monkeypatch.setattr(method, "gather", lambda table: gathered.append((table, method.sampler.start.item())))
    method.on_validation_epoch_start()
    everywhere = method.validation_step(batch, 0)
    method.on_validation_epoch_end()
    assert gathered[:5] == [(table, 0.5) for table in method.tables.values()], (
        "chosen before all processes' cases are in"
    )

    monkeypatch.setattr(method.sampler, "mask", lambda image, noise, t: best.expand(2, *best.shape[1:]))
    method.sampler.start.fill_(0.25)
    method.on_validation_epoch_start()
    method.validation_step(batch, 0)
    method.on_validation_epoch_end()
    assert method.sampler.start.item() == 0.5, "of equally good times the middle one"

    monkeypatch.setattr(method.sampler, "mask", mask)
    method.on_validation_epoch_start()
    shown = method.validation_step(batch, 0)
    assert method.sampler.start.item() == 0.5, "a step leaves the time as it is"
    assert torch.equal(shown[0], (-best[0]).argmax(0)), "shown is what the present time gives"
    assert len(everywhere) == 2
    method.on_validation_epoch_end()
    assert method.sampler.start.item() == 0.75
    assert method.logged["val/start"] == 0.75
    assert method.logged["val/dice"] == pytest.approx(method.logged["start/0.75"])
    assert method.logged["start/0.75"] > method.logged["start/0.5"]
    assert method.state_dict()["sampler.start"] == 0.75
    method.on_validation_epoch_start()
    assert torch.equal(method.validation_step(batch, 0)[0], best[0].argmax(0)), "nor is it the last of those tried"
    method._trainer.state.fn = "test"
    method.on_validation_epoch_start()
    assert list(method.tables) == [0.75], "nothing is searched outside of fit"
    given = built(DiffusionTeacherStudent, dims, start=0.3)
    given._trainer = SimpleNamespace(world_size=1, state=SimpleNamespace(fn="fit"))
    given.on_validation_epoch_start()
    assert list(given.tables) == pytest.approx([0.3]), "nor where it is given"
    content = {"state_dict": method.state_dict()}
    given.on_load_checkpoint(content)
    assert content["state_dict"]["sampler.start"].item() == pytest.approx(0.3)


def test_inference_has_the_methods_numbers():
    method = built(DiffusionTeacherStudent, diffusion_steps=50, num_samples=3, denoising_steps=4, start=0.2)
    sampler = method.sampler
    assert (sampler.diffusion.steps, sampler.samples, sampler.denoising_steps) == (50, 3, 4)
    assert sampler.start.item() == pytest.approx(0.2)


def test_decisions_of_both_networks_from_the_time_that_was_found():
    method = built(DiffusionTeacherStudent).eval()
    image = torch.randn(2, 1, 16, 24)
    method.sampler.start.fill_(0.25)
    assert torch.equal(method.decide(image)["student"], method.sampler(image).argmax(1))
    before = method.decide(image)
    with torch.no_grad():
        method.network.mask_pathway.head.bias.add_(torch.tensor([9.0, 0, 0]))
    after = method.decide(image)
    assert torch.equal(before["student"], after["student"])
    assert (after["teacher"] == 0).all() or not torch.equal(before["teacher"], after["teacher"])


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


def test_figures_go_on_where_a_run_was_stopped(tmp_path, monkeypatch):
    data = ["--data", "Synthetic", "--data.root", str(tmp_path / "data"), "--data.num_cases", "10"]
    data += ["--data.labeled_fraction", "0.5", "--data.size"]
    config = ["--config", "configs/method/diffusion_teacher_student.yaml", *data, "[16,16]", "--model.rounds", "1"]
    tiny = ["--model.network.widths", "[4,8]", "--model.network.dropout", "[0,0]", "--trainer.val_check_interval", "1"]
    command = ["fit", *config, *tiny, "--trainer.max_steps", "4", "--runs_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        stop = Mock(side_effect=[None, None, RuntimeError("stopped")])
        patch.setattr(DiffusionTeacherStudent, "on_train_batch_start", lambda *args: stop())
        with pytest.raises(RuntimeError):
            main(command)
    (last,) = tmp_path.rglob("last.ckpt")

    def watched():
        callbacks = torch.load(last, weights_only=True)["callbacks"]
        return next(value for name, value in callbacks.items() if "WatchTeaching" in name)

    first = watched()
    assert [stage["step"] for stage in first["stages"]] == [1, 2]
    assert main(command) == 0
    end = watched()
    assert [stage["step"] for stage in end["stages"]] == [1, 2, 3, 4]
    assert [record["step"] for record in end["starts"]] == [1, 2, 3, 4]
    assert torch.equal(first["image"], end["image"]), "another image than before"
    assert end["stages"][0]["teacher"].shape == (16, 16)
    assert end["starts"][0].keys() == {"step", "0", "0.25", "0.5", "0.75", "1"}


class Watched(SimpleNamespace):
    """What the figures need of a method."""

    def decide(self, image):
        return {"teacher": image[:, 0] > 0, "student": image[:, 0] < 0}


@pytest.mark.parametrize("dims", [2, 3])
def test_stages_are_spread_over_the_training_and_do_not_pile_up(dims, tmp_path, monkeypatch):
    names, watch = [], WatchTeaching()
    picture = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(watching, "step_panel", lambda image, maps, title: names.append(list(maps)) or picture)
    method = Watched(device="cpu", preprocessing=SimpleNamespace(picture=lambda image: image.numpy()))
    method.tables = {0.5: SimpleNamespace(summary=lambda: {"dice": 0.5})}
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), default_root_dir=str(tmp_path), loggers=[])
    trainer.precision_plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    for step in range(1, 61):
        trainer.global_step = step
        method.seen, method.story = {"image": torch.randn(3, 1, *SIZES[dims])}, {}
        watch.on_validation_end(trainer, method)
    assert names[-1][0] == "step 1"
    assert names[-1][-1] == "step 60"
    assert len(names[-1]) == watching.STAGES
    assert len(watch.stages) <= 2 * watching.STAGES
    assert watch.stages[0]["teacher"].ndim == 2, "a slice is enough"
    assert watch.image.untyped_storage().nbytes() == 4 * watch.image.numel(), "the batch is kept with it"


def test_the_comparison_of_noises_leaves_the_method_as_it_was(monkeypatch, tmp_path):
    method = built(DiffusionTeacherStudent, num_samples=3)
    method.preprocessing = SimpleNamespace(class_names=["background", "one", "two"], patch_size=None)
    monkeypatch.setattr(method, "brought", lambda batch: batch)
    used = []
    original = method.sampler.forward
    monkeypatch.setattr(method.sampler, "forward", lambda image: used.append(method.sampler.samples) or original(image))
    data = SimpleNamespace(part=lambda name: ["a", "b"], evaluation_loader=lambda names: [cases(SIZES[2])])
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    trainer = SimpleNamespace(datamodule=data, precision_plugin=plugin, is_global_zero=True)
    dice = WatchTeaching()._dice_of_samples(trainer, method)
    assert used == [1, 2, 5, 10] == list(dice)
    assert method.sampler.samples == 3


def test_found_images_are_shown_in_the_values_of_the_given_one(tmp_path, monkeypatch):
    tops = []
    monkeypatch.setattr(
        callbacks, "step_panel", lambda image, maps, title: tops.append((image, maps)) or np.zeros((8, 8, 3), np.uint8)
    )
    image = torch.zeros(1, 1, 8, 8)
    method = SimpleNamespace(seen={"image": image, "found": image, "map": image[:, 0]})
    method.preprocessing = SimpleNamespace(picture=lambda image: image.numpy() + 1000)
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), global_step=1, loggers=[], is_global_zero=True)
    callbacks.StepPanels(RunFolder(tmp_path)).on_validation_start(trainer, method)
    ((shown, maps),) = tops
    assert shown.max() == maps["found"].max() == 1000
    assert maps["map"].max() == 0


MISTAKES = [
    (["teacher_student", "--model.diffusion_steps", "0"], "--model.diffusion_steps"),
    (["pretrain", "--model.diffusion_steps", "0"], "--model.diffusion_steps"),
    (["teacher_student", "--model.network.image_pathway", "false"], "image_pathway"),
    (["pretrain", "--model.network.image_pathway", "false"], "image pathway"),
    (["pretrain", "--model.network", "UNet"], "Denoiser"),
    (["teacher_student", "--model.network.widths", "[4,8,16]", "--model.network.dropout", "[0,0]"], "3 widths and 2"),
    (["teacher_student", "--model.start", "2"], "--model.start"),
    (["teacher_student", "--model.start", "somewhere"], "start"),
]


@pytest.mark.parametrize(
    ("options", "says"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes(options, says, capsys, tmp_path):
    config = [
        "--config",
        f"configs/method/diffusion_{options[0]}.yaml",
        "--data",
        "Synthetic",
        "--data.num_cases",
        "10",
    ]
    place = ["--data.labeled_fraction", "0.5", "--data.root", str(tmp_path / "data"), "--runs_dir", str(tmp_path)]
    assert main(["fit", *config, *place, "--trainer.max_steps", "1", *options[1:]]) == 2
    assert says in capsys.readouterr().err


def test_truncated_rounds_refuse_scaled_gradients():
    method = built(DiffusionTeacherStudent, truncate=True)
    method._trainer = SimpleNamespace(precision="16-mixed", datamodule=None)
    with pytest.raises(UserError, match="16-mixed"):
        method.setup("fit")


def test_weights_of_two_networks_are_not_those_of_one(tmp_path):
    torch.save(two(1, 3, 2).state_dict(), tmp_path / "two.pt")
    with pytest.raises(UserError, match="are one here"):
        tiny(1, 3, 2, weights=str(tmp_path / "two.pt"))
    torch.save(tiny(1, 3, 2).state_dict(), tmp_path / "one.pt")
    two(1, 3, 2, weights=str(tmp_path / "one.pt"))


@pytest.mark.parametrize("network", [tiny, two])
def test_weights_of_both_pathways_fit_a_network_of_one(network, tmp_path):
    both = network(1, 3, 2)
    torch.save(both.state_dict(), tmp_path / "both.pt")
    one = network(1, 3, 2, image_pathway=False, weights=str(tmp_path / "both.pt"))
    for key, value in one.mask_pathway.state_dict().items():
        assert torch.equal(value, both.mask_pathway.state_dict()[key]), key
    torch.save(one.state_dict(), tmp_path / "one.pt")
    with pytest.raises(UserError, match=r"image_pathway\S+ is missing"):
        network(1, 3, 2, weights=str(tmp_path / "one.pt"))
