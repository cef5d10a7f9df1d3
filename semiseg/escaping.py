"""Names and other text from files, written so that no terminal, spreadsheet, Markdown renderer or LaTeX obeys them."""

from __future__ import annotations

import re

# What a spreadsheet takes for a formula; apostrophes before it, so that an escaped text can be told from an escape.
_FORMULA = re.compile(r"'*[\s=+\-@＝＋－＠]")
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|#~&!$:@]|(?<=www)\.")  # the last three: formulas and links that make themselves
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {c: f"{{{c}}}" for c in "[]*"}  # else arguments of the line break before them
)


def printable(text: object, longest: int = 2000) -> str:
    """One line without control characters, which a terminal obeys, and of a bounded length.

    Args:
        text: the text.
        longest: number of characters that are kept.
    """
    whole = str(text)
    cut = whole if len(whole) <= longest else f"{whole[: longest - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def to_csv(text: str) -> str:
    """A cell of a CSV file: what a spreadsheet would take for a formula gets an apostrophe before it, as OWASP advises.

    `from_csv` restores every text.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv(cell: str) -> str:
    """The text that `to_csv` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def to_markdown(text: object) -> str:
    """Text within a line or a table's cell of Markdown."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))


def to_latex(text: object) -> str:
    """Text within a line or a table's cell of LaTeX."""
    return printable(text).translate(_LATEX)
