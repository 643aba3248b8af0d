# SPDX-License-Identifier: Apache-2.0
"""What the README tells a user who owns one architecture, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow  # it installs torch
@pytest.mark.parametrize("own", ["cuda_sm90", "rocm_gfx950"])
def test_the_core_and_one_plugin(own: str, root: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)

    def run(program: str, *arguments: str) -> str:
        command = [str(tmp_path / "bin" / program), *arguments]
        environ = {**os.environ, "ARCHKEY_TARGET": own}
        done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    readme = (root / "README.md").read_text().splitlines()
    (line,) = [text for text in readme if text.startswith("pip install") and own in text]
    run("pip", *line.partition("#")[0].split()[1:], "--quiet", "--constraint", "constraints.txt")
    run("pip", "check")

    plugins: list[dict[str, Any]] = json.loads(run("archkey", "plugins", "--json"))
    assert {p["name"]: p["state"] for p in plugins} == {"cpu": "loaded", own: "loaded"}
    assert f"{own}:triton" in run("archkey", "explain", "rmsnorm", "--json")
