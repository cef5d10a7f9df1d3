"""Every number that can be an option has a range; what cannot be built or trained is refused before it is allocated."""

import inspect
import re
from functools import partial
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import torch

from semiseg import components, methods, networks
from semiseg.components import ramps
from semiseg.components.schedules import build_schedule
from semiseg.data.augmentation import Augmentation
from semiseg.errors import UserError, check_number
from semiseg.methods import UAMT, Method, Supervised
from semiseg.networks import Denoiser, Network, UNet

FROM_THE_PROGRAM = {"in_channels", "num_classes", "spatial_dims", "max_steps"}
TINY = {"widths": (2, 4), "dropout": (0.0, 0.0)}


def build(kind, **options):
    if issubclass(kind, Method):
        network = Denoiser if "Diffusion" in kind.__name__ else UNet
        return kind(network=partial(network, **TINY), **options)
    if issubclass(kind, Network):
        return kind(1, 2, 2, **options)
    if issubclass(kind, ramps.Ramp):
        return kind(10, **options)
    return kind(optimizer(), 10, **options) if kind is not Augmentation else kind(**options)


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def numbers():
    """The options that are numbers, or lists of numbers, with the class whose own they are."""
    for module in (methods, networks, components, SimpleNamespace(__all__=["Augmentation"], Augmentation=Augmentation)):
        for kind in (getattr(module, name) for name in module.__all__):
            if inspect.isclass(kind) and "__init__" in vars(kind):
                for option, hint in get_type_hints(kind.__init__).items():
                    if (
                        re.search(r"\b(int|float)\b", str(hint))
                        and "Callable" not in str(hint)
                        and option not in FROM_THE_PROGRAM
                    ):
                        many = re.search("Sequence|tuple", str(hint)) is not None
                        yield pytest.param(kind, option, many, id=f"{kind.__name__}.{option}")


def test_there_are_numbers_to_check():
    assert len(list(numbers())) > 35


@pytest.mark.parametrize(("kind", "option", "many"), list(numbers()))
def test_every_number_has_a_range(kind, option, many):
    for value in (float("nan"), float("inf"), -1e30, 1e30, 2**63, 10**400):
        with pytest.raises(UserError, match=rf"^--[\w.]+\.{option} (of more than 18 digits|[-\w.+]+): use .* to "):
            build(kind, **{option: [value, value] if many else value})


@pytest.mark.parametrize(
    ("value", "limits", "says"),
    [
        (0, (1,), "--x 0: use 1 or more"),
        (0.0, (0, 1, True), "--x 0: use more than 0 to 1"),
        (1.5, (0, 1), "--x 1.5: use 0 to 1"),
        ([0.5, -2], (0, 1), "--x -2: use 0 to 1"),
        (float("inf"), (0,), "--x inf: use 0 or more"),
        (10**400, (1, 9), "--x of more than 18 digits: use 1 to 9"),
    ],
)
def test_check_number_says_value_and_range(value, limits, says):
    with pytest.raises(UserError, match=f"^{re.escape(says)}$"):
        check_number("--x", value, *limits)
    check_number("--x", [1, 1.0], *limits[:1])


@pytest.mark.parametrize("kind", [Supervised, UAMT])
@pytest.mark.parametrize(
    "network", [partial(UNet, widths=(65536, 65536), dropout=(0, 0)), partial(networks.VNet, base=4096)]
)
def test_a_network_larger_than_the_memory(kind, network):
    with pytest.raises(UserError, match=r"--model.network: \d+ GiB are needed .* this machine has \d+ GiB"):
        kind(network=network)


def test_counting_parameters_draws_no_random_numbers():
    state = torch.get_rng_state()
    networks.check_memory(partial(UNet, 3, 2, 2))
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_cannot_be_counted_is_built():
    def plain(in_channels, num_classes, spatial_dims):  # takes no weights
        return UNet(in_channels, num_classes, spatial_dims, **TINY)

    assert Supervised(network=plain).network.stride == 2


@pytest.mark.parametrize("levels", [0, 1, 17])
def test_number_of_levels(levels):
    with pytest.raises(UserError, match=rf"--model.network.widths .* {levels} levels; use 2 to 16"):
        UNet(1, 2, 2, widths=[2] * levels, dropout=[0] * levels)


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (partial(torch.optim.SGD, lr=0.0), r"--model.optimizer.lr 0: use more than 0"),
        (partial(torch.optim.SGD, lr=float("inf")), r"--model.optimizer.lr inf: use more than 0"),
        (partial(torch.optim.SGD, lr=0.1, dampening=-1.0), r"--model.optimizer.dampening -1: use 0 or more"),
        (partial(torch.optim.AdamW, lr=0.1, weight_decay=float("inf")), r"--model.optimizer.weight_decay inf: use"),
        (partial(torch.optim.AdamW, lr=0.1, betas=(0.9, 1.5)), r"--model.optimizer: Invalid beta"),
        (partial(torch.optim.SparseAdam, lr=0.1), r"--model.optimizer SparseAdam: not for such networks"),
        (partial(torch.optim.LBFGS, lr=0.1), r"--model.optimizer LBFGS: not for such networks"),
    ],
)
def test_optimizers_that_would_not_train(optimizer, says):
    method = Supervised(network=partial(UNet, **TINY), optimizer=optimizer)
    method._trainer = SimpleNamespace(max_steps=10)
    with pytest.raises(UserError, match=says):
        method.configure_optimizers()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adam", "RMSprop", "Adafactor", "NAdam", "Rprop"])
def test_optimizers_with_their_defaults(name):
    method = Supervised(network=partial(UNet, **TINY), optimizer=partial(getattr(torch.optim, name), lr=0.1))
    method._trainer = SimpleNamespace(max_steps=10)
    assert type(method.configure_optimizers()["optimizer"]).__name__ == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("StepLR", "StepLR: takes step_size where the budget in steps stands; use WarmupPoly"),
        ("ExponentialLR", "ExponentialLR: takes gamma where the budget in steps stands"),
        ("LinearLR", r"cannot be built \(Starting multiplicative factor"),
        ("ReduceLROnPlateau", "cannot be built"),
        ("LRScheduler", "cannot be built"),
    ],
)
def test_schedules_that_do_not_take_the_budget(name, says):
    with pytest.raises(UserError, match=f"--model.schedule.*{says}"):
        build_schedule(getattr(torch.optim.lr_scheduler, name), optimizer(), 10)


@pytest.mark.parametrize(
    "schedule",
    [
        torch.optim.lr_scheduler.CosineAnnealingLR,
        torch.optim.lr_scheduler.PolynomialLR,
        components.WarmupHalving,
        lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / steps),
    ],
)
def test_schedules_that_take_the_budget(schedule):
    assert build_schedule(schedule, optimizer(), 10).last_epoch == 0


class _NoBudget(ramps.Ramp):
    def __init__(self):
        pass


class _HeightFirst(ramps.Ramp):
    def __init__(self, height=0.1):
        self.height = height

    def __call__(self, step):
        return self.height


class _Texts(ramps.Ramp):
    def __init__(self, max_steps):
        pass

    def __call__(self, step):
        return "0.1"


@pytest.mark.parametrize(
    ("ramp", "says"),
    [
        (_NoBudget, "--model.weight: is no ramp .* takes 1 positional argument"),
        (_HeightFirst, "--model.weight _HeightFirst: takes height where the budget in steps stands"),
        (_Texts, "--model.weight: is no ramp"),
        (ramps.Ramp, "--model.weight: is no ramp"),
        (lambda max_steps: lambda step: -1.0, "--model.weight at step 0 -1: use 0 or more"),
        (partial(components.SigmoidRamp, peak=-1.0), "--model.weight.peak -1: use 0 to"),
    ],
)
def test_ramps_that_cannot_be(ramp, says):
    with pytest.raises(UserError, match=says):
        methods.PiModel(network=partial(UNet, **TINY), weight=ramp)
