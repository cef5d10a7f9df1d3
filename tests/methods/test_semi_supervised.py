"""Each semi-supervised loss against its formula in NumPy, where its gradient goes, and what weight 0 leaves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import nn

from semiseg import methods
from semiseg.components import ConstantWeight
from semiseg.components.distance_maps import signed_distances
from semiseg.components.orientation import Orientation
from semiseg.components.perturbations import FeatureDrop, FeatureNoise
from semiseg.errors import UserError
from semiseg.losses import soft_dice, squared_error
from semiseg.methods import Supervised
from semiseg.networks import Denoiser, UNet

SIZES = {2: (16, 24), 3: (8, 8, 16)}


def tiny(in_channels, num_classes, spatial_dims, **options):
    return UNet(in_channels, num_classes, spatial_dims, widths=(4, 6, 8), dropout=(0, 0, 0), **options)


def built(name, dims=2, classes=3, step=60, seed=0, **options):
    torch.manual_seed(seed)
    weight = {} if name == "Supervised" else {"weight": unit_weight}
    method = getattr(methods, name)(
        in_channels=1, num_classes=classes, spatial_dims=dims, **{"network": tiny, **weight, **options}
    )
    method._trainer = SimpleNamespace(global_step=step, max_steps=100)
    method.logged = {}
    method.log_dict = method.logged.update
    method.log = method.logged.__setitem__
    if hasattr(method, "teacher"):  # a teacher that is someone else
        torch.manual_seed(seed + 1)
        for weight in method.teacher.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return method


def unit_weight(max_steps):
    return ConstantWeight(max_steps, peak=1.0)


def no_weight(max_steps):
    return ConstantWeight(max_steps, peak=0.0)


def drawn(dims=2, classes=3, seed=3, size=2):
    generator = torch.Generator().manual_seed(seed)
    shape = SIZES[dims]
    return {
        "labeled": {
            "image": torch.randn(size, 1, *shape, generator=generator),
            "mask": torch.randint(0, classes, (size, *shape), generator=generator),
        },
        "unlabeled": {"image": torch.randn(size, 1, *shape, generator=generator)},
    }


def softmax(logits):
    logits = logits.detach().double().numpy()
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def both(network, batch):
    """Logits of labeled and of unlabeled images, from one batch of all."""
    return network(torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]])).split(
        len(batch["labeled"]["image"])
    )


def unsupervised(method, batch, monkeypatch=None):
    method.training_step(batch, 0)
    return float(method.logged["train/loss_unsupervised"])


CASES = pytest.mark.parametrize(("dims", "classes"), [(2, 2), (2, 4), (3, 3)])


@CASES
def test_entropy_minimization(dims, classes):
    method, batch = built("EntropyMinimization", dims, classes), drawn(dims, classes)
    p = softmax(both(method.network, batch)[1])
    expected = -(p * np.log(p + 1e-6)).sum(1).mean() / np.log(classes)
    assert unsupervised(method, batch) == pytest.approx(expected, rel=1e-4)


@CASES
def test_pi_model(dims, classes, monkeypatch):
    monkeypatch.setattr("semiseg.methods.consistency.pi_model.noisy", lambda image: image)
    method, batch = built("PiModel", dims, classes), drawn(dims, classes)
    torch.manual_seed(5)
    found = unsupervised(method, batch)
    torch.manual_seed(5)
    orientation = Orientation.draw(SIZES[dims])
    p = softmax(both(method.network, batch)[1])
    q = softmax(orientation.undo(method.network(orientation.apply(batch["unlabeled"]["image"]))))
    assert found == pytest.approx(((p - q) ** 2).mean(), rel=1e-4)


@CASES
def test_mean_teacher(dims, classes, monkeypatch):
    monkeypatch.setattr("semiseg.methods.consistency.mean_teacher.noisy", lambda image: image)
    method, batch = built("MeanTeacher", dims, classes), drawn(dims, classes)
    p, q = softmax(both(method.network, batch)[1]), softmax(method.teacher.network(batch["unlabeled"]["image"]))
    assert unsupervised(method, batch) == pytest.approx(((p - q) ** 2).mean(), rel=1e-4)
    method._trainer.global_step = 2
    assert unsupervised(method, batch) == 0, "before the start"


@CASES
def test_uamt_counts_only_where_the_teacher_is_sure(dims, classes, monkeypatch):
    uncertainty = torch.rand(2, *SIZES[dims])
    monkeypatch.setattr("semiseg.methods.consistency.uamt.noisy", lambda image: image)
    method, batch = built("UAMT", dims, classes, passes=3), drawn(dims, classes)

    def passes(network, image, number):
        assert network is method.teacher
        assert image is batch["unlabeled"]["image"]
        assert number == 3
        return None, uncertainty

    monkeypatch.setattr("semiseg.methods.consistency.uamt.monte_carlo", passes)
    p, q = softmax(both(method.network, batch)[1]), softmax(method.teacher.network(batch["unlabeled"]["image"]))
    threshold = 0.75 + 0.25 * np.exp(-5 * (1 - 0.6) ** 2)  # of log K, at step 60 of 100
    sure = uncertainty.numpy() < threshold
    expected = (sure[:, None] * (p - q) ** 2).sum() / (classes * sure.sum())
    assert 0 < sure.mean() < 1
    assert unsupervised(method, batch) == pytest.approx(expected, rel=1e-4)


@CASES
def test_ict(dims, classes):
    method, batch = built("ICT", dims, classes, alpha=0.7), drawn(dims, classes, size=3)
    torch.manual_seed(5)
    found = unsupervised(method, batch)
    torch.manual_seed(5)
    share = float(torch.distributions.Beta(0.7, 0.7).sample())
    image = batch["unlabeled"]["image"]
    before = [2, 0, 1]
    mixed = share * image + (1 - share) * image[before]
    p = softmax(both(method.network, {**batch, "unlabeled": {"image": mixed}})[1])
    q = softmax(method.teacher.network(image))
    target = share * q + (1 - share) * q[before]
    assert found == pytest.approx(((p - target) ** 2).mean(), rel=1e-4)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, features):
        return features * self.factor


@pytest.mark.parametrize("shared", [False, True])
@CASES
def test_cct(dims, classes, shared):
    method, batch = built("CCT", dims, classes, shared_decoder=shared), drawn(dims, classes)
    noise, dropout, drop = method.perturbations
    assert isinstance(noise, FeatureNoise)
    assert isinstance(drop, FeatureDrop)
    assert (type(dropout.dropout), dropout.dropout.p) == (nn.Dropout, 0.3)
    method.perturbations = nn.ModuleList([Scale(0.5), Scale(1.5), Scale(2.0)])
    images = torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]])
    features = [level[2:] for level in method.network.encode(images)]
    target = softmax(both(method.network, batch)[1])
    decoders = [method.network.decode] * 3 if shared else method.auxiliary
    errors = [
        ((softmax(decode([level * factor for level in features])) - target) ** 2).mean()
        for decode, factor in zip(decoders, (0.5, 1.5, 2.0), strict=True)
    ]
    assert unsupervised(method, batch) == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("on_labeled", [True, False])
@pytest.mark.parametrize("loss", ["ce", "dice"])
@CASES
def test_cps(dims, classes, loss, on_labeled):
    method, batch = built("CPS", dims, classes, pseudo_loss=loss, on_labeled=on_labeled), drawn(dims, classes)
    used = [torch.cat(both(net, batch))[0 if on_labeled else 2 :] for net in (method.network, method.second)]
    expected = 0.0
    for one, other in (used, used[::-1]):
        decision = softmax(other).argmax(1)
        if loss == "ce":
            expected += -np.log(np.take_along_axis(softmax(one), decision[:, None], 1)).mean()
        else:
            expected += float(soft_dice(one.detach(), torch.from_numpy(decision)))
    assert unsupervised(method, batch) == pytest.approx(expected, rel=1e-4)
    supervised = sum(
        method.supervised_loss(both(net, batch)[0], batch["labeled"]["mask"]) for net in (method.network, method.second)
    )
    torch.testing.assert_close(method.logged["train/loss_supervised"], supervised.detach())


@CASES
def test_urpc(dims, classes):
    method, batch = built("URPC", dims, classes), drawn(dims, classes)
    method.perturbations = nn.ModuleList([nn.Identity()])
    method.total = lambda supervised, unsupervised: unsupervised
    scales = method.predictions(torch.cat([part["image"] for part in batch.values()]))
    assert len(scales) == 2  # the tiny decoder has two stages
    ps = [scale[2:].double().softmax(1) for scale in scales]
    mean = sum(ps) / len(ps)
    expected = 0
    for p in ps:
        divergence = (mean * (mean / p).log()).sum(1)
        trust = torch.exp(-divergence)
        expected += (((p - mean) ** 2).mean(1) * trust).mean() / trust.mean() + divergence.mean()
    expected, found = expected / len(ps), method.training_step(batch, 0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    wanted, got = gradients(method, expected), gradients(method, found)  # the mean moves too
    for key in ("network.head.0.weight", "heads.0.weight"):
        torch.testing.assert_close(got[key], wanted[key], rtol=1e-2, atol=1e-6)


@CASES
def test_dtc(dims, classes):
    method, batch = built("DTC", dims, classes, steepness=20.0), drawn(dims, classes)
    batch["labeled"]["mask"][..., :3] = -1
    features = method.network.features(torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]]))
    p = softmax(method.network.head(features))
    s = np.tanh(method.distance(features).detach().double().numpy())
    expected = ((1 / (1 + np.exp(20 * s)) - p[:, 1:]) ** 2).mean()
    assert unsupervised(method, batch) == pytest.approx(expected, rel=1e-3)
    truth = signed_distances(batch["labeled"]["mask"], classes).numpy()
    error = ((s[:2] - truth) ** 2).mean(1)[..., 3:]  # where there is a label
    assert float(method.logged["train/loss_distance"]) == pytest.approx(0.3 * error.mean(), rel=1e-3)


@pytest.mark.parametrize("kinds", [("bilinear",), ("bilinear", "nearest")])
@CASES
def test_mcnet(dims, classes, kinds):
    method, batch = built("MCNet", dims, classes, decoders=kinds, temperature=0.2), drawn(dims, classes)
    images = torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]])
    ps = [softmax(logits) for logits in method.predictions(images)]
    assert len(ps) == len(kinds) + 1
    losses = []
    for i, p in enumerate(ps):
        for j, q in enumerate(ps):
            if i != j:
                sharp = q**5 / (q**5).sum(1, keepdims=True)
                losses.append(((p - sharp) ** 2).mean())
    assert unsupervised(method, batch) == pytest.approx(np.sum(losses) / len(ps), rel=1e-3)


@CASES
def test_unimatch(dims, classes, monkeypatch):
    size = SIZES[dims]
    boxes = torch.zeros(2, 3, *size, dtype=torch.bool)  # of each view
    boxes[0, 0, : size[0] // 2] = boxes[1, 2, size[0] // 4 :] = True
    factors, places = iter([2, 3]), iter(boxes)
    module = "semiseg.methods.pseudo_label.unimatch"
    monkeypatch.setattr(f"{module}.strong_view", lambda image: image * next(factors))
    monkeypatch.setattr(f"{module}.cutmix_boxes", lambda image: next(places))
    method = built("UniMatch", dims, classes, confidence=0.5, view_weights=(0.2, 0.7))
    batch = drawn(dims, classes, size=3)
    dropout = method.drop_channels.dropout
    assert (type(dropout), dropout.p) == ({2: nn.Dropout2d, 3: nn.Dropout3d}[dims], 0.5)
    method.drop_channels = Scale(0.5)
    images = torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]])
    p = softmax(method.network(images))[3:]
    label = np.where(p.max(1) >= 0.5, p.argmax(1), -1)
    assert 0 < (label >= 0).mean() < 1 or classes == 2
    dropped = method.network.decode([level[3:] * 0.5 for level in method.network.encode(images)])
    views, labels = [], []
    for factor, box, taker in ((2, boxes[0], 0), (3, boxes[1], 2)):
        view, mixed, giver = batch["unlabeled"]["image"] * factor, torch.from_numpy(label.copy()), taker - 1
        view[taker][:, box[taker]] = view[giver][:, box[taker]]
        mixed[taker][box[taker]] = mixed[giver][box[taker]]
        views.append(view)
        labels.append(mixed)
    strong = soft_dice(method.network(torch.cat(views)), torch.cat(labels), smooth=1e-5)
    expected = 0.2 * strong.item() + 0.7 * soft_dice(dropped, torch.from_numpy(label), smooth=1e-5).item()
    assert unsupervised(method, batch) == pytest.approx(expected, rel=1e-3)


@CASES
def test_bcp_makes_mosaics_both_ways(dims, classes, monkeypatch):
    inside = torch.zeros(SIZES[dims], dtype=torch.bool)
    inside[: SIZES[dims][0] // 4] = True  # few pixels, which count as much as those around them
    sides = {2: [10, 16], 3: [5, 5, 10]}[dims]  # 2/3 of the image's
    boxes = {tuple(sides): inside}
    monkeypatch.setattr("semiseg.methods.pseudo_label.bcp.box", lambda size, sides, device: boxes[tuple(sides)])
    method, batch = built("BCP", dims, classes), drawn(dims, classes)
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(0))
    image, mask, other = batch["labeled"]["image"], batch["labeled"]["mask"], batch["unlabeled"]["image"]
    decision = method.teacher.network(other).argmax(1)
    mosaic = torch.stack([torch.where(inside, other[0], image[0]), torch.where(inside, image[1], other[1])])
    logits = method.network(mosaic)
    true = torch.stack([torch.where(inside, -1, mask[0]), torch.where(inside, mask[1], -1)])
    pseudo = torch.stack([torch.where(inside, decision[0], -1), torch.where(inside, -1, decision[1])])

    def of_each(mask: torch.Tensor) -> float:
        return sum(method.supervised_loss(logits[i : i + 1], mask[i : i + 1]).item() for i in (0, 1)) / 2

    assert unsupervised(method, batch) == pytest.approx(of_each(pseudo), rel=1e-4)
    assert float(method.logged["train/loss_supervised"]) == pytest.approx(of_each(true), rel=1e-4)

    method._trainer.global_step = 10  # of 100: labeled mosaics only
    monkeypatch.setattr(method, "decisions", lambda image: pytest.fail("the teacher was asked"))
    assert unsupervised(method, batch) == 0
    mosaic = torch.stack([torch.where(inside, image[1], image[0]), torch.where(inside, image[1], image[0])])
    truth = torch.stack([torch.where(inside, mask[1], mask[0]), torch.where(inside, mask[1], mask[0])])
    logits = method.network(mosaic)
    own = torch.stack([~inside, inside])  # the first image keeps its outside, the second its inside
    expected = sum(of_each(torch.where(part, truth, -1)) for part in (own, ~own))
    assert float(method.logged["train/loss_supervised"]) == pytest.approx(expected, rel=1e-4)


def test_bcp_gains_nothing_by_losing_a_class_that_the_teacher_does_not_find():
    """Smoothed by 1, Dice pays for each bit of probability that such a class gives up."""
    mask = torch.zeros(1, 16, 24, dtype=torch.long)
    losses = {}
    for name in ("BCP", "MeanTeacher"):
        loss = built(name, classes=3, loss="dice").supervised_loss
        losses[name] = [loss(torch.tensor([0.0, doubt, doubt]).view(1, 3, 1, 1).expand(-1, -1, 16, 24), mask)
                        for doubt in (-4.0, -5.0)]  # fmt: skip
    gains = {name: float(before - after) for name, (before, after) in losses.items()}
    assert gains["BCP"] < 0.01 < 0.05 < gains["MeanTeacher"]


def test_bcp_makes_both_mosaics_of_a_batch_of_one():
    method = built("BCP", pretraining=0.0)
    shares = set()
    for seed in range(12):
        torch.manual_seed(seed)
        method.training_step(drawn(size=1), 0)
        shares.add(round(float(method.seen["used"].float().mean()), 2))
    assert len(shares) == 2
    assert min(shares) < 0.5 < max(shares)


def test_bcp_pastes_again_what_there_are_fewer_of():
    method, batch = built("BCP"), drawn(size=3)
    batch["unlabeled"]["image"] = batch["unlabeled"]["image"][:2]
    method.training_step(batch, 0)
    for number, other in enumerate((0, 1, 0)):
        used = method.seen["used"][number]
        pasted, source = method.seen["image"][number], batch["unlabeled"]["image"][other]
        assert torch.equal(pasted[:, used], source[:, used])


def test_bcp_keeps_the_largest_object_of_each_class():
    method = built("BCP", largest_component=True)
    logits = torch.full((1, 3, 16, 24), -5.0)
    logits[:, 0] = 0
    logits[0, 1, 1:6, 1:6] = logits[0, 1, 10:12, 10:12] = logits[0, 2, 14, 1:9] = logits[0, 2, 1, 20] = 5
    logits[0, 1, 6, 6] = 5  # joined at a corner
    method.teacher.forward = lambda image: logits
    classes = method.decisions(torch.zeros(1, 1, 16, 24))
    assert [int((classes == label).sum()) for label in (1, 2)] == [26, 8]


@CASES
def test_advent(dims, classes):
    method, batch = built("ADVENT", dims, classes, direct=0.5), drawn(dims, classes)
    for weight in method.discriminator.parameters():
        weight.data *= 4  # a fresh one says nearly the same of everything
    first, second = (softmax(logits) for logits in both(method.network, batch))
    source, target = (
        method.discriminator(torch.from_numpy(-p * np.log(p + 1e-6) / np.log(classes)).float()) for p in (first, second)
    )
    entropy = -(second * np.log(second + 1e-6)).sum(1).mean() / np.log(classes)
    fooling = np.log1p(np.exp(-target.detach().numpy())).mean()
    assert unsupervised(method, batch) == pytest.approx(fooling + 0.5 * entropy, rel=1e-4)
    telling = (np.log1p(np.exp(-source.detach().numpy())).mean() + np.log1p(np.exp(target.detach().numpy())).mean()) / 2
    assert float(method.logged["train/loss_discriminator"]) == pytest.approx(telling, rel=1e-4)


def gradients(method, loss):
    names = [name for name, weight in method.named_parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, [method.get_parameter(name) for name in names], allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def test_advent_trains_the_discriminator_to_tell_and_the_network_to_fool():
    method, batch = built("ADVENT"), drawn()
    method.supervised_loss = lambda logits, mask: (logits * 0).sum()
    method.total = lambda supervised, unsupervised, discriminator: (unsupervised, discriminator)
    fooling, telling = method.training_step(batch, 0)
    assert {name.split(".")[0] for name in gradients(method, fooling)} == {"network"}
    fooling, telling = method.training_step(batch, 0)
    assert {name.split(".")[0] for name in gradients(method, telling)} == {"discriminator"}
    network, discriminator = method.parameter_groups()
    assert "lr" not in network
    assert discriminator == {"params": list(method.discriminator.parameters()), "lr": 0.0001}


@pytest.mark.parametrize("name", ["MeanTeacher", "UAMT", "PiModel"])
def test_the_student_sees_the_image_and_the_target_comes_from_a_noisy_one(name, monkeypatch):
    module = {"MeanTeacher": "mean_teacher", "UAMT": "uamt", "PiModel": "pi_model"}[name]
    noise = []
    monkeypatch.setattr(
        f"semiseg.methods.consistency.{module}.noisy", lambda image: noise.append(image) or torch.zeros_like(image)
    )
    method, batch = built(name), drawn()
    seen = []
    looked_at = method.network if name == "PiModel" else method.teacher.network
    looked_at.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    method.training_step(batch, 0)
    assert noise[0] is batch["unlabeled"]["image"]
    assert any((image == 0).all() for image in seen)
    if name == "PiModel":
        assert torch.equal(seen[0], torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]]))


@pytest.mark.parametrize(
    ("name", "module"), [("ICT", "ict"), ("MeanTeacher", "mean_teacher"), ("PiModel", "pi_model"), ("UAMT", "uamt")]
)
def test_targets_carry_no_gradient(name, module, monkeypatch):
    targets = []
    found = f"semiseg.methods.consistency.{module}.squared_error"
    monkeypatch.setattr(found, lambda p, q: targets.append(q) or squared_error(p, q))
    built(name).training_step(drawn(), 0)
    assert [target.requires_grad for target in targets] == [False]


@pytest.mark.parametrize("name", ["CCT", "MCNet"])
def test_gradients_reach_the_target_only_if_asked_to(name):
    parts = {}
    for detach in (True, False):
        method = built(name, detach_target=detach)
        method.total = lambda supervised, unsupervised: unsupervised
        found = gradients(method, method.training_step(drawn(), 0))
        parts[detach] = {key: value for key, value in found.items() if key.startswith("network.head")}
    if name == "CCT":
        assert not parts[True]
        assert parts[False]
    else:
        assert not torch.allclose(parts[True]["network.head.0.weight"], parts[False]["network.head.0.weight"])


def test_urpc_perturbs_from_coarse_to_fine_in_training_and_not_at_inference():
    torch.manual_seed(0)

    def deep(in_channels, num_classes, spatial_dims):
        return UNet(in_channels, num_classes, spatial_dims, widths=(4, 5, 6, 7, 8), dropout=(0,) * 5)

    assert [head.in_channels for head in methods.URPC(network=deep, in_channels=1, scales=3).heads] == [6, 5]
    method = methods.URPC(network=deep, in_channels=1)
    assert [head.in_channels for head in method.heads] == [7, 6, 5]
    seen = []
    for perturb in method.perturbations:
        perturb.register_forward_pre_hook(
            lambda module, images: seen.append((type(module).__name__, images[0].shape[1]))
        )
    image = torch.randn(2, 1, 32, 32)
    assert all(logits.shape == (2, 2, 32, 32) for logits in method.predictions(image))
    assert seen == [("FeatureDropout", 7), ("FeatureDrop", 6), ("FeatureNoise", 5)]
    method.eval()
    assert all(map(torch.equal, method.predictions(image), method.predictions(image)))


TRAINED_WITHOUT_LABELS = {
    "EntropyMinimization": {"network.encoder", "network.decoder", "network.head"},
    "PiModel": {"network.encoder", "network.decoder", "network.head"},
    "MeanTeacher": {"network.encoder", "network.decoder", "network.head"},
    "UAMT": {"network.encoder", "network.decoder", "network.head"},
    "ICT": {"network.encoder", "network.decoder", "network.head"},
    "CCT": {"network.encoder", "auxiliary"},
    "CPS": {"network.encoder", "network.decoder", "network.head", "second"},
    "URPC": {"network.encoder", "network.decoder", "network.head", "heads"},
    "DTC": {"network.encoder", "network.decoder", "network.head", "distance"},
    "MCNet": {"network.encoder", "network.decoder", "network.head", "others"},
    "UniMatch": {"network.encoder", "network.decoder", "network.head"},
    "BCP": {"network.encoder", "network.decoder", "network.head"},
    "ADVENT": {"network.encoder", "network.decoder", "network.head", "discriminator"},
}
OPTIONS = {"DTC": {"steepness": 5.0, "distance_weight": 0.0}, "UniMatch": {"confidence": 0.3}}


@pytest.mark.parametrize("name", TRAINED_WITHOUT_LABELS)
def test_losses_are_in_single_precision_whatever_the_network_computes_in(name):
    method = built(name)
    with torch.autocast("cpu", torch.bfloat16):
        method.training_step(drawn(), 0)
    losses = {key: value for key, value in method.logged.items() if key.startswith("train/loss")}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert len(losses) >= 3


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", TRAINED_WITHOUT_LABELS)
def test_a_step_in_half_precision_throughout(name, dims):
    method, batch, plugin = built(name, dims), drawn(dims), HalfPrecision("bf16-true")
    batch = plugin.convert_input(batch)
    with plugin.forward_context():
        loss = method.bfloat16().training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", TRAINED_WITHOUT_LABELS)
def test_the_unsupervised_loss_trains_what_the_paper_trains(name):
    method = built(name, **OPTIONS.get(name, {}))
    method.supervised_loss = lambda logits, mask: (logits * 0).sum() if name != "BCP" else logits.square().mean()
    method.training_step(drawn(), 0).backward()
    moved = {
        key
        for key, weight in method.named_parameters()
        if weight.grad is not None and float(weight.grad.abs().sum()) > 0
    }
    parts = {key if key.startswith("network") else key.split(".")[0] for key in moved}
    parts = {".".join(part.split(".")[:2]) for part in parts}
    assert parts == TRAINED_WITHOUT_LABELS[name]


@pytest.mark.parametrize("step", [0, 60])
@pytest.mark.parametrize("name", TRAINED_WITHOUT_LABELS)
def test_every_weight_that_learns_has_a_gradient_in_every_step(name, step):
    """Several processes wait for each other's gradients of all weights."""
    method = built(name, step=step)
    method.training_step(drawn(), 0).backward()
    without = [key for key, weight in method.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not without


@pytest.mark.parametrize("name", sorted(TRAINED_WITHOUT_LABELS.keys() - {"URPC", "MCNet", "BCP"}))
def test_without_weight_it_is_supervised_learning_step_by_step(name):
    """URPC and MC-Net also train further heads on the labels, BCP's images are mosaics."""
    options = {"DTC": {"distance_weight": 0.0}}.get(name, {})
    method = built(name, weight=no_weight, separate_forward=True, **options)
    torch.manual_seed(0)
    plain = Supervised(network=tiny, in_channels=1, num_classes=3)
    plain.log_dict = lambda parts: None
    for model in (method, plain):
        optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.1, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            model.training_step(drawn(seed=step), 0).backward()
            optimizer.step()
    for (key, weight), expected in zip(method.network.named_parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, msg=key)


@pytest.mark.parametrize(("step", "kept"), [(0, 0.0), (9, 0.9), (60, 0.95)])
def test_the_teacher_follows_each_optimiser_step(step, kept):
    method = built("MeanTeacher", step=step, decay=0.95)
    before = [weight.clone() for weight in method.teacher.network.parameters()]
    optimizer = torch.optim.SGD(method.network.parameters(), lr=0.1)
    method.optimizer_step(0, 0, optimizer, lambda: method.training_step(drawn(), 0).backward())
    pairs = zip(before, method.network.parameters(), method.teacher.network.parameters(), strict=True)
    for old, weight, followed in pairs:
        torch.testing.assert_close(followed, kept * old + (1 - kept) * weight.detach(), msg=f"step {step}")


@pytest.mark.parametrize("name", ["MeanTeacher", "CPS", "URPC", "MCNet"])
def test_what_is_scored_is_an_argument(name):
    other = {"MeanTeacher": "teacher"}.get(name, "mean")
    image = drawn()["unlabeled"]["image"]
    first = built(name).eval()
    assert first.scored_network is first.network
    method = built(name, score=other).eval()
    with torch.no_grad():
        logits = method.scored_network(image)
        if name == "MeanTeacher":
            torch.testing.assert_close(logits, method.teacher.network(image))
            return
        single = [method.network(image), method.second(image)] if name == "CPS" else method.predictions(image)
    np.testing.assert_allclose(softmax(logits), np.mean([softmax(one) for one in single], axis=0), atol=1e-5)


@pytest.mark.parametrize(("name", "module"), [("CPS", "second"), ("CCT", "auxiliary"), ("MCNet", "others")])
def test_earlier_weights_go_to_all_or_to_the_first(name, module, tmp_path):
    torch.manual_seed(9)
    earlier = tiny(1, 3, 2)
    torch.save(earlier.state_dict(), tmp_path / "stage1.ckpt")

    def started(in_channels, num_classes, spatial_dims, **options):
        return tiny(in_channels, num_classes, spatial_dims, **{"weights": str(tmp_path / "stage1.ckpt"), **options})

    key = "decoder.merges.0.0.weight"
    expected = earlier.state_dict()[key]
    for weights_for in ("all", "first"):
        options = {"decoders": ("transposed",)} if name == "MCNet" else {}
        method = getattr(methods, name)(
            network=started, in_channels=1, num_classes=3, weights_for=weights_for, **options
        )
        others = getattr(method, module)
        branch = others if name == "CPS" else others[0]
        assert torch.equal(method.network.state_dict()[key], expected)
        assert torch.equal(branch.state_dict()[key], expected) == (weights_for == "all")
        head = branch.state_dict()["head.0.weight"]
        assert not torch.equal(head, method.network.state_dict()["head.0.weight"]), "they would never differ"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UAMT", {"passes": 0}),
        ("MeanTeacher", {"decay": 1.5}),
        ("MeanTeacher", {"start": -0.1}),
        ("ICT", {"alpha": 0.0}),
        ("MCNet", {"temperature": 0.0}),
        ("UniMatch", {"confidence": 95.0}),
        ("BCP", {"box_share": 2.0}),
        ("BCP", {"pretraining": 2.0}),
        ("ADVENT", {"discriminator_lr": -1.0}),
        ("URPC", {"scales": 1}),
        ("UAMT", {"teacher_buffers": "own", "teacher_mode": "eval"}),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_named_by_their_option(name, options):
    option = next(iter(options))
    with pytest.raises(UserError, match=f"--model.{option}"):
        built(name, **options)


def test_networks_without_such_decoders_are_refused_in_one_line():
    def plain(in_channels, num_classes, spatial_dims, weights=None):
        return tiny(in_channels, num_classes, spatial_dims)

    with pytest.raises(UserError, match=r"--model.network.*upsample"):
        methods.MCNet(network=plain, in_channels=1)


@pytest.mark.parametrize("name", ["Supervised", "URPC", "MCNet", "CCT", "DTC", "UniMatch", "CPS"])
def test_a_denoiser_is_a_backbone_as_any_other(name):
    def denoiser(in_channels, num_classes, spatial_dims, **options):
        widths = {"widths": (4, 6, 8), "dropout": (0, 0, 0), "image_pathway": False}
        return Denoiser(in_channels, num_classes, spatial_dims, **widths, **options)

    method = built(name, network=denoiser)
    method.training_step(drawn(), 0).backward()
    assert all(weight.grad is not None for weight in method.network.parameters())


def test_a_linear_probe_needs_a_last_layer_to_replace():
    with pytest.raises(UserError, match=r"--model.network Denoiser: its last layer cannot be replaced"):
        methods.LinearProbe(network=Denoiser, in_channels=1)


def test_earlier_weights_that_fit_the_first_decoder_only_say_what_helps(tmp_path):
    torch.save(tiny(1, 3, 2).state_dict(), tmp_path / "stage1.ckpt")

    def started(in_channels, num_classes, spatial_dims, **options):
        return tiny(in_channels, num_classes, spatial_dims, **{"weights": str(tmp_path / "stage1.ckpt"), **options})

    with pytest.raises(UserError, match="weights_for first"):
        methods.MCNet(network=started, in_channels=1, num_classes=3, weights_for="all")
