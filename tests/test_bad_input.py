"""Bad data, checkpoints, folders and machines: one line that names the file or option, exit code 2, nothing lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.cli import main
from semiseg.methods import Supervised

NETWORK = ["--model.network.widths", "[4,8]", "--model.network.dropout", "[0,0]"]
BUDGET = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.accelerator", "cpu"]
SYNTHETIC = ["--data", "Synthetic", "--data.size", "[32,32]", "--data.num_cases", "12"]
RUN = Path("runs/default/synthetic2d/supervised/labeled-1/fold-0-seed-0")


class NeedsUnlabeled(Supervised):
    streams = ("labeled", "unlabeled")


class NaNFromFourth(Supervised):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.trainer.global_step >= 3 else loss


class CpuTooSmall(Supervised):
    def training_step(self, batch, batch_idx):
        return torch.empty(10**15)


class GpuTooSmall(Supervised):
    def training_step(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("SEMISEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def complains(capsys):
    """Run a command; its one line must hold all parts, and no half-written file may be left."""

    def run(args, *parts):
        capsys.readouterr()
        assert main(args) == 2
        error = capsys.readouterr().err
        assert error.startswith("semiseg: error: ")
        assert error.count("\n") == 1
        assert error.endswith("\n")
        for part in parts:
            assert part in error
        hidden = [path for path in Path.cwd().rglob(".*") if path.name not in (".lock", ".status.lock")]
        assert not hidden, "half-written files"

    return run


def fit(*options):
    return ["fit", *NETWORK, *BUDGET, *options]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done; tests take copies of it."""
    runs = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("SEMISEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(fit(*SYNTHETIC, "--runs_dir", str(runs))) == 0
    return runs / RUN.relative_to("runs")


@pytest.fixture
def run(finished, _elsewhere):
    shutil.copytree(finished, RUN)
    return RUN


def pictures(count=8, size=(32, 32)):
    """`images/` and `masks/` in the present folder."""
    random = np.random.default_rng(0)
    mask = np.zeros(size, np.uint8)
    mask[5:20, 5:20] = 255
    for kind in ("images", "masks"):
        Path(kind).mkdir()
    for i in range(count):
        Image.fromarray(random.integers(0, 255, size, dtype=np.uint8)).save(f"images/c{i}.png")
        Image.fromarray(mask).save(f"masks/c{i}.png")


def volumes(count=6, size=(16, 16, 16)):
    mask = np.zeros(size, np.uint8)
    mask[4:9, 4:9, 4:9] = 1
    for kind in ("images", "masks"):
        Path(kind).mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).normal(size=size).astype(np.float32)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), f"images/v{i}.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), f"masks/v{i}.nii.gz")


def folder(*options):
    return fit("--data", "Folder", "--data.root", ".", "--data.image_size", "[32,32]", *options)


# Data


def test_missing_root(complains):
    complains(fit("--data", "Folder", "--data.root", "none"), "--data.root none: no such folder; give")


def test_empty_folder(complains):
    complains(folder(), "--data.root .: has no folder images/; expected images/<name>")
    Path("images").mkdir()
    complains(folder(), "--data.root .: no cases found; expected images/<name>")


def test_image_without_mask_where_only_labels_count(complains):
    pictures()
    Path("masks/c2.png").unlink()
    complains(folder(), "images/c2.png: no mask", "add the masks", "--data.ignore_unlabeled true")
    assert main(folder("--data.ignore_unlabeled", "true")) == 0


def test_mask_without_image(complains):
    pictures()
    Path("images/c2.png").unlink()
    complains(folder(), "masks/c2.png: mask without image; add images/c2.* or remove the mask")


def test_size_mismatch(complains):
    pictures()
    Image.fromarray(np.zeros((16, 32), np.uint8)).save("masks/c2.png")
    complains(folder(), "masks/c2.png: mask is 16 x 32 but its image c2.png is 32 x 32; replace one of them")


def test_truncated_image(complains):
    pictures()
    Path("images/c2.png").write_bytes(Path("images/c2.png").read_bytes()[:400])
    complains(folder(), "images/c2.png: cannot be read, truncated", "replace or remove it")


def test_unreadable_volume(complains):
    volumes()
    Path("images/v2.nii.gz").write_text("no volume")
    options = ("--data", "Folder", "--data.root", ".", "--data.patch_size", "[16,16,16]")
    complains(fit(*options), "images/v2.nii.gz: cannot be read", "replace or remove it")


def test_mask_with_unexpected_values(complains):
    pictures()
    mask = np.asarray(Image.open("masks/c2.png")).copy()
    mask[0] = 127
    Image.fromarray(mask).save("masks/c2.png")
    complains(folder(), "masks hold the values [0, 127, 255]", "masks/c2.png has 127", "set --data.mask_values")
    found = "masks/c2.png: unexpected values [127] in 32 pixels"
    complains(folder("--data.mask_values", "[0,255]"), found, "repair the mask or set --data.mask_values")


@pytest.mark.parametrize("folds", ["5", "3"])
def test_too_few_patients_for_any_number_of_folds(folds, complains):
    pictures(2)
    hint = "only 2 patient(s) with masks to split, and at least 3 are needed"
    complains(folder("--data.num_folds", folds), hint, "add masks, or cases of more patients")


@pytest.fixture
def check(capsys):
    """Check the present folder; returns the problems and the whole report."""

    def run(*options):
        assert main(["data", "check", ".", *options]) == 2
        report = capsys.readouterr().out
        problems = [line for line in report.splitlines() if line.startswith("problem: ")]
        assert report.endswith(f"{len(problems)} problem(s)\n")
        return problems, report

    return run


@pytest.mark.parametrize("count", [2, 4])
def test_check_reports_all_it_can_of_too_few_patients(count, check):
    pictures(count)
    problems, report = check()
    assert len(problems) == 1
    assert f"only {count} patient" in problems[0]
    for fact in (
        f"{count} x 32 x 32, 1 channel(s), uint8, spacing 1 x 1",
        "background: 78.03 %",
        "foreground: 21.97 %",
    ):
        assert fact in report


def test_check_names_each_problem_once(check):
    pictures()
    mask = np.asarray(Image.open("masks/c2.png")).copy()
    mask[0] = 77
    Image.fromarray(mask).save("masks/c2.png")
    problems, report = check()
    assert len(problems) == 1
    assert "masks/c2.png has 77" in problems[0]
    assert "8 x 32 x 32" in report
    assert "% of the voxels" not in report, "the classes are not known"
    for name in ("c3", "c5"):
        Path(f"masks/{name}.png").write_bytes(b"no picture")
    problems, report = check()
    assert sorted(problem.split(":")[1] for problem in problems) == [" masks/c3.png", " masks/c5.png"]
    assert "8 x 32 x 32" in report


def test_check_of_a_folder_without_masks(check):
    pictures()
    shutil.rmtree("masks")
    problems, report = check()
    assert len(problems) == 1
    assert "only 0 patient(s) with masks" in problems[0]
    assert "8 x 32 x 32" in report


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("labeled_fraction", "0", "above 0 and at most 1"),
        ("labeled_fraction", "-0.1", "above 0 and at most 1"),
        ("labeled_fraction", "1.5", "above 0 and at most 1"),
        ("labeled_count", "0", "use 1 to"),
        ("fold", "5", "use 0 to 4"),
        ("fold", "-1", "use 0 to 4"),
        ("num_folds", "13", "only 12 patients with masks to split; use --data.num_folds 12 or add cases"),
        ("image_size", "[32,32,32]", "give 2 positive numbers"),
        ("batch_size", "0", "use 1 or more"),
        ("unlabeled_batch_size", "-3", "use 1 or more"),
        ("num_workers", "-1", "use 0 or more"),
        ("foreground_share", "7", "use 0 to 1"),
        ("augmentation.rotate", "-1", "use 0 to 180"),
        ("augmentation.zoom", "-3", "use 0 to 10"),
        ("augmentation.intensity", ".nan", "use 0 to 10"),
        ("batch_size", "null", "a value is needed"),
    ],
)
def test_option_out_of_range(option, value, hint, complains):
    shown = value.replace(",", ", ").removeprefix(".")
    complains(fit(*SYNTHETIC, f"--data.{option}", value), f"--data.{option} {shown}", hint)
    assert not RUN.exists()


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("trainer.max_time", "00:00:00:02", "set the budget with --trainer.max_steps"),
        ("trainer.limit_val_batches", "0", "say how often by --trainer.val_check_interval, in steps"),
        ("trainer.check_val_every_n_epoch", "2", "say how often by --trainer.val_check_interval, in steps"),
        ("trainer.val_check_interval", "00:00:00:01", "use 1 step or more, or a share of the budget"),
        ("trainer.accumulate_grad_batches", "0", "use 1 to"),
        ("trainer.log_every_n_steps", "0", "use 1 to"),
        ("trainer.precision", "16-mixed", "needs a GPU; use bf16-mixed"),
        ("trainer.precision", "transformer-engine", "Requirement 'transformer_engine"),
        ("seed_everything", "-1", "give a number from 0 to 4294967295"),
        ("seed_everything", "false", "give a number from 0 to 4294967295"),
        ("method_name", "../../evil", "give it none of / and .."),
        ("experiment", "..", "give it none of / and .."),
        ("model.loss", "null", "a value is needed"),
        ("model.optimizer", "null", "a value is needed"),
        ("model.network", "null", "a value is needed"),
    ],
)
def test_options_that_no_run_can_have(option, value, hint, complains):
    name = "--trainer:" if value == "transformer-engine" else f"--{option}"
    complains(fit(*SYNTHETIC, f"--{option}", value), name, hint)
    assert not list(Path.cwd().rglob("last.ckpt"))
    assert not list(Path.cwd().rglob("evil"))


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("UAMT", "weight.peak", "-1"),
        ("UAMT", "weight.peak", ".nan"),
        ("UAMT", "weight.peak", ".inf"),
        ("UniMatch", "view_weights", "[-1,0.5]"),
        ("ADVENT", "direct", "-1"),
        ("DTC", "distance_weight", "-1"),
        ("DTC", "steepness", "0"),
        ("MCNet", "decoders", "[]"),
    ],
)
def test_numbers_that_would_train_the_wrong_way(method, option, value, complains):
    ramp = ("--model.weight", "SigmoidRamp") if option == "weight.peak" else ()
    options = ("--data.labeled_count", "4", "--model", method, *ramp, f"--model.{option}", value)
    shown = value.replace("[-1,0.5]", "-1").removeprefix(".")
    complains(fit(*SYNTHETIC, *options), f"--model.{option} {shown}")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            ("--data.image_size", "[2,2]", "--data.batch_size", "1"),
            ("the coarsest features are one pixel", "image_size"),
        ),
        (
            ("--model.network.widths", "[8]", "--model.network.dropout", "[0]"),
            ("--model.network.widths [8]", "2 to 16"),
        ),
        (("--model.network.widths", "[4,0]"), ("--model.network.widths 0: use 1 to 65536",)),
    ],
)
def test_networks_that_cannot_be(options, parts, complains):
    complains(fit(*SYNTHETIC, *options), *parts)


def test_untrained_parts_of_a_network_in_two_processes():
    network = ("--model.network", "Denoiser", *NETWORK)
    ddp = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.labeled_count", "4")
    args = [sys.executable, "-m", "semiseg", *fit(*SYNTHETIC, "--model", "PiModel", *network, *ddp)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "give a Denoiser --model.network.image_pathway false" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_unlabeled_case_left(complains):
    hint = "lower --data.labeled_fraction or add images without masks"
    complains(fit(*SYNTHETIC, "--model", "NeedsUnlabeled"), "NeedsUnlabeled needs unlabeled cases", hint)


def test_patch_larger_than_the_volume(complains):
    volumes()
    options = ("--data", "Folder", "--data.root", ".", "--data.patch_size", "[32,16,16]")
    complains(fit(*options), "volume 16 x 16 x 16 is smaller than --data.patch_size 32 x 16 x 16", "a smaller patch")


def test_size_not_a_multiple_of_the_stride_can_be_mended(complains):
    complains(fit(*SYNTHETIC, "--data.image_size", "[33,32]"), "(33, 32)", "multiple of 2", "--data.image_size")
    assert main(fit(*SYNTHETIC)) == 0, "the failed start must not stand in the way"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,image,mask\na,images/c0.png,\n", "lacks the column(s) patient"),
        ("", "lacks the column(s) case, patient, image, mask"),
        ("case,patient,image,mask\na,,images/none.png,\n", "line 2: images/none.png"),
        ("case,patient,image,mask\na\n", "line 2: case and image must not be empty"),
        ("case,patient,image,mask\na,,images/c0.png,\na,,images/c1.png,\n", "case a is listed more than once"),
    ],
)
def test_malformed_manifest(text, reason, complains):
    pictures(2)
    Path("table.csv").write_text(text)
    complains(folder("--data.manifest", "table.csv"), "table.csv", reason)


def test_missing_manifest(complains):
    pictures(2)
    complains(folder("--data.manifest", "none.csv"), "--data.manifest none.csv: no such file")


# Training


def test_nan_names_the_step_and_keeps_the_last_good_checkpoint(complains):
    steps = ("--trainer.max_steps", "6", "--trainer.val_check_interval", "2", "--model", "NaNFromFourth")
    last = Path("runs/default/synthetic2d/nanfromfourth/labeled-1/fold-0-seed-0/checkpoints/last.ckpt")
    complains(fit(*SYNTHETIC, *steps), "not a number at step 4", f"last good checkpoint is {last}", "optimizer.lr")
    assert torch.load(last, weights_only=True)["global_step"] == 2
    advice = ("--model.optimizer.lr", "1e-5", "--trainer.gradient_clip_val", "1")
    complains(fit(*SYNTHETIC, *steps, *advice), "--experiment NAME for a new one")
    complains(fit(*SYNTHETIC, *steps), "as a new run (--experiment NAME)")


def test_learning_rate_far_too_high(complains):
    options = ("--model.optimizer.lr", "1e30", "--trainer.max_steps", "9", "--trainer.val_check_interval", "9")
    complains(
        fit(*SYNTHETIC, *options),
        "loss is not a number at step 2; there is no checkpoint yet",
        "gradient_clip_val 1)\n",
    )
    complains(fit(*SYNTHETIC, "--model.optimizer.lr", "-1"), "--model.optimizer: Invalid learning rate: -1")


def test_a_network_spoilt_by_the_last_step_is_not_kept(complains):
    complains(
        fit(*SYNTHETIC, "--model.optimizer.lr", "1e30", "--trainer.max_steps", "1"),
        "the network's predictions are not numbers",
        "--model.optimizer.lr",
    )
    assert not list((RUN / "checkpoints").iterdir())


@pytest.mark.parametrize("method", ["CpuTooSmall", "GpuTooSmall"])
def test_out_of_memory(method, complains):
    complains(fit(*SYNTHETIC, "--model", method), "out of memory", "lower --data.batch_size", "--data.patch_size")


@pytest.mark.parametrize("place", ["torch.save", "os.fsync"])
@pytest.mark.parametrize(
    ("before", "then"),  # files written before: best and last of each validation
    [(0, "starts afresh"), (1, "starts afresh"), (4, f"goes on from {RUN}/checkpoints/last.ckpt")],
)
def test_disk_full_while_saving(place, before, then, complains, monkeypatch):
    owner, name = {"torch.save": (torch, "save"), "os.fsync": (os, "fsync")}[place]
    whole, calls = getattr(owner, name), []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) <= before:
            return whole(*args, **kwargs)
        if place == "os.fsync":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        args[1].write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22\nmore")

    reason = {"torch.save": "the disk is probably full", "os.fsync": "No space left on device"}[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        parts = (f"{RUN}/checkpoints/", f".ckpt: cannot be written ({reason}); free space", f"again: it {then}")
        complains(fit(*SYNTHETIC, "--trainer.max_steps", "4"), *parts)
    written = {path.name for path in (RUN / "checkpoints").iterdir()}
    assert written == set(["best.ckpt", "last.ckpt"][:before])
    for name in written:
        assert torch.load(RUN / f"checkpoints/{name}", weights_only=True)["global_step"] <= 3
    assert json.loads((RUN / "status.json").read_text())["state"] == "failed"


# Checkpoints and run folders


@pytest.mark.parametrize("damage", [lambda b: b[:2000], lambda b: b"hello", lambda b: b""])
def test_corrupt_checkpoint(damage, complains, run):
    last, weights = run / "checkpoints/last.ckpt", Path("weights.ckpt")
    broken = damage(last.read_bytes())
    last.write_bytes(broken)
    weights.write_bytes(broken)
    (run / "status.json").unlink()  # else the run is done
    complains(fit(*SYNTHETIC), "last.ckpt: not a readable checkpoint", "delete it")
    assert last.read_bytes() == broken, "the file is left to its owner"
    complains(
        ["test", "--run", str(run), "--checkpoint", "last"], f"{last}: not a readable checkpoint", "copy it again"
    )
    complains(["predict", str(last), ".", "--output", "masks"], "no images in this folder")
    Image.new("L", (32, 32)).save("a.png")
    complains(["predict", str(last), "a.png", "--output", "masks"], f"{last}: not a readable checkpoint")
    assert not Path("masks").exists()
    options = ("--experiment", "second", "--model.network.weights", "weights.ckpt")
    complains(fit(*SYNTHETIC, *options), "weights weights.ckpt: cannot be read", "copy or save it again")


def test_checkpoint_of_another_network(complains, run):
    weights = run / "checkpoints/best.ckpt"
    options = ("--experiment", "second", "--model.network.widths", "[4,16]")
    complains(fit(*SYNTHETIC, *options, "--model.network.weights", str(weights)), str(weights), "another architecture")
    torch.save({"a": 1}, "other.ckpt")
    Image.new("L", (32, 32)).save("a.png")
    complains(["predict", "other.ckpt", "a.png", "--output", "masks"], "other.ckpt: not a checkpoint of a semiseg run")


@pytest.mark.parametrize(
    "options",
    [["--data.size", "[16,16,16]"], ["--model.network.widths", "[4,8,8]", "--model.network.dropout", "[0,0,0]"]],
)
def test_run_folder_with_the_checkpoint_of_another_network(options, complains, run):
    def content():
        files = (path for path in run.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name not in (".lock", ".status.lock", "config.yaml")}

    assert main(fit(*SYNTHETIC, "--experiment", "other", *options)) == 0
    (other,) = Path("runs/other").rglob("last.ckpt")
    for name in ("best", "last"):
        shutil.copy(other, run / f"checkpoints/{name}.ckpt")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "failed"}))  # else the run is done
    with (run / "metrics.csv").open("a") as file:
        file.write("9\n")  # a row that going on would drop
    before = content()
    complains(
        fit(*SYNTHETIC), f"{run}/checkpoints/last.ckpt: belongs to another network", "put the run's own last.ckpt"
    )
    for which in ("best", "last"):
        command = ["test", "--run", str(run), "--checkpoint", which]
        complains(command, f"{run}/checkpoints/{which}.ckpt: belongs to another network", "--experiment NAME")
    assert content() == before


def test_test_before_any_checkpoint(complains):
    options = ("--model.optimizer.lr", "1e30", "--trainer.val_check_interval", "2")
    complains(fit(*SYNTHETIC, *options, "--trainer.max_steps", "3"), "not a number")
    (RUN / "checkpoints/best.ckpt").unlink(missing_ok=True)
    complains(["test", "--run", str(RUN)], "best.ckpt: no such checkpoint", "semiseg fit")
    (RUN / "config.yaml").unlink()
    complains(["test", "--run", str(RUN)], f"{RUN}/config.yaml: is missing", "restore it")


def test_run_folder_in_use(complains):
    RUN.mkdir(parents=True)
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, RUN / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        complains(fit(*SYNTHETIC), f"run folder {RUN}", "another process", "wait for it or stop it")
        other.stdin.close()
    assert not (RUN / "config.yaml").exists()


@pytest.mark.parametrize(
    ("option", "before", "now"), [("max_steps", "2", "4"), ("gradient_clip_algorithm", "None", "value")]
)
def test_run_folder_with_another_configuration(option, before, now, complains, run):
    config = (run / "config.yaml").read_text()
    words = f"run folder {RUN} holds a run with trainer.{option} {before}, not {now}"
    complains(fit(*SYNTHETIC, f"--trainer.{option}", now), words, "--experiment")
    assert (RUN / "config.yaml").read_text() == config


def test_data_changed_since_the_run_began(complains):
    pictures()
    assert main(folder("--runs_dir", "runs")) == 0
    run = next(Path("runs").rglob("config.yaml")).parent
    (run / "status.json").unlink()
    for kind in ("images", "masks"):
        Path(f"{kind}/zz.png").write_bytes(Path(f"{kind}/c0.png").read_bytes())
    complains(folder(), "split.json: the split was", "restore them, or use --experiment NAME")


def test_damaged_status(complains, run):
    (run / "status.json").write_text("{")
    complains(fit(*SYNTHETIC), "status.json: is not valid JSON", "delete it")


def test_places_that_cannot_be_written(complains):
    Path("file").write_text("")
    complains(fit(*SYNTHETIC, "--runs_dir", "file/runs"), "run folder file/runs", "--runs_dir DIR")
    complains(fit(*SYNTHETIC, "--data.cache_dir", "file/cache"), "cache folder file/cache", "--data.cache_dir DIR")


def test_weights_that_are_no_numbers(complains, run):
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    state["network.encoder.levels.0.1.weight"][0] = float("nan")
    torch.save({key.removeprefix("network."): value for key, value in state.items()}, "spoilt.pt")
    options = ("--model.network.weights", "spoilt.pt", "--experiment", "next")
    complains(fit(*SYNTHETIC, *options), "spoilt.pt: encoder.levels.0.1.weight holds values that are not numbers")


# Predict


def test_predict(complains, run):
    checkpoint = str(run / "checkpoints/best.ckpt")
    Path("file").write_text("")
    Path("empty").mkdir()
    Image.new("L", (32, 32)).save("a.png")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), "v.nii.gz")
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:50])
    to = ["--output", "masks"]
    complains(["predict", checkpoint, "v.nii.gz", *to], "v.nii.gz: is a 3D image; 2D images are expected here")
    complains(["predict", checkpoint, "a.png", "cut.png", *to], "1 of 2 images failed", "cut.png: cannot be read")
    assert [path.name for path in Path("masks").iterdir()] == ["a.png"]
    complains(["predict", checkpoint, "none.png", *to], "none.png: no such file or folder")
    complains(["predict", checkpoint, "empty", *to], "empty: no images in this folder")
    complains(["predict", checkpoint, "file", *to], "file: unknown image format; use PNG")
    complains(["predict", checkpoint, "a.png", "--output", "file/masks"], "--output file/masks", "can be written")
    complains(["predict", checkpoint, "a.png", "--output", "."], "--output .: is the folder of the input a.png")
    complains(["predict", checkpoint, "a.png", *to, "--device", "gpuu"], "--device gpuu", "use cpu or cuda")
    complains(["predict", "none.ckpt", "a.png", *to], "none.ckpt: no such checkpoint")
