"""The comparison as one HTML file that opens from disk, without network or server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from semiseg.files import atomic_path

FOLDER = Path(__file__).parent


def write_page(comparison: Mapping[str, Any], path: Path) -> None:
    """Write `comparison` as an interactive page; everything it needs is inside, so that it can be mailed or archived.

    Raises:
        ValueError: a number is NaN or infinite; browsers cannot read those, missing numbers are None.
        UserError: the folder cannot be written or the disk is full.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("page.html").render(
        title=comparison["title"],
        data=inert_json(comparison),
        style=_asset("page.css"),
        script=Markup("\n").join(_asset(name) for name in ("page.js", "page.table.js", "page.charts.js")),
        plotly=Markup(get_plotlyjs()),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def inert_json(value: Any) -> Markup:
    """JSON that cannot end or confuse the script element around it, whatever users call their folders."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _asset(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))
