"""A mistake on the command line or in YAML gives one line: the option, what is wrong, the nearest valid name."""

from pathlib import Path

import pytest

from semiseg.cli import main

SYNTHETIC = ["--data", "Synthetic", "--data.size", "[32,32]", "--data.num_cases", "12"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("SEMISEG_CACHE", str(tmp_path / "cache"))


def assert_complains(args, capsys, *parts):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("semiseg: error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    for part in parts:
        assert part in error
    assert not any(Path("runs").rglob("*")), "a run began"


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--model", "Supervisd", "no method of that name; did you mean Supervised?"),
        ("--model", "semiseg.methods.Supervisd", "did you mean Supervised?"),
        ("--model", "torch.nn.Identity", "no method of that name; semiseg fit --help lists what there is"),
        ("--data", "torch.nn.Identity", "no data set of that name; use one of"),
        ("--model", "nowhere.Method", "there is no Python module nowhere; put its folder on PYTHONPATH"),
        ("--data", "Synthetc", "no data set of that name; did you mean Synthetic?"),
        ("--model.network", "UNett", "no network of that name; did you mean UNet?"),
        ("--model.network", "unet", "did you mean UNet?"),
        ("--model.optimizer", "Adm", "no optimizer of that name; did you mean Adam"),
        ("--model.schedule", "WarmupPol", "no schedule of that name; did you mean WarmupPoly?"),
        ("--trainer.callbacks", "Nonsense", "no callback of that name"),
        ("--model.loss", "dicee", "expected one of dice_ce, dice, ce; did you mean dice?"),
        ("--model.network.norm", "bach", "did you mean batch?"),
        ("--data.split", "officil", "did you mean official?"),
        ("--data.fold", "abc", "expected a whole number"),
        ("--data.labeled_count", "abc", "expected a whole number"),
        ("--data.labeled_fraction", "half", "expected a number"),
        ("--data.size", "32", "expected a list"),
        ("--data.ignore_unlabeled", "maybe", "expected true or false"),
        ("--data.augmentation.flip", "maybe", "expected true or false"),
        ("--data.augmentation", "none", "set its options one by one: --data.augmentation.flip"),
        ("--model.optimizer.lr", "abc", "expected a number"),
        ("--trainer.max_steps", "abc", "expected a whole number"),
        ("--trainer.precision", "17", "expected one of 64, 32, 16"),
        ("--labeled_epochs", "0", "use a number >0"),
        ("--labeled_epochs", "text", "expected a whole number above 0"),
        ("--seed_everything", "1e30", "expected true or false or a whole number"),
        ("--model", "[]", "no method of that name"),
        ("--model.network", "[]", "no network of that name; use one of Denoiser, UNet, VNet"),
        ("--model.optimizer.betas", "[1]", "give 2 values\n"),
        ("--model.network.dropout", "-.inf", "write --model.network.dropout=-.inf"),
    ],
)
def test_wrong_value(option, value, reason, capsys):
    shown = "1e+30" if value == "1e30" else value
    assert_complains(["fit", *SYNTHETIC, option, value], capsys, f"{option} {shown}: ", reason)


@pytest.mark.parametrize(
    ("option", "named", "near"),
    [
        ("--data.labelled_fraction", "--data.labelled_fraction: Synthetic", "--data.labeled_fraction"),
        ("--data.init_args.fol", "--data.fol: Synthetic", "--data.fold"),
        ("--model.los", "--model.los: Supervised", "--model.loss"),
        ("--model.network.width", "--model.network.width: UNet", "--model.network.widths"),
        ("--model.optimizer.lrr", "--model.optimizer.lrr: AdamW", "--model.optimizer.lr"),
        ("--model.schedule.warmp", "--model.schedule.warmp: WarmupPoly", "--model.schedule.warmup"),
        ("--data.augmentation.flp", "--data.augmentation.flp: Augmentation", "--data.augmentation.flip"),
        ("--trainer.max_step", "--trainer.max_step", "--trainer.max_steps"),
        ("--trainr.max_steps", "--trainr.max_steps", "--trainer.max_steps"),
        ("--labeled_fraction", "--labeled_fraction", "--data.labeled_fraction"),
        ("--experimen", "--experimen", "--experiment"),
    ],
)
def test_unknown_option(option, named, near, capsys):
    assert_complains(["fit", *SYNTHETIC, option, "1"], capsys, named, "no such option", f"did you mean {near}?")


@pytest.mark.parametrize(
    ("method", "option", "value", "reason"),
    [
        ("UAMT", "--model.weight", "0.5", " 0.5: no ramp of that name; use one of ConstantWeight, LinearRamp"),
        ("UAMT", "--model.weight.max_steps", "7", ": SigmoidRamp has no such option; use one of length, peak"),
        ("UniMatch", "--model.view_weights", "[1]", " [1]: give 2 values"),
        ("MCNet", "--model.decoders", "bilinear", " bilinear: expected a list in brackets"),
    ],
)
def test_options_of_methods(method, option, value, reason, capsys):
    ramp = ["--model.weight", "SigmoidRamp"] if option.endswith("max_steps") else []
    args = ["fit", *SYNTHETIC, "--model", method, *ramp, option, value]
    assert_complains(args, capsys, option + reason)


def test_no_near_option_lists_those_of_the_place(capsys):
    args = ["fit", *SYNTHETIC, "--model.network.qqqq", "1"]
    assert_complains(args, capsys, "--model.network.qqqq: UNet has no such option; use one of dropout, head, norm")


def test_option_that_is_cut_short(capsys):
    args = ["fit", *SYNTHETIC, "--data.augmentation.rot", "1"]
    assert_complains(args, capsys, "--data.augmentation.rot: no such option; use one of --data.augmentation.rot90, --d")


@pytest.mark.parametrize(
    ("yaml", "parts"),
    [
        ("model: {class_path: Supervised, init_args: {los: dice}}", ["--model.los", "did you mean --model.loss?"]),
        ("model: {class_path: Supervised, init_args: {loss: dicee}}", ["--model.loss dicee", "did you mean dice?"]),
        ("model: {class_path: Supervisd}", ["--model Supervisd", "did you mean Supervised?"]),
        (
            "model: {class_path: Supervised, init_args: {network: {class_path: UNett}}}",
            ["--model.network UNett", "did you mean UNet?"],
        ),
        (
            "model: {class_path: Supervised, init_args: {network: {class_path: UNet, init_args: {width: [3]}}}}",
            ["--model.network.width: UNet", "did you mean --model.network.widths?"],
        ),
        ("data: {class_path: Synthetc}", ["--data Synthetc", "did you mean Synthetic?"]),
        ("data: {class_path: Synthetic, init_args: {fold: abc}}", ["--data.fold abc: expected a whole number"]),
        (
            "data: {class_path: Synthetic, init_args: {augmentation: {flp: 1}}}",
            ["did you mean --data.augmentation.flip"],
        ),
        (
            "model: {class_path: Supervised, init_args: {optimiser: {class_path: torch.optim.SGD}}}",
            ["--model.optimiser: Supervised", "did you mean --model.optimizer?"],
        ),
        (
            "model: {class_path: Supervised, init_args: {optimiser: {class_path: SGD, init_args: {lr: 1}}}}",
            ["--model.optimiser: Supervised", "did you mean --model.optimizer?"],
        ),
        (
            "model: {class_path: Supervised, init_args: {network: {class_path: UNet, init_args: {nrm: {a: 1}}}}}",
            ["--model.network.nrm: UNet", "did you mean --model.network.norm?"],
        ),
        ("data: {class_path: Synthetic, fold: 1}", ["--data: in YAML", "below init_args"]),
        ("trainer: {max_step: 3}", ["--trainer.max_step:", "did you mean --trainer.max_steps?"]),
        ("model:\n  class_path: Supervised\n init_args: [", ["--config my.yaml, line 3: not valid YAML", "correct it"]),
        ("model: {class_path: 3}", ["--model {'class_path': 3}: "]),
        (
            "model: {class_path: Supervised, init_args: [1]}",
            ["'init_args': [1]}: 'list' object has no attribute 'keys'\n"],
        ),
        ("model: {class_path: os.system}", ["--model os.system: no method of that name"]),
        ("model: {class_path: 'a\0b'}".replace("\0", "\\0").replace("'", '"'), ["--model "]),
        ("trainer: {foo: 3}", ["--trainer.foo: no such option; semiseg fit --help"]),
        ("trainer: 3", ["--config my.yaml: trainer needs options below it"]),
        ("trainer: [1, 2]", ["--config my.yaml: trainer needs options below it"]),
        ("trainer: {3: 4}", ["--config: Key must be a string, got: 3."]),
        ("3: 4", ["--config my.yaml: 3 is no option of a file"]),
        ("config: other.yaml", ["--config my.yaml: config is no option of a file"]),
        ("trainer: &t {a: *t}", ["--config my.yaml, line 1: *t refers to itself"]),
        ("trainer: {max_steps: 2, max_steps: 3}", ["--config my.yaml, line 1", "the key max_steps is there twice"]),
        ("a: " + "[" * 2000, ["--config my.yaml, line 1", "nested more than 50 deep"]),
        ("hello", ["--config my.yaml: holds no options"]),
        ("", ["--config my.yaml: holds no options"]),
    ],
)
def test_mistake_in_yaml(yaml, parts, capsys):
    Path("my.yaml").write_text(yaml)
    assert_complains(["fit", *SYNTHETIC[:2], "--config", "my.yaml"], capsys, *parts)


def test_config_that_is_no_text(capsys):
    Path("my.yaml").write_bytes(b"\xff\xfe\x00")
    assert_complains(["fit", "--config", "my.yaml"], capsys, "--config my.yaml: is not UTF-8 text")


@pytest.mark.parametrize("form", [["--config", "none.yaml"], ["--config=none.yaml"]])
def test_config_file_missing(form, capsys):
    assert_complains(["fit", *form], capsys, "--config none.yaml: no such file")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["tst"], ["unknown command tst", "did you mean test?"]),
        (["fit"], ["--data is missing", "--config configs/data/glas.yaml"]),
        (["fit", "--data.fold", "1"], ["--data is missing"]),
        (["fit", "--data.image_size", "[32,32]"], ["--data is missing"]),
        (
            ["fit", "--model.passes", "3", *SYNTHETIC, "--model", "UAMT"],
            ["--model.passes: ", "give --model before its"],
        ),
        (["fit", *SYNTHETIC, "-1"], ["-1: not understood here"]),
        (
            ["fit", *SYNTHETIC, "--model.schedule", "torch.optim.lr_scheduler.CyclicLR"],
            ["--model.schedule.max_lr is missing: CyclicLR needs it"],
        ),
        (["fit", "--data", "Folder"], ["--data.root is missing: Folder needs it"]),
        (["fit", *SYNTHETIC, "--model", "null"], ["--model is missing: name a method"]),
        (["fit", *SYNTHETIC, "--data.root"], ["--data.root: a value is missing after it"]),
        (["fit", "--config"], ["--config: a value is missing after it"]),
        (["fit", *SYNTHETIC, "stray"], ["stray: not understood here", "--"]),
        (["fit", *SYNTHETIC, "--trainer.max_steps", "-1"], ["--trainer.max_steps", "optimizer steps"]),
        (["test"], ["--run RUN is missing"]),
        (["test", "--run", "nowhere"], ["--run nowhere: no such folder", "semiseg fit"]),
        (["test", "--run", "nowhere", "--checkpoint", "lst"], ["--checkpoint", "'best', 'last'"]),
        (["predict"], ["CKPT, INPUT, --output", "semiseg predict --help"]),
        (["data", "chec"], ["semiseg data chec", "check"]),
        (["data", "check"], ["--data is missing"]),
        (["data", "split", *SYNTHETIC, "--outptt", "x"], ["--outptt: no such option; did you mean --output?"]),
    ],
)
def test_incomplete_command(args, parts, capsys):
    assert_complains(args, capsys, *parts)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--data.size", "[32]", "--data.size [32]: give 2 or 3 numbers"),
        ("--model.network.dropout", "[0,2]", "--model.network.dropout 2: use 0 to 1"),
        ("--model.network.widths", "[4,8,16]", "give both one value per level"),
        ("--trainer.val_check_interval", "0", "--trainer.val_check_interval 0: use 1 step or more"),
    ],
)
def test_value_that_a_constructor_refuses(option, value, reason, capsys):
    small = ["--model.network.widths", "[4,8]", "--model.network.dropout", "[0,0]", "--trainer.max_steps", "2"]
    assert_complains(["fit", *SYNTHETIC, *small, option, value], capsys, reason)


@pytest.mark.parametrize(("option", "value"), [("accelerator", "gpuu"), ("strategy", "foo"), ("devices", "x")])
def test_trainer_option_that_lightning_refuses(option, value, capsys):
    args = ["fit", *SYNTHETIC, "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", f"--trainer.{option}", value]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("semiseg: error: --trainer: ")
    assert option in error
    assert error.count("\n") == 1
    assert main([*args[:-2], "--trainer.max_steps", "1"]) == 0, "a run that never began must not stand in the way"


def test_help_is_no_mistake(capsys):
    assert main([]) == 0
    assert main(["data"]) == 0
    assert "semiseg" in capsys.readouterr().out
