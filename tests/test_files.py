"""Files that are written whole, locked, and read within bounds."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from semiseg.errors import UserError
from semiseg.files import OPTIONS, atomic_path, parse_yaml, read_bytes, read_json, read_table, read_text, take_lock
from semiseg.running.folder import RunFolder

NINE = "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[" * 30000, "nested more than 50 deep"),
        ("- " * 30000, "nested more than 50 deep"),
        ("a: &a [*a]", "refers to itself"),
        (f"a: &a [x,x,x,x,x,x,x,x,x]\n{NINE}", "holds more than 200000 values"),
        ("a: 1\nb: 2\na: 3", "the key a is there twice"),
        ("a: 0777", "another base"),
        ("a: 1:30", "another base"),
        ("a: [1, 2", "line 2: not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (f"a: {'9' * 5000}", "not valid YAML"),
    ],
)
def test_yaml_is_bounded(text, part):
    start = time.process_time()
    with pytest.raises(UserError, match=part):
        parse_yaml(text, "x.yaml")
    assert time.process_time() - start < 5


def test_yaml_within_its_bounds_is_read():
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}, e: 2}\nf: '0777'", "x") == {
        "a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": 2}, "f": "0777",
    }  # fmt: skip
    assert len(parse_yaml(str(list(range(300))), "x", OPTIONS)) == 300
    with pytest.raises(UserError, match="a list of 301 values"):
        parse_yaml(str(list(range(301))), "x", OPTIONS)


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json])
def test_what_never_ends_is_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=path.name):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_size_and_text_are_checked(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_text(path, 2**20)
    for content, part in ((b"\xff\xfea\0", "not UTF-8"), (b"a\0b", "NUL")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=part):
            read_text(path)
    path.write_bytes(b"\xef\xbb\xbfa")
    assert read_text(path) == "a"
    path.write_text("[" * 100000)
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path)


def test_table_rows_have_all_columns(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('\ufeffa, b\r\n1, x y \r\n\r\n2,"p,q"\r\n', encoding="utf-8")
    assert read_table(path, ["a"]) == [{"a": "1", "b": "x y"}, {"a": "2", "b": "p,q"}]
    for text, part in (("a,b\n1", "1 fields for 2 columns"), ("a,b\n1,2,3", "3 fields"), ("a,a\n1,2", "twice"),
                       ("b\n1", "lacks the column"), ("", "lacks the column"), ('a\n"x', "not valid CSV"),
                       (f"a\n{'x' * 200000}", "not valid CSV")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=part):
            read_table(path, ["a"])


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "link").symlink_to(outside)
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match="is not a regular file"), atomic_path(tmp_path / name):
            pass
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert outside.read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob(".semiseg-*"))


def test_lock_follows_no_link_and_empties_nothing(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("text")
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        take_lock(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        take_lock(tmp_path / "pipe")
    with take_lock(precious):
        pass
    assert precious.read_text() == "text"


def _update(path: str, name: str) -> None:
    for i in range(100):
        RunFolder(Path(path)).update_status(**{f"{name}{i}": i})


def test_status_of_two_processes_keeps_all(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_update, args=(str(tmp_path), name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    status = json.loads((tmp_path / "status.json").read_text())
    assert len(status) == 201


@pytest.mark.parametrize("place", ["status.json", "checkpoints", "figures/validation.png", ".lock", "wandb"])
def test_links_out_of_a_run_folder_are_refused(tmp_path, place):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = RunFolder(tmp_path / "run")
    (folder.path / place).parent.mkdir(parents=True)
    (folder.path / place).symlink_to(outside)
    with pytest.raises(UserError, match="leads out of the run folder"):
        folder.open()
    assert not list(outside.iterdir())


def test_links_inside_a_run_folder_are_kept(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "wandb" / "offline").mkdir(parents=True)
    (folder.path / "wandb" / "latest-run").symlink_to(folder.path / "wandb" / "offline")
    (folder.path / "wandb" / "debug.log").symlink_to(tmp_path / "elsewhere.log")  # W&B makes such
    folder.open()
    folder.close()
