# SPDX-License-Identifier: Apache-2.0
"""The performance of the README: `python -m tests.packaging.readme_performance` writes it anew.

From `plugins/TARGET/results/*.json`, results of `archkey bench`: of each card and operator the
newest that measured it. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.packaging.readme_coverage import README, split

from archkey.bench import results, surroundings
from archkey.bench.markdown import performance

BEGIN, END = "<!-- performance: make performance -->\n", "<!-- end of performance -->"
NONE = "There are no results yet: no card was measured with `archkey bench --quick`."


def block(root: Path) -> str:
    """What the result documents under `root` say, card by card."""
    cards: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(root.glob("plugins/*/results/*.json")):
        found = results.read(path)
        cards.setdefault((path.parts[-3], surroundings.card(found)), []).append(found)
    tables = [performance(found) for card in cards.values() for found in _newest(card)]
    return "\n\n".join(tables) + "\n" if tables else f"{NONE}\n"


def _newest(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Newest first, each without the operators that a newer one has."""
    seen: set[str] = set()
    for found in sorted(documents, key=lambda document: document["started"], reverse=True):
        rows = [row for row in found["workloads"] if row["operator"] not in seen]
        seen |= {row["operator"] for row in rows}
        if rows:
            yield {**found, "workloads": rows}


if __name__ == "__main__":
    first, _, last = split(README.read_text(), BEGIN, END)
    README.write_text(first + block(README.parent) + last)
