# SPDX-License-Identifier: Apache-2.0
"""The page on checkpoints shows what the commands print, and lists the models there are."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.checkpoint import _model as m

from archkey.checkpoint.models import MODELS, WRAPPERS
from archkey.cli import cli
from archkey.settings import settings

PAGE = Path(__file__).resolve().parents[2] / "core/docs/checkpoints.md"
EXAMPLES = re.findall(r"```\n\$ archkey (.+)\n((?:.*\n)*?)```", PAGE.read_text())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: Callable[..., None]) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    m.write(Path("small"))
    forgetful = copy.deepcopy(m.CONFIG)
    forgetful["quantization_config"]["exclude"].remove("mtp.*")
    Path("forgetful").mkdir()
    Path("forgetful/config.json").write_text(json.dumps(forgetful))


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(here: None, command: str, shown: str) -> None:
    settings.cache_clear()
    result = CliRunner().invoke(cli, shlex.split(command))
    printed = "\n".join(line.rstrip() for line in result.stdout.splitlines())
    if "[...]" in shown:
        start, _, end = shown.strip().partition("[...]\n")
        assert printed.startswith(start) and printed.endswith(end)
    else:
        assert printed == shown.rstrip()


def test_all_models_are_listed() -> None:
    paragraph = PAGE.read_text().partition("## Models")[2].partition("For others")[0]
    listed = set(re.findall(r"`(\w+)`", paragraph))
    inner = {wrapper.text for wrapper in WRAPPERS.values() if wrapper.text.endswith("_text")}
    assert listed == {*MODELS, *WRAPPERS} - inner
