# SPDX-License-Identifier: Apache-2.0
"""Shapes and dtypes to allocate: by producer, by rank, and for what engines fuse."""

from __future__ import annotations

from typing import Any

import pytest
from tests.checkpoint import _configs as c

from archkey import checkpoint
from archkey.checkpoint import Layer, Tensor
from archkey.errors import ArgumentValueError, CheckpointError

N, K = 256, 384
MX4 = {"group_size": 32}
NVFP4_QUARK = [
    {"dtype": "fp4", "qscheme": "per_group", "group_size": 16, "is_dynamic": False},
    c.fp8("per_tensor"),
]

Stored = dict[str, tuple[tuple[int, ...], str]]

# description -> the tensors of a weight [256, 384], by name
STORED: dict[str, tuple[dict[str, Any], Stored]] = {
    "quark mxfp4": (
        c.quark(),
        {"weight": ((N, 192), "uint8"), "weight_scale": ((N, 12), "uint8")},
    ),
    "quark mxfp4, static fp8 activations": (
        c.quark(default=c.specs(c.mx(dynamic=False), c.fp8("per_tensor"))),
        {
            "weight": ((N, 192), "uint8"),
            "weight_scale": ((N, 12), "uint8"),
            "input_scale": ((), "float32"),
        },
    ),
    "quark fp8 channel": (
        c.quark(default=c.specs(c.fp8("per_channel"), c.fp8("per_channel", dynamic=True))),
        {"weight": ((N, K), "float8_e4m3fn"), "weight_scale": ((N,), "float32")},
    ),
    "quark nvfp4": (
        c.quark(default=c.specs(NVFP4_QUARK, NVFP4_QUARK)),
        {
            "weight": ((N, 192), "uint8"),
            "weight_scale": ((N, 24), "float8_e4m3fn"),
            "weight_scale_2": ((), "float32"),
            "input_scale_2": ((), "float32"),
        },
    ),
    "compressed-tensors mxfp4": (
        c.compressed(c.args(4, "group", **MX4), format="mxfp4-pack-quantized"),
        {"weight_packed": ((N, 192), "uint8"), "weight_scale": ((N, 12), "uint8")},
    ),
    "compressed-tensors nvfp4": (
        c.compressed(
            c.args(4, "tensor_group", group_size=16),
            c.args(4, "tensor_group", group_size=16, dynamic="local"),
            format="nvfp4-pack-quantized",
        ),
        {
            "weight_packed": ((N, 192), "uint8"),
            "weight_scale": ((N, 24), "float8_e4m3fn"),
            "weight_global_scale": ((), "float32"),
            "input_global_scale": ((), "float32"),
        },
    ),
    "compressed-tensors fp8": (
        c.compressed(c.args(8, "channel"), c.args(8, "token", dynamic=True)),
        {"weight": ((N, K), "float8_e4m3fn"), "weight_scale": ((N, 1), "float32")},
    ),
    "compressed-tensors mxfp8": (
        c.compressed(c.args(8, "group", **MX4), format="mxfp8-quantized"),
        {"weight": ((N, K), "float8_e4m3fn"), "weight_scale": ((N, 12), "uint8")},
    ),
    "modelopt fp8": (
        c.modelopt("FP8"),
        {
            "weight": ((N, K), "float8_e4m3fn"),
            "weight_scale": ((), "float32"),
            "input_scale": ((), "float32"),
        },
    ),
    "modelopt nvfp4": (
        c.modelopt("NVFP4"),
        {
            "weight": ((N, 192), "uint8"),
            "weight_scale": ((N, 24), "float8_e4m3fn"),
            "weight_scale_2": ((), "float32"),
            "input_scale": ((), "float32"),
        },
    ),
    "modelopt nvfp4, weights alone": (
        c.modelopt("W4A16_NVFP4"),
        {
            "weight": ((N, 192), "uint8"),
            "weight_scale": ((N, 24), "float8_e4m3fn"),
            "weight_scale_2": ((), "float32"),
        },
    ),
    "modelopt fp8 in blocks": (
        c.modelopt("FP8_PB_WO"),
        {"weight": ((N, K), "float8_e4m3fn"), "weight_scale": ((2, 1, 3, 1), "float32")},
    ),
    "deepseek": (
        c.DEEPSEEK_FP8,
        {"weight": ((N, K), "float8_e4m3fn"), "weight_scale_inv": ((2, 3), "float32")},
    ),
    "excluded": (c.quark("m*"), {"weight": ((N, K), "bfloat16")}),
}


def one(description: dict[str, Any], layer: Layer, tp: int = 1) -> Stored:
    """The tensors of `layer`, by their names below it."""
    found = checkpoint.read({"quantization_config": description})
    entry = checkpoint.plan(found, [layer], tp=tp)[layer.name]
    return {t.name.removeprefix(f"{layer.name}."): (t.shape, t.dtype) for t in entry.tensors}


@pytest.mark.parametrize("what", STORED)
def test_stored(what: str) -> None:
    description, stored = STORED[what]
    assert one(description, Layer("m.proj", (N,), K)) == stored


def test_blocks_and_groups_that_are_not_full() -> None:
    assert one(c.DEEPSEEK_FP8, Layer("m", (576,), 7168))["weight_scale_inv"][0] == (5, 56)
    assert one(c.quark(), Layer("m", (8,), 48))["weight_scale"][0] == (8, 2)
    with pytest.raises(CheckpointError, match=r"multiples of 2, found \[8, 33\]"):
        one(c.quark(), Layer("m", (8,), 33))
    with pytest.raises(CheckpointError, match=r"nvfp4 weights need columns in multiples of 16"):
        one(c.modelopt("NVFP4"), Layer("m", (8,), 40))


def test_a_real_checkpoint() -> None:
    """Headers of amd/Qwen3.8-27B-Quark-AWQ-MXFP4, which has the sizes of Qwen3.5-27B."""
    plan = checkpoint.plan(c.with_quantization(c.QWEN3_5_27B, c.quark("lm_head")))
    mlp = "model.language_model.layers.0.mlp"
    assert plan[f"{mlp}.gate_proj"].tensors[0].shape == (17408, 2560)
    assert plan[f"{mlp}.gate_proj"].tensors[1].shape == (17408, 160)
    assert plan[f"{mlp}.down_proj"].tensors[0].shape == (5120, 8704)
    assert plan[f"{mlp}.down_proj"].tensors[1].shape == (5120, 544)


def test_gpt_oss_experts() -> None:
    plan = checkpoint.plan(c.with_quantization(c.GPT_OSS_20B, c.GPT_OSS))
    experts = "model.layers.0.mlp.experts"
    assert plan[f"{experts}.gate_up_proj"].tensors == (
        Tensor(f"{experts}.gate_up_proj_blocks", (32, 5760, 90, 16), "uint8"),
        Tensor(f"{experts}.gate_up_proj_scales", (32, 5760, 90), "uint8"),
    )
    assert plan["model.layers.0.self_attn.q_proj"].tensors[0].dtype == "bfloat16"
    with pytest.raises(CheckpointError, match="32 experts in one tensor"):
        checkpoint.plan(c.GPT_OSS_20B)


# ---- ranks


@pytest.mark.parametrize(
    ("cut", "weight", "scale"),
    [
        ("column", (64, 192), (64, 12)),
        ("row", (256, 48), (256, 3)),
        ("replicated", (N, 192), (N, 12)),
    ],
)
def test_shares_of_mxfp4(cut: str, weight: tuple[int, ...], scale: tuple[int, ...]) -> None:
    found = one(c.quark(), Layer("m", (N,), K, cut), tp=4)
    assert (found["weight"][0], found["weight_scale"][0]) == (weight, scale)


@pytest.mark.parametrize(
    ("layer", "tp", "said"),
    [
        (
            Layer("m", (N,), K, "row"),
            8,
            "8 ranks each has 48 columns, which cuts the groups of 32",
        ),
        (Layer("m", (N,), K, "row"), 5, r"384 columns of \[256, 384\] cannot be shared by 5"),
        (Layer("m", (N,), K, "column"), 3, "256 rows .* cannot be shared by 3"),
        (Layer("m", (N,), K, "column", heads=6), 4, "6 heads cannot be shared by 4 ranks"),
        (Layer("m", (N,), K, "column", heads=6, shared_heads=True), 4, "6 heads cannot be shared"),
    ],
)
def test_what_ranks_cannot_share(layer: Layer, tp: int, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"^m: .*{said}"):
        one(c.quark(), layer, tp)


def test_blocks_are_not_cut() -> None:
    down = Layer("m.down_proj", (7168,), 2048, "row")
    assert one(c.DEEPSEEK_FP8, down, tp=16)["weight_scale_inv"][0] == (56, 1)
    with pytest.raises(
        CheckpointError, match="32 ranks each has 64 columns, which cuts the blocks"
    ):
        one(c.DEEPSEEK_FP8, down, tp=32)
    parts = Layer("m.in_proj", (128, 128, 256), 512, "column")
    assert one(c.DEEPSEEK_FP8, parts)["weight"][0] == (512, 512)
    with pytest.raises(CheckpointError, match="each has 64 rows"):
        one(c.DEEPSEEK_FP8, parts, tp=2)


def test_key_heads_are_copied_where_ranks_are_more() -> None:
    """Llama-3.1-8B has 8: each of 16 ranks holds a whole one."""
    config = c.with_quantization(c.LLAMA_8B, c.quark("lm_head"))
    for tp, rows in ((2, 512), (8, 128), (16, 128)):
        plan = checkpoint.plan(config, tp=tp)
        assert plan["model.layers.0.self_attn.k_proj"].tensors[0].shape == (rows, 2048)
        assert plan["model.layers.0.self_attn.q_proj"].tensors[0].shape == (4096 // tp, 2048)
        (qkv, *_) = (e for e in plan.fused().entries if e.name.endswith("0.self_attn.qkv_proj"))
        assert qkv.tensors[0].shape == (4096 // tp + 2 * rows, 2048)


def test_no_ranks() -> None:
    with pytest.raises(ArgumentValueError, match="tp: found 0"):
        checkpoint.plan(c.LLAMA_8B, tp=0)
    with pytest.raises(ArgumentValueError, match="cut: found 'col'; expected one of column, row"):
        one(c.quark(), Layer("m", (N,), K, "col"))


# ---- products


def fused(description: dict[str, Any], model: dict[str, Any]) -> dict[str, checkpoint.Entry]:
    found = checkpoint.plan(c.with_quantization(model, description)).fused()
    assert found.conflicts == {}
    return {entry.name: entry for entry in found.entries}


def test_products_have_the_rows_of_their_modules_and_a_scale_for_each() -> None:
    found = fused(c.modelopt("FP8", "lm_head"), c.LLAMA_8B)
    gate_up = found["model.layers.0.mlp.gate_up_proj"]
    assert gate_up.shards == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
    assert [t.shape for t in gate_up.tensors] == [(28672, 4096), (2,), (2,)]
    assert [t.shape for t in found["model.layers.0.mlp.down_proj"].tensors] == [
        (4096, 14336),
        (),
        (),
    ]
    assert "model.layers.0.mlp.gate_proj" not in found
    assert found["model.layers.0.self_attn.qkv_proj"].layer.parts == (4096, 1024, 1024)


def test_products_of_deepseek_keep_blocks_whole() -> None:
    found = fused(c.DEEPSEEK_FP8, c.DEEPSEEK_V32 | {"num_hidden_layers": 4})
    first = found["model.layers.0.self_attn.fused_qkv_a_proj_with_mqa"]
    assert [t.shape for t in first.tensors] == [(1536 + 576, 7168), (12 + 5, 56)]
    config = c.DEEPSEEK_V3 | {"num_hidden_layers": 4, "q_lora_rank": 1600}
    plan = checkpoint.plan(c.with_quantization(config, c.DEEPSEEK_FP8))
    why = plan.fused().conflicts["model.layers.0.self_attn.fused_qkv_a_proj_with_mqa"]
    assert "q_a_proj has 1600 rows, so what follows it starts inside a block" in why


def test_products_that_disagree_stay_separate_and_are_told() -> None:
    config = c.with_quantization(c.LLAMA_8B, c.quark("lm_head", "*layers.5.mlp.up_proj"))
    found = checkpoint.plan(config).fused()
    (conflict,) = found.conflicts.values()
    assert conflict.startswith("model.layers.5.mlp.gate_up_proj is one product of modules with")
    names = {entry.name for entry in found.entries}
    assert {"model.layers.5.mlp.gate_proj", "model.layers.5.mlp.up_proj"} <= names
    assert "model.layers.4.mlp.gate_up_proj" in names


def test_an_unknown_module_of_a_plan() -> None:
    with pytest.raises(KeyError, match="did you mean 'lm_head'"):
        checkpoint.plan(c.LLAMA_8B)["lm_heads"]
    with pytest.raises(ArgumentValueError, match="layers: found None"):
        checkpoint.plan(checkpoint.read(c.LLAMA_8B))
