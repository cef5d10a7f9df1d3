"""Lists and tables of cases: a mistake in one is named, and never becomes another split."""

import os
import re
import shutil
import socket

import numpy as np
import pytest
from PIL import Image as Pillow

from semiseg.data import layouts
from semiseg.data.folder import Folder
from semiseg.data.glas import GlaS
from semiseg.data.left_atrium import LeftAtrium
from semiseg.data.oct_cme import OCTCME
from semiseg.data.ph2 import PH2
from semiseg.errors import UserError

A, B, C, D = "CASEALPHA01", "CASEBRAVO02", "CASECHARLIE03", "CASEDELTA04"
SET = "2018LA_Seg_Training Set"


@pytest.fixture
def atria(tmp_path):
    """Four cases of the left atrium, without lists; returns what opens them with the given ones."""
    layouts.write_la(tmp_path / "la", 3, 1, (8, 8, 8))
    root = tmp_path / "la"
    for old, new in zip(sorted((root / SET).iterdir()), (A, B, C, D), strict=True):
        old.rename(root / SET / new)

    def parts(train=None, test=None):
        for name, content in (("train", train), ("test", test)):
            path = root / f"{name}.list"
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {case.case: case.official for case in LeftAtrium(str(root)).cases}

    return parts


OFFICIAL = {A: "train", B: "train", C: "test", D: "test"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (f"{A}\n{B}\n", f"{C}\n{D}"),
        (f"\ufeff{A}\r\n{B}\r\n", f"\ufeff{C}\r\n{D}\r\n"),
        (f"  {A}\t\n\n   \n{B} \n\n", f"{C}\r{D}\r"),
        (f"# training\n{A}  # first\n#{C}\n{B}", f"{C}\n{D}"),
        (f"./{A}\n{SET}/{B}/mri_norm2.h5", f"{SET}\\{C}\\mri_norm2.h5\n/old/disk/{D}/"),
    ],
    ids=["plain", "marks-of-windows", "spaces-and-old-mac", "comments", "paths"],
)
def test_lists_are_read_in_every_form_that_names_cases(train, test, atria):
    assert atria(train, test) == OFFICIAL


def test_without_a_list_cases_have_no_part(atria):
    assert set(atria().values()) == {None}
    assert atria(test=f"{C}\n{D}") == {A: None, B: None, C: "test", D: "test"}
    assert atria(train=f"{A}\n{B}") == {A: "train", B: "train", C: None, D: None}


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (f"{A}\n{B}", f"{C}\nCASEDELTAO4", rf"test.list, line 2: 'CASEDELTAO4' is no case .*mean {D}"),
        (f"{A}\n{B}", f"{C}\n{D.lower()}", r"test.list, line 2: 'casedelta04' is no case"),
        (f"{A},\n{B}", f"{C}\n{D}", r"train.list, line 1: 'CASEALPHA01,' is no case .*mean"),
        (f"{A} {B}", f"{C}\n{D}", r"train.list, line 1: 'CASEALPHA01 CASEBRAVO02' is no case"),
        (f'"{A}"\n{B}', f"{C}\n{D}", r"train.list, line 1: .* is no case"),
        (f"{A}\n{B}\n/", f"{C}\n{D}", r"train.list, line 3: '/' is no case"),
        (f"{A}\n{B}\n..", f"{C}\n{D}", r"train.list, line 3: '..' is no case"),
        (f"{A}/CASEBRAV02", f"{C}\n{D}", r"train.list, line 1: .* is no case"),
        (f"{A}/lgemri.nrrd\n{B}", f"{C}\n{D}", r"train.list, line 1: .* is no case"),
        (f"{A}\n{B}\nmri_norm2.h5", f"{C}\n{D}", r"train.list, line 3: .* is no case"),
        (f"{A}\n{B}\n{C}", f"{C}\n{D}", rf"test.list, line 1: {C} is there already \(train.list, line 3\)"),
        (f"{A}\n{B}\n./{A}", f"{C}\n{D}", rf"train.list, line 3: {A} is there already \(train.list, line 1\)"),
        (f"{A}\n{B}", f"{C}", rf"{D}.*is in none of .*train.list, .*test.list"),
        (f"{A}\n{B}", "", rf"{C} \(one of 2\) is in none of"),
        (None, f"{C}\nCASEDELTAO4", r"test.list, line 2: .* is no case"),
        (f"{A}\n{B}".encode("utf-16"), f"{C}\n{D}", r"train.list: is not UTF-8 text"),
        (f"{A}\n{B}".encode("utf-16-le"), f"{C}\n{D}", r"train.list: holds a NUL"),
        (f"{A}\n{B}\né".encode("cp1252"), f"{C}\n{D}", r"train.list: is not UTF-8 text"),
        (f"{A}\0\n{B}", f"{C}\n{D}", r"train.list: holds a NUL"),
        ("X" * 10**6, f"{C}\n{D}", r"train.list, line 1: 'X{100}' is no case"),
    ],
)
def test_mistakes_in_lists_are_named(train, test, words, atria):
    with pytest.raises(UserError, match=words) as error:
        atria(train, test)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_lists_that_are_pipes_are_refused(atria, tmp_path):
    os.mkfifo(tmp_path / "la/pipe")
    (tmp_path / "la/test.list").unlink()
    (tmp_path / "la/pipe").rename(tmp_path / "la/train.list")
    with pytest.raises(UserError, match=r"train.list: is not a regular file"):
        _ = LeftAtrium(str(tmp_path / "la")).cases


# Tables


@pytest.fixture
def glands(tmp_path):
    layouts.write_glas(tmp_path, 4, 1, 0, (16, 16))
    (table,) = tmp_path.rglob("Grade.csv")

    def patients(change):
        text = change(table.read_text())
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
        return {case.case: case.patient for case in GlaS(str(tmp_path)).cases}

    return patients


def test_a_table_of_patients_in_every_form(glands):
    whole = glands(lambda text: text)
    assert len(set(whole.values())) == 3
    assert glands(lambda text: "\ufeff" + text.replace("\n", "\r\n")) == whole
    assert glands(lambda text: text + "testB_7, 9, benign, healthy\r\n") == whole  # a row of an image that is not here


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", r"lacks the column\(s\) name, patient ID, grade \(GlaS\)"),
        (lambda text: text.splitlines()[0], r"says nothing of testA_1 \(5 such"),
        (
            lambda text: text.replace("train_", "Train_"),
            r"says nothing of train_1 \(4 such.* \(did you mean Train_1\?\)",
        ),
        (lambda text: text.replace("train_2,", "train_2.bmp,"), r"says nothing of train_2 .*remove the file to go"),
        (lambda text: text.replace("train_2,", "train_1,"), "train_1 has two rows"),
        (lambda text: re.sub(r"train_2, \d+", "train_2, ", text), "the row of train_2 has no patient ID"),
        (lambda text: text.replace("patient ID", "patient"), r"lacks the column\(s\) patient ID"),
        (lambda text: text.replace(",", ";"), r"lacks the column\(s\)"),
        (lambda text: text.replace("train_2,", "train_2, x,"), "has 5 fields for 4 columns"),
        (lambda text: re.sub("(train_2.*),.*", r"\1", text), "has 3 fields for 4 columns"),
        (lambda text: text + '"', "not valid CSV"),
        (lambda text: text + "x" * 200_000 + ",1,2,3", "not valid CSV"),
        (lambda text: text.encode("utf-16"), "is not UTF-8"),
        (lambda text: (text + "é, 1, x, y").encode("cp1252"), "is not UTF-8"),
        (lambda text: text.replace("benign", "be\0nign"), "NUL"),
    ],
)
def test_mistakes_in_a_table_of_patients_are_named(change, words, glands):
    """None of them makes every image a patient of its own."""
    with pytest.raises(UserError, match=rf"Grade\.csv.*{words}"):
        glands(change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", r"says nothing of IMD002 \(3 such"),
        (lambda text: text.replace("IMD003", "IMD03"), "says nothing of IMD003 .*mean IMD03"),
        (lambda text: text.replace("|| IMD003", "|| IMD002"), "IMD002 has two rows"),
        (lambda text: re.sub(r"(IMD003 \|\|[^|]*\|\|)\s*\d", r"\1 7", text), "IMD003 has no clinical diagnosis"),
        (lambda text: text.encode("utf-16"), "is not UTF-8"),
    ],
)
def test_mistakes_in_a_table_of_diagnoses_are_named(change, words, tmp_path):
    layouts.write_ph2(tmp_path, 3, (16, 16))
    (table,) = tmp_path.rglob("PH2_dataset.txt")
    text = change(table.read_text())
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"PH2_dataset.txt.*{words}"):
        _ = PH2(str(tmp_path)).cases
    table.unlink()
    assert len(PH2(str(tmp_path)).cases) == 3


# One file, one case


@pytest.fixture
def pairs(tmp_path):
    """Six images with masks; returns what opens them, by a manifest if rows are given."""
    layouts.write_folder(tmp_path / "set", 6, size=(16, 16))

    def open_(*rows):
        if rows:
            (tmp_path / "set/list.csv").write_text("\n".join(["case,patient,image,mask", *rows]))
        return Folder(str(tmp_path / "set"), manifest="list.csv" if rows else None).cases

    open_.root = tmp_path / "set"
    return open_


IMAGE, MASK = "images/case_00{}.png", "masks/case_00{}.png"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (f"b,,{IMAGE.format(0)},{MASK.format(1)}", r"case_000.png is in lines 2 and 3"),
        (f"b,,{IMAGE.format(1)},{MASK.format(0)}", r"masks/case_000.png is in lines 2 and 3"),
        (f"b,,{MASK.format(0)},{MASK.format(1)}", r"masks/case_000.png is in lines 2 and 3"),
        (
            f"b,,images/../{IMAGE.format(0)},{MASK.format(1)}",
            r"the same file as .*: is the image of case a and the image of",
        ),
        (
            f"b,,hard.png,{MASK.format(1)}",
            r"hard.png \(the same file as .*\): is the image of case a and the image of case b",
        ),
        (
            f"b,,{IMAGE.format(1)},soft.png",
            r"soft.png \(the same file as .*\): is the mask of case a and the mask of case b",
        ),
        (f"b,,{IMAGE.format(1)},{IMAGE.format(1)}", r"is the image of case b and the mask of case b"),
        (f"a,,{IMAGE.format(1)},{MASK.format(1)}", "case a is listed more than once"),
        (f"b,,{IMAGE.format(1)},{MASK.format(1)},", "line 3: has 5 fields for 4 columns"),
        (f"b,,{IMAGE.format(1)}", "line 3: has 3 fields for 4 columns"),
        (f"b\x07,,{IMAGE.format(1)},", "control characters"),
        ("b,,loop.png,", "loop.png does not exist"),
    ],
)
def test_files_that_two_cases_share_are_refused(row, words, pairs):
    os.link(pairs.root / IMAGE.format(0), pairs.root / "hard.png")
    (pairs.root / "soft.png").symlink_to(MASK.format(0))
    (pairs.root / "loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match=words):
        pairs(f"a,,{IMAGE.format(0)},{MASK.format(0)}", row)


def test_paths_of_a_manifest_may_leave_the_root(pairs, tmp_path):
    shutil.copy(pairs.root / IMAGE.format(0), tmp_path / "outside.png")
    cases = pairs(f"a,,../outside.png,{MASK.format(0)}", f"b,,{tmp_path / 'set' / IMAGE.format(1)},")
    assert [case.image.exists() for case in cases] == [True, True]


def test_links_between_files_of_a_folder_are_refused(pairs):
    (pairs.root / IMAGE.format(5)).unlink()
    (pairs.root / IMAGE.format(5)).symlink_to("case_004.png")
    with pytest.raises(UserError, match=r"is the image of case case_004 and the image of case case_005"):
        pairs()


def test_file_names_that_are_not_text_are_one_line(pairs):
    name = os.fsdecode(os.fsencode(pairs.root / "images") + b"/caf\xe9.png")
    shutil.copy(pairs.root / IMAGE.format(0), name)
    with pytest.raises(UserError, match=r"caf\\udce9.png': a name that is not UTF-8"):
        pairs()
    os.rename(name, pairs.root / "images/a\nb.png")
    with pytest.raises(UserError, match="control characters"):
        pairs()


def test_pipes_and_sockets_among_the_images_are_refused_by_name(pairs, monkeypatch):
    os.mkfifo(pairs.root / "images/x.png")
    data = Folder(str(pairs.root), image_size=(16, 16))
    with pytest.raises(UserError, match=r"images/x.png: is a pipe"):
        data.read_image(data.by_name["x"])
    (pairs.root / "images/x.png").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(pairs.root)  # names of sockets are short
        listener.bind("images/x.png")
        with pytest.raises(UserError, match=r"images/x.png: is a pipe, a socket"):
            data.read_image(data.by_name["x"])


def test_a_second_mask_of_a_scan_is_refused(tmp_path):
    layouts.write_oct_cme(tmp_path, 3, (16, 16))
    mask = next(tmp_path.rglob("mask_1.png"))
    Pillow.fromarray(np.zeros((16, 16), np.uint8)).save(mask.with_name("mask_1b.png"))
    with pytest.raises(UserError, match=r"mask_1b.png: a second mask of CME-1.jpeg"):
        _ = OCTCME(str(tmp_path)).cases
