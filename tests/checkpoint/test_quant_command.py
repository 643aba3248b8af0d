# SPDX-License-Identifier: Apache-2.0
"""`archkey quant explain`: the document, the page, the exit codes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.checkpoint import _configs as c
from tests.checkpoint import _model as m

from archkey.cli import cli
from archkey.settings import settings


@pytest.fixture(autouse=True)
def plain(environ: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("quant") / "small"
    m.write(found)
    return found


def run(*arguments: object, code: int = 0) -> Result:
    settings.cache_clear()
    result = CliRunner().invoke(cli, ["quant", "explain", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def parsed(*arguments: object, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def config(tmp_path: Path, *exclude: str, **model: Any) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(c.with_quantization(c.QWEN3_5_SMALL | model, c.quark(*exclude))))
    return file


def test_the_document(folder: Path) -> None:
    found = parsed(folder, "--target", "rocm_gfx950", "-t", "rocm_gfx942")
    assert found["producer"] == "quark" and found["dtype"] == "bfloat16" and found["tp"] == 1
    assert found["modules"] == len(m.modules())
    assert found["default"]["text"] == "mxfp4, e8m0 scale per group of 32"
    assert found["default"]["activation"]["scale_mode"] == "even"
    assert found["kv_cache"] == "none" and found["warnings"] == [] == found["contradictions"]
    assert found["files"] is None
    counts = {entry["pattern"]: entry["modules"] for entry in found["patterns"]}
    assert counts["mtp.*"] == sum(name.startswith("mtp.") for name in m.modules())
    assert counts["lm_head"] == 1 and counts[r"re:.*\.linear_attn\.in_proj_[ab]$"] == 6
    rows = {name: row for row in found["rows"] for name in row["modules"]}
    experts = rows["model.language_model.layers.{0-3}.mlp.experts.{0-3}.gate_up_proj"]
    assert experts["fused"] == ["gate_proj", "up_proj"] and experts["count"] == 16
    assert experts["tensors"] == [
        {"name": "weight", "shape": [128, 64], "dtype": "uint8"},
        {"name": "weight_scale", "shape": [128, 4], "dtype": "uint8"},
    ]
    levels = {key: verdict["level"] for key, verdict in experts["targets"].items()}
    assert levels == {"rocm_gfx950": "native", "rocm_gfx942": "emulated"}
    assert rows["mtp.fc"]["rule"] == "exclude" and rows["mtp.fc"]["patterns"] == ["mtp.*"]
    assert rows["mtp.fc"]["tensors"][0]["dtype"] == "bfloat16"
    gate = rows["model.language_model.layers.{0-3}.mlp.gate"]
    assert gate["patterns"] == ["model.language_model.layers.{0-3}.mlp.gate"]


def test_ranks_and_layers(folder: Path, tmp_path: Path) -> None:
    mtp = parsed(folder, "--layer", "mtp.*")
    assert all(name.startswith("mtp.") for row in mtp["rows"] for name in row["modules"])
    shards = parsed(folder, "--layer", "*k_proj")
    assert all("qkv_proj" in name for row in shards["rows"] for name in row["modules"])
    halved = parsed(config(tmp_path, "*shared_expert*"), "--tp", 2, "-l", "*experts.0.down_proj")
    assert halved["rows"][0]["tensors"][0]["shape"] == [128, 16]
    assert "matches none of" in run(folder, "-l", "nothing", code=2).stderr
    assert "cuts the groups of 32" in run(folder, "--tp", 2, code=2).stderr


def test_the_page(folder: Path) -> None:
    page = run(folder).stdout
    assert max(map(len, page.splitlines())) <= 80
    assert "mtp.*  22 modules" in page
    flat = " ".join(page.split())
    assert "layers.{0-3}.mlp.experts.{0-3}.down_proj" in flat
    assert "weight uint8 [128, 32], weight_scale uint8 [128, 2]" in flat
    for target in ("sm90", "sm100", "gfx942", "gfx950"):
        assert target in page
    assert "on rocm_gfx950: native: mxfp4: scaled MFMA" in flat
    assert "warning" not in page and "contradiction" not in page


def test_conversions_are_said(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(c.with_quantization(c.LLAMA_8B, c.DEEPSEEK_FP8)))
    page = " ".join(run(file, "-t", "gfx942").stdout.split())
    assert "native: fp8 e4m3fnuz" in page and "all scales are doubled" in page


def test_patterns_that_match_nothing_are_told(tmp_path: Path) -> None:
    exclude = ("lm_head", "mpt.*", "model.visual.blocks.0.attn.qkv", "model.layers.{}.norm")
    found = parsed(config(tmp_path, *exclude))
    assert found["warnings"] == ["pattern 'mpt.*' matches no module"]
    shadowed = parsed(config(tmp_path, "mtp.*", "mtp.fc"))
    assert shadowed["warnings"] == [], "a pattern behind another one is no mistake"


def test_fields_that_are_not_known_are_told(tmp_path: Path) -> None:
    file = config(tmp_path, "lm_head")
    content = json.loads(file.read_text())
    content["quantization_config"]["new_feature"] = {"on": True}
    file.write_text(json.dumps(content))
    assert "field 'new_feature'" in parsed(file)["warnings"][0]
    assert "warning: field 'new_feature'" in run(file).stdout


def test_products_that_disagree_fail(tmp_path: Path) -> None:
    file = config(tmp_path, "*.layers.3.self_attn.q_proj")
    found = parsed(file, code=1)
    (text,) = found["contradictions"]
    assert "layers.3.self_attn.k_proj: mxfp4" in text
    assert "excluded by '*.layers.3.self_attn.q_proj'" in text
    assert "contradiction: model.language_model.layers.3.self_attn.qkv_proj" in " ".join(
        run(file, code=1).stdout.split()
    )


def test_products_that_disagree_alike_are_told_once(tmp_path: Path) -> None:
    (text,) = parsed(config(tmp_path, "*.experts.*.up_proj", "mtp.*"), code=1)["contradictions"]
    layers = "model.language_model.layers"
    assert text.startswith(f"{layers}.0.mlp.experts.0.gate_up_proj is one product")
    assert f"{layers}.0.mlp.experts.{{1-3}}.gate_up_proj, " in text
    assert f"{layers}.{{1-3}}.mlp.experts.{{0-3}}.gate_up_proj." in text


def test_weights_as_planned(folder: Path) -> None:
    assert parsed(folder, "--weights", folder)["files"]["disagreements"] == []
    assert "all as planned" in run(folder, "-w", folder).stdout


def test_weights_that_disagree_fail(folder: Path, tmp_path: Path) -> None:
    forgetful = copy.deepcopy(m.CONFIG)
    forgetful["quantization_config"]["exclude"].remove("mtp.*")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(forgetful))
    found = parsed(file, "--weights", folder, code=1)["files"]
    assert {"mtp.fc.weight", "mtp.fc.weight_scale"} <= {d["tensor"] for d in found["disagreements"]}
    page = " ".join(run(file, "--weights", folder, code=1).stdout.split())
    assert "files: mtp.fc.weight: planned uint8 [128, 128], found bfloat16 [128, 256]" in page
    assert "remedy: the files hold 20 modules unquantised" in page
    assert "read it with `.excluding('mtp.*')`" in page


def test_a_model_without_a_table_is_read_from_its_files(folder: Path, tmp_path: Path) -> None:
    file = config(tmp_path, *m.EXCLUDE, model_type="no_such_model")
    assert "found 'no_such_model'" in run(file, code=2).stderr
    assert parsed(file, "--weights", folder)["modules"] == len(m.modules())


def test_a_target_that_cannot_run_it_fails_if_it_was_asked_for(folder: Path) -> None:
    found = parsed(folder, "--target", "cuda_sm75", code=1)
    assert {v["level"] for row in found["rows"] for v in row["targets"].values()} == {"unsupported"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/config.json"], "nowhere/config.json: No such file"),
        (["{folder}", "--target", "gfx95"], "did you mean"),
        (["{folder}", "--tp", "0"], "0 is not in the range"),
        (["{folder}", "--tp", "2", "--weights", "{folder}"], "leave --tp out"),
    ],
)
def test_requests_that_are_wrong(folder: Path, arguments: list[str], said: str) -> None:
    result = run(*(text.format(folder=folder) for text in arguments), code=2)
    assert said in " ".join(result.stderr.split()) and result.stdout == ""


def test_neither_torch_nor_weights(folder: Path, run_python: Callable[..., str]) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "triton"]))
from archkey.cli import cli
cli(["quant", "explain", {str(folder)!r}, "--json", "-w", {str(folder)!r}], standalone_mode=False)
"""
    assert json.loads(run_python(code))["files"]["disagreements"] == []
