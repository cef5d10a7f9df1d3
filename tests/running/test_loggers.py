"""Where numbers go: metrics.csv and W&B."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from semiseg.cli import main
from semiseg.errors import UserError
from semiseg.methods import Supervised
from semiseg.running.loggers import MetricsCSV, wandb_mode


def records(run: Path) -> list[list[Record]]:
    """What each offline run in the folder holds, once W&B's own process has written how it ended."""
    late = time.monotonic() + 30
    while True:
        found = []
        for file in sorted((run / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda f: f.stat().st_mtime):
            found.append([Record.FromString(data) for data in leveldb_records(file.read_bytes())])
        if time.monotonic() > late or (found and all(any(r.HasField("exit") for r in session) for session in found)):
            return found
        time.sleep(0.1)


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB; header of 7 bytes; a record may be in several pieces."""
    at, whole = 7, b""  # W&B's own header
    while at + 7 <= len(content):
        if (rest := 32768 - at % 32768) < 7:
            at += rest
        length, piece = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if piece in (1, 4):  # whole, last
            yield whole
            whole = b""


def test_offline_wandb_goes_on_with_one_id(tiny, run, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    original = Supervised.training_step
    monkeypatch.setattr(Supervised, "training_step", lambda s, b, i: original(s, b, i) if i < 6 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(tiny)
    monkeypatch.setattr(Supervised, "training_step", original)
    assert main(tiny) == 0
    assert wandb.run is None  # the next run in this process has one of its own
    sessions = records(run)
    assert len(sessions) == 2
    status = json.loads((run / "status.json").read_text())
    for session in sessions:
        (start,) = (record.run for record in session if record.HasField("run"))
        assert start.run_id == status["wandb_id"]
        assert (start.run_group, start.job_type) == ("synthetic2d/labeled-1", "supervised")
        assert start.display_name == "supervised-fold-0-seed-0"
        updates = [record.config for record in session if record.HasField("config")]
        config = {item.key: json.loads(item.value_json) for c in (start.config, *updates) for item in c.update}
        assert config["split_hash"] == json.loads((run / "split.json").read_text())["hash"]
        assert config["versions"]["torch"]
        assert config["model"]["class_path"].endswith("Supervised")
        text = "".join(str(record.history) for record in session if record.HasField("history"))
        assert "train/loss" in text
        assert "val/dice" in text
        assert "figures" not in text  # pictures show patients
        assert "case_" not in text


def test_pictures_are_logged_on_request(tiny, run, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    assert main([*tiny, "--wandb", "offline", "--wandb_images", "true"]) == 0
    (session,) = records(run)
    assert "figures/validation" in "".join(str(r.history) for r in session if r.HasField("history"))


def test_no_logger_means_no_wandb(tiny, run, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*tiny, "--trainer.logger", "false"]) == 0
    assert not (run / "wandb").exists()
    assert "nothing leaves this machine" in capsys.readouterr().out


def test_only_what_is_asked_for_goes_online(monkeypatch):
    calls = []

    def connect(*args: object, **kwargs: object) -> socket.socket:
        calls.append(args)
        return socket.socket()

    monkeypatch.setattr("socket.create_connection", connect)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)  # a key is no wish
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_mode(None) == "offline"
    assert not calls
    assert wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode(None) == "online"
    assert wandb_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(None) == "disabled"
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(UserError, match="WANDB_MODE onlin"):
        wandb_mode(None)


def test_online_without_key_or_server_is_kept_offline(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    assert wandb_mode("online") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError

    monkeypatch.setattr("socket.create_connection", refuse)
    assert wandb_mode("online") == "offline"


def test_disabled_leaves_no_folder_and_metrics_are_written(tiny, run):
    assert main(tiny) == 0
    assert not (run / "wandb").exists()
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/dice"]] == ["3", "7", "11"]
    assert all(row["train/loss"] and row["train/loss_supervised"] and row["lr-AdamW"] for row in rows)


def test_csv_has_one_row_per_step_and_forgets_repeated_steps(tmp_path):
    table = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(4):
        table.log_metrics({"a": step}, step)
        table.log_metrics({"b": step}, step)
    table.save()
    again = MetricsCSV(tmp_path / "metrics.csv")
    again.go_on(2, table.digest(2))
    again.log_metrics({"a": 5.0, "c": 1.0}, 2)
    again.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a,b,c", "0,0,0,", "1,1,1,", "2,5.0,,1.0"]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text(""), "lacks the column(s) step"),
        (lambda path: path.write_text("step,a\n0,0\n"), "is not as the run left it at step 2"),
        (lambda path: path.write_text("step,a\n0,0\n1,7\n"), "is not as the run left it at step 2"),
        (lambda path: path.write_text("step,a\nx,0\n"), "a step that is not a number"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is not UTF-8"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file"),
    ],
)
def test_damaged_metrics_are_named(tmp_path, damage, part):
    table = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(4):
        table.log_metrics({"a": step}, step)
    table.save()
    damage(tmp_path / "metrics.csv")
    with pytest.raises(UserError, match=re.escape(part)):
        MetricsCSV(tmp_path / "metrics.csv").go_on(2, table.digest(2))
