# SPDX-License-Identifier: Apache-2.0
"""The page as one string: templates and style sheet of this folder, filled from the model.

What the templates put in is escaped, wherever it comes from; only our own style sheet and
drawings are not. The page runs no script and loads nothing, and says so to the browser.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archkey.bench import numbers
from archkey.bench.report import bars, marks
from archkey.bench.report.model import VERDICTS, View, view
from archkey.conformance.levels import LADDER
from archkey.errors import ArchkeyError

__all__ = ["render"]

FOLDER = Path(__file__).parent
GLYPHS = dict(zip(VERDICTS, ("▲", "≈", "▼", "○", "–"), strict=True))
STATES = {"installed": "good", "timed": "good", "broken": "bad", "wrong": "bad", "failed": "bad"}
"""How a state or status is set off; the others are plain."""


def render(document: Mapping[str, Any]) -> str:
    """The page of a document that `results.read` accepted.

    RecordError if the document has holes, ArchkeyError if the extra `report` is not installed.
    """
    found = view(document)
    try:
        import jinja2
        import markupsafe

        from archkey.bench.report import plots
    except ImportError as error:
        raise ArchkeyError(
            f"the page needs matplotlib and jinja2 ({error}); pip install 'archkey[report]', "
            "or read the results in the terminal: `archkey report --terminal`"
        ) from error

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(numbers, name) for name in numbers.__all__})
    drawings = {
        operator.name: [
            (plot.title, markupsafe.Markup(plot.svg))
            for plot in plots.plots(operator, document["ceilings"])
        ]
        for operator in found.operators
    }
    return environment.get_template("page.html").render(
        view=found,
        document=document,
        drawings=drawings,
        families=_families(found),
        bars=bars,
        marks=marks,
        levels=[level.value for level in LADDER],
        glyphs=GLYPHS,
        states=STATES,
        css=markupsafe.Markup((FOLDER / "page.css").read_text("utf-8")),
    )


def _families(found: View) -> dict[str, list[str]]:
    """Names of the operators by family."""
    families: dict[str, list[str]] = {}
    for operator in found.operators:
        families.setdefault(operator.family, []).append(operator.name)
    return families
