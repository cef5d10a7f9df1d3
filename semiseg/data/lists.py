"""Lists and tables of cases: text files in which a typing mistake must not become another split."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from semiseg.errors import UserError
from semiseg.files import read_table, read_text

Part = TypeVar("Part", bound=str)


def read_parts(lists: Mapping[Part, Path], images: Mapping[str, Path]) -> dict[str, Part]:
    """Which part each case belongs to, by one list of names per part.

    A list has one case per line, by its name, its folder or its image (`./CASE`, `set/CASE/image.h5`, also with
    backslashes). Blank lines and what follows a `#` are comments. Without any list no case has a part. Where every part
    has its list, each case must be in one; where a list is missing, cases that the others do not name have no part.

    Args:
        lists: part to its list, which need not exist.
        images: case name to its image.

    Raises:
        UserError: a list is not text, names what is no case, a case twice, or a case of another list; or a case is in
            no list.
    """
    parts: dict[str, Part] = {}
    where: dict[str, str] = {}
    found = {part: path for part, path in lists.items() if path.exists()}
    for part, path in found.items():
        for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
            if not (entry := re.sub(r"(^|\s)#.*", "", line).strip()):
                continue
            case, place = _case_of(entry, images, f"{path}, line {number}"), f"{path.name}, line {number}"
            if case in where:
                raise UserError(f"{path}, line {number}: {case} is there already ({where[case]}); name it once")
            parts[case], where[case] = part, place
    missing = sorted(set(images) - set(parts))
    if missing and found and len(found) == len(lists):
        raise UserError(
            f"{images[missing[0]]}: {missing[0]} (one of {len(missing)}) is in none of "
            f"{', '.join(map(str, found.values()))}; add it to one, or move its folder away"
        )
    return parts


def _case_of(entry: str, images: Mapping[str, Path], where: str) -> str:
    """The case that a line names, by its last part, or by the folder of its image."""
    *_, folder, name = ["", "", *(part for part in entry.replace("\\", "/").split("/") if part)]
    if name not in images and folder in images and images[folder].name == name:
        name = folder
    if name not in images:
        raise UserError(f"{where}: {entry[:100]!r} is no case here{_nearest(name, images)}; correct or remove the line")
    return name


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def rows_by_case(path: Path, columns: tuple[str, ...], images: Collection[str]) -> dict[str, dict[str, str]]:
    """Rows of a CSV table by the case in its first column, one for every image; those of other cases are left out.

    Args:
        path: the table.
        columns: the columns that must be filled, the case first.
        images: names of the cases that need a row.

    Raises:
        UserError: as `read_table`; a row is not filled or is there twice; an image has none.
    """
    rows: dict[str, dict[str, str]] = {}
    for row in read_table(path, columns):
        case = row[columns[0]]
        if empty := [column for column in columns if not row[column]]:
            raise UserError(f"{path}: the row of {case or 'a case without name'} has no {empty[0]}; fill it in")
        if case in rows:
            raise UserError(f"{path}: {case} has two rows; remove one")
        rows[case] = row
    check_complete(path, rows, images)
    return rows


def check_complete(path: Path, known: Collection[str], images: Iterable[str]) -> None:
    """Raise a UserError unless a table knows every image."""
    if missing := sorted(set(images) - set(known)):
        raise UserError(
            f"{path}: says nothing of {missing[0]} ({len(missing)} such image(s)){_nearest(missing[0], known)}; "
            "correct or complete it, or remove the file to go without it"
        )
