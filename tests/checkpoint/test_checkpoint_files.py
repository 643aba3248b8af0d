# SPDX-License-Identifier: Apache-2.0
"""Plans against files: the failure of sglang#23113 by name, and a model that loads and runs."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.checkpoint import _configs as c
from tests.checkpoint import _model as m

import archkey
from archkey import checkpoint
from archkey.checkpoint import Quantization
from archkey.errors import ArgumentValueError, CheckpointError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("checkpoint") / "small"
    m.write(found)
    return found


@pytest.fixture(scope="module")
def headers(folder: Path) -> dict[str, checkpoint.Header]:
    return checkpoint.from_safetensors(folder)


def test_the_plan_is_what_the_exporter_packed(folder: Path) -> None:
    plan = checkpoint.plan(folder)
    shapes = {e.name: (e.layer.rows, e.layer.columns) for e in plan}
    assert shapes == m.modules()
    assert {e.name: e.resolution.scheme.quantized for e in plan} == {
        name: m.is_packed(name) for name in m.modules()
    }


def test_the_files_are_as_planned(folder: Path, headers: dict[str, checkpoint.Header]) -> None:
    report = checkpoint.check(checkpoint.plan(folder), headers)
    assert report and report.disagreements == report.absent == report.unquantized == ()
    report.require()


def naive(config: dict[str, Any]) -> Quantization:
    """What a loader takes that knows the scheme and ignores the exclusions of MTP."""
    config = copy.deepcopy(config)
    description = config["quantization_config"]
    description["exclude"] = [text for text in description["exclude"] if text != "mtp.*"]
    return checkpoint.read(config)


def test_sglang_23113(folder: Path, headers: dict[str, checkpoint.Header]) -> None:
    """Packed shapes for a bfloat16 MTP module: each tensor that would not load is named."""
    layers = checkpoint.layers(folder)
    report = checkpoint.check(checkpoint.plan(naive(m.CONFIG), layers), headers)
    still = {f"mtp.layers.0.mlp.{n}" for n in ("gate", "shared_expert_gate")}  # by other rules
    wrong = {name for name in m.modules() if name.startswith("mtp.")} - still
    assert {d.tensor for d in report.disagreements if d.kind == "shape"} == {
        f"{name}.weight" for name in wrong
    }
    assert {d.tensor for d in report.disagreements if d.kind == "missing"} == {
        f"{name}.weight_scale" for name in wrong
    }
    assert set(report.unquantized) == wrong
    with pytest.raises(CheckpointError) as error:
        report.require()
    assert "mtp.fc.weight: planned uint8 [128, 128], found bfloat16 [128, 256]" in str(error.value)
    assert "read it with `.excluding('mtp.*')`" in str(error.value)
    # sglang#36158: a description that forgets its MTP module, and what makes it true.
    assert report.exclude == ("mtp.*",)
    mended = checkpoint.plan(naive(m.CONFIG).excluding(*report.exclude), layers)
    assert checkpoint.check(mended, headers)


PARTIAL = tuple(
    f"mtp.{name}"
    for name in (
        "fc",
        *(f"layers.0.self_attn.{n}_proj" for n in "qkvo"),
        "layers.0.mlp.gate",
        *(f"layers.0.mlp.shared_expert.{n}_proj" for n in ("gate", "up", "down")),
        "layers.0.mlp.shared_expert_gate",
    )
)


def test_mtp_that_is_packed_in_part(tmp_path: Path) -> None:
    """sglang#38870, sglang#39064: ten entries of MTP are excluded, and its experts are packed."""
    exclude = [text for text in m.EXCLUDE if text != "mtp.*"]
    config = c.with_quantization(c.QWEN3_5_SMALL, c.quark(*exclude, *PARTIAL))
    m.write(tmp_path, config, lambda name: m.is_packed(name) or ".mlp.experts." in name)
    plan = checkpoint.plan(tmp_path)
    assert checkpoint.check(plan, checkpoint.from_safetensors(tmp_path))
    assert plan["mtp.layers.0.mlp.experts.2.up_proj"].tensors[0].dtype == "uint8"
    by_name = {entry.name: entry for entry in plan.fused().entries}
    assert by_name["mtp.layers.0.self_attn.qkv_proj"].tensors[0].dtype == "bfloat16"


def rewritten(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The files of `folder` with some tensors changed."""
    tensors = {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    change(tensors)
    m.save(to, tensors, m.CONFIG)
    return to


def test_each_kind_of_disagreement_is_named(folder: Path, tmp_path: Path) -> None:
    layer = "model.language_model.layers.0.mlp.experts.0"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{layer}.up_proj.weight"] = tensors[f"{layer}.up_proj.weight"][:, :32]
        scale = tensors[f"{layer}.gate_proj.weight_scale"]
        tensors[f"{layer}.gate_proj.weight_scale"] = scale.float()
        del tensors[f"{layer}.down_proj.weight_scale"]
        tensors["mtp.fc.weight_scale"] = torch.ones(128, 8, dtype=torch.uint8)
        tensors["model.visual.blocks.0.mlp.fc1.weight_scale"] = torch.ones(4)
        tensors["model.visual.blocks.0.mlp.fc1.weight"] = torch.ones(4, 4)
        tensors[f"{layer}.up_proj.bias"] = torch.ones(64)

    found = checkpoint.from_safetensors(rewritten(folder, tmp_path / "wrong", change))
    report = checkpoint.check(checkpoint.plan(folder), found)
    assert {str(d) for d in report.disagreements} == {
        f"{layer}.up_proj.weight: planned uint8 [64, 64], found uint8 [64, 32]",
        f"{layer}.gate_proj.weight_scale: planned uint8 [64, 4], found float32 [64, 4]",
        f"{layer}.down_proj.weight_scale: planned uint8 [128, 2], not in the files",
        "mtp.fc.weight_scale: no tensor is planned, found uint8 [128, 8]",
        "model.visual.blocks.0.mlp.fc1.weight_scale: no tensor is planned, found float32 [4]",
    }
    assert sorted(d.kind for d in report.disagreements) == [
        *("dtype", "missing", "shape", "unexpected", "unexpected")
    ]


def without(prefix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


def test_files_may_leave_out_mtp_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    found = checkpoint.from_safetensors(rewritten(folder, tmp_path / "a", without("mtp.")))
    report = checkpoint.check(checkpoint.plan(folder), found)
    assert report and "mtp.fc" in report.absent
    found = checkpoint.from_safetensors(rewritten(folder, tmp_path / "b", without("mtp.fc")))
    (missing,) = checkpoint.check(checkpoint.plan(folder), found).disagreements
    assert (missing.kind, missing.tensor) == ("missing", "mtp.fc.weight")


def stack(tensors: dict[str, torch.Tensor]) -> None:
    """MTP's experts in one tensor each, as transformers 5 stores what is not quantised."""
    base = "mtp.layers.0.mlp.experts"
    pop = [
        {n: tensors.pop(f"{base}.{e}.{n}_proj.weight") for n in ("gate", "up", "down")}
        for e in range(m.EXPERTS)
    ]
    tensors[f"{base}.gate_up_proj"] = torch.stack([torch.cat((p["gate"], p["up"])) for p in pop])
    tensors[f"{base}.down_proj"] = torch.stack([p["down"] for p in pop])


def test_stacked_experts_are_the_same_experts(folder: Path, tmp_path: Path) -> None:
    found = checkpoint.from_safetensors(rewritten(folder, tmp_path / "stacked", stack))
    assert checkpoint.check(checkpoint.plan(folder), found)
    wrong = checkpoint.check(checkpoint.plan(naive(m.CONFIG), checkpoint.layers(folder)), found)
    assert "mtp.layers.0.mlp.experts.3.gate_proj" in wrong.unquantized
    assert wrong.exclude == ("mtp.*",)


def test_a_part_that_is_unquantised_is_named_module_by_module(tmp_path: Path) -> None:
    config = c.with_quantization(c.QWEN3_5_SMALL, c.quark(*m.EXCLUDE))
    plain = "model.language_model.layers.3.self_attn.o_proj"
    m.write(tmp_path, config, lambda name: m.is_packed(name) and name != plain)
    report = checkpoint.check(checkpoint.plan(tmp_path), checkpoint.from_safetensors(tmp_path))
    assert report.unquantized == report.exclude == (plain,)


def test_scales_in_other_shapes_and_wider_floats() -> None:
    layer = checkpoint.Layer("m", (64,), 128)
    plan = checkpoint.plan(
        checkpoint.read({"quantization_config": c.modelopt("FP8_PER_CHANNEL_PER_TOKEN")}), [layer]
    )
    weight = checkpoint.Header((64, 128), "float8_e4m3fn", "f")
    for scale, fits in (
        (checkpoint.Header((64, 1), "bfloat16", "f"), True),
        (checkpoint.Header((1, 64), "float32", "f"), True),
        (checkpoint.Header((64,), "uint8", "f"), False),
        (checkpoint.Header((32,), "float32", "f"), False),
    ):
        assert bool(checkpoint.check(plan, {"m.weight": weight, "m.weight_scale": scale})) is fits


def test_files_hold_whole_tensors(headers: dict[str, checkpoint.Header]) -> None:
    half = checkpoint.plan(c.LLAMA_8B, [checkpoint.Layer("lm_head", (256,), 128, "column")], tp=2)
    with pytest.raises(ArgumentValueError, match="found a plan for 2 ranks"):
        checkpoint.check(half, headers)


# ---- headers


def test_headers(headers: dict[str, checkpoint.Header]) -> None:
    found = headers["model.language_model.layers.3.self_attn.o_proj.weight_scale"]
    assert (found.shape, found.dtype) == ((128, 4), "uint8")
    assert {h.file for h in headers.values()} == {
        f"model-0000{n}-of-00002.safetensors" for n in (1, 2)
    }


def test_layers_of_a_model_without_a_table(headers: dict[str, checkpoint.Header]) -> None:
    found = {x.name: (x.rows, x.columns) for x in checkpoint.layers_of(headers)}
    assert found == m.modules()


def test_files_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no"):
        checkpoint.from_safetensors(tmp_path)
    save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert checkpoint.from_safetensors(tmp_path)["lm_head.weight"].dtype == "float32"


def test_indexes_that_are_wrong(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "f.safetensors")
    for content, said in (
        ("[]", "no index of weights"),
        (json.dumps({"weight_map": {"b.weight": "f.safetensors"}}), "b.weight is not in f.safe"),
        (json.dumps({"weight_map": {"a.weight": "g.safetensors"}}), "g.safetensors"),
    ):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=said):
            checkpoint.from_safetensors(tmp_path)
    (tmp_path / "g.safetensors").write_bytes(b"no header at all")
    with pytest.raises(CheckpointError, match="g.safetensors"):
        checkpoint.from_safetensors(tmp_path)


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match=r'pip install "archkey\[checkpoint\]"'):
        checkpoint.from_safetensors(folder)


# ---- loaded and run


def load(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Allocate the products that engines run by the plan, and copy the files' tensors in."""
    plan = checkpoint.plan(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    fusion = plan.fused()
    assert fusion.conflicts == {}
    model: dict[str, dict[str, torch.Tensor]] = {}
    for entry in fusion.entries:
        held = {t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for t in entry.tensors}
        model[entry.name] = {name.rpartition(".")[2]: tensor for name, tensor in held.items()}
        for tensor in model[entry.name].values():
            tensor.view(torch.uint8).fill_(255)  # e8m0's NaN, and bfloat16's
        start = 0
        for module in entry.shards or (entry.name,):
            rows = plan[module].layer.rows
            for name, tensor in model[entry.name].items():
                with safe_open(folder / index[f"{module}.{name}"], framework="pt") as file:
                    tensor[start : start + rows].copy_(file.get_tensor(f"{module}.{name}"))
            start += rows
        assert start == entry.layer.rows
    return model


def test_the_loaded_model_computes_what_its_weights_say(tmp_path: Path) -> None:
    exact = m.write(tmp_path)
    model = load(tmp_path)
    used: set[str] = set()

    def engine(name: str, x: torch.Tensor) -> torch.Tensor:
        used.add(name)
        held = model[name]
        if "weight_scale" in held:
            return archkey.mxfp4_linear(x, held["weight"], held["weight_scale"])
        return F.linear(x, held["weight"])

    def reference(name: str, x: torch.Tensor) -> torch.Tensor:
        shards = checkpoint.FUSED.get(name.rpartition(".")[2])
        base = name.rpartition(".")[0]
        weights = [exact[f"{base}.{s}"] for s in shards] if shards else [exact[name]]
        return x @ torch.cat(weights).T

    torch.manual_seed(1)
    x, embedded = (torch.randn(6, m.HIDDEN).to(torch.bfloat16) for _ in range(2))
    found = m.forward(x, embedded, engine)
    wanted = m.forward(x.double(), embedded.double(), reference)
    assert used == set(model), "every product took part"
    for logits, right in zip(found, wanted, strict=True):
        error = (logits.double() - right).norm() / right.norm()
        assert error < 0.02, "bfloat16 through four layers and MTP"
