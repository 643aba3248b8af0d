# SPDX-License-Identifier: Apache-2.0
"""The coverage table of the README: `python -m tests.packaging.readme_coverage` writes it anew."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- coverage: make evidence -->\n", "<!-- end of coverage -->"
OWN = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950", "cpu")


def table() -> str:
    """What the shipped records say, and no others."""
    with tempfile.TemporaryDirectory() as nothing:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "archkey", "coverage", "--markdown"),
                *(part for target in OWN for part in ("--target", target)),
            ],
            env={**os.environ, "ARCHKEY_DATA_DIR": nothing},
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout


def split(text: str, begin: str = BEGIN, end: str = END) -> tuple[str, str, str]:
    """The README before, within and after a part that is generated; ValueError if it has none."""
    before, found, rest = text.partition(begin)
    within, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the README has no part {begin.strip()}")
    return before + begin, within, end + after


if __name__ == "__main__":
    first, _, last = split(README.read_text())
    README.write_text(first + table() + last)
