# SPDX-License-Identifier: Apache-2.0
"""An environment of its own, beside what is installed here: torch is not installed again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

__all__ = ["Venv", "build_wheel"]


class Venv:
    """A virtual environment in which distributions come and go, through pip."""

    def __init__(self, folder: Path) -> None:
        _done([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        self.folder = folder
        self.python = folder / "bin/python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        here = sysconfig.get_paths()["purelib"]
        # What is added by a plain line would lack its own .pth files: editable installations.
        (self.site / "beside.pth").write_text(f"import site; site.addsitedir({here!r})\n")

    def pip(self, *arguments: str) -> None:
        """Run this environment's pip; nothing is downloaded."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        _done([*command, "--quiet", "--disable-pip-version-check"])

    def install(self, *wheels: Path) -> None:
        """Install wheels, and nothing that they depend on."""
        self.pip("install", "--no-deps", "--no-index", "--no-compile", *map(str, wheels))

    def add(
        self, name: str, number: str, entry_points: str = "", folder: Path | None = None
    ) -> None:
        """A distribution of which there is nothing but what pip keeps about it.

        folder  where it lies, if not in the environment itself
        """
        info = (folder or self.site) / f"{name.replace('-', '_')}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        (info / "entry_points.txt").write_text(entry_points)

    def run(self, *arguments: str, code: int = 0, **environ: str) -> str:
        """stdout of this environment's Python, which must end with exit `code`."""
        # Neither the evidence of the developer's own exams nor an interpreter unless asked for.
        own = {"XDG_DATA_HOME": str(self.folder / "data"), "TRITON_INTERPRET": "0", **environ}
        return _done([str(self.python), *arguments], code=code, **own)

    def archkey(self, line: str, code: int = 0, **environ: str) -> Any:
        """The document of a command."""
        out = self.run("-m", "archkey", *line.split(), "--json", code=code, **environ)
        return json.loads(out)


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of the distribution in `source`, built without a network."""
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / _done([sys.executable, "-c", code], cwd=source).splitlines()[-1]


def _done(command: list[str], cwd: Path | None = None, code: int = 0, **environ: str) -> str:
    """stdout of a process that must end with exit `code`."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
