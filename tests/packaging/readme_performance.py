# SPDX-License-Identifier: Apache-2.0
"""The performance of the README: `python -m tests.packaging.readme_performance` writes it anew.

From `plugins/TARGET/results/*.json`, whole results of `archkey bench --quick`: the newest of each
card. Nothing is measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.packaging.readme_coverage import README, split

from archkey.bench import results, surroundings
from archkey.bench.markdown import performance

BEGIN, END = "<!-- performance: make performance -->\n", "<!-- end of performance -->"
NONE = "There are no results yet: no card was measured with `archkey bench --quick`."


def block(root: Path) -> str:
    """What the result documents under `root` say, card by card."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(root.glob("plugins/*/results/*.json")):
        found = results.read(path)
        card = (path.parts[-3], surroundings.card(found))
        if card not in newest or found["started"] > newest[card]["started"]:
            newest[card] = found
    return "\n\n".join(map(performance, newest.values())) + "\n" if newest else f"{NONE}\n"


if __name__ == "__main__":
    first, _, last = split(README.read_text(), BEGIN, END)
    README.write_text(first + block(README.parent) + last)
