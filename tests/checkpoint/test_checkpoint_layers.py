# SPDX-License-Identifier: Apache-2.0
"""The linear modules of models: names as in their files, sizes that add up to what is published."""

from __future__ import annotations

from typing import Any

import pytest
from tests.checkpoint import _configs as c

from archkey import checkpoint
from archkey.errors import CheckpointError


def weights(config: dict[str, Any], *, mtp: bool = False) -> int:
    """Weights of all linear modules, without or only those of MTP."""
    found = checkpoint.layers(config)
    return sum(x.rows * x.columns * max(x.stack, 1) for x in found if x.mtp is mtp)


def embedding(config: dict[str, Any]) -> int:
    text = config.get("text_config", config)
    return int(text["vocab_size"] * text["hidden_size"])


def test_llama_to_the_last_weight() -> None:
    norms = (2 * 32 + 1) * 4096
    assert weights(c.LLAMA_8B) + embedding(c.LLAMA_8B) + norms == 8_030_261_248


@pytest.mark.parametrize(
    ("config", "billions"),
    # As the models' pages and reports round it; norms, biases, convolutions are below 0.1 %.
    [(c.QWEN3_30B, 30.5), (c.DEEPSEEK_V3, 671), (c.GPT_OSS_20B, 20.9), (c.QWEN3_5_27B, 27)],
    ids=["qwen3-30b", "deepseek-v3", "gpt-oss-20b", "qwen3.5-27b"],
)
def test_sizes_add_up(config: dict[str, Any], billions: float) -> None:
    total = (weights(config) + embedding(config)) / 1e9
    assert total == pytest.approx(billions, rel=5e-3)


def names(config: dict[str, Any]) -> set[str]:
    return set(checkpoint.collapse(layer.name for layer in checkpoint.layers(config)))


def test_names_of_qwen3_5() -> None:
    layer = "model.language_model.layers"
    linear = {f"{layer}.{{0-2}}.linear_attn.{n}" for n in ("in_proj_qkv", "in_proj_z", "out_proj")}
    assert linear <= names(c.QWEN3_5_SMALL)
    assert names(c.QWEN3_5_SMALL) >= {
        "lm_head",
        f"{layer}.3.self_attn.q_proj",
        f"{layer}.{{0-3}}.mlp.gate",
        f"{layer}.{{0-3}}.mlp.experts.{{0-3}}.down_proj",
        f"{layer}.{{0-3}}.mlp.shared_expert.up_proj",
        f"{layer}.{{0-3}}.mlp.shared_expert_gate",
        "mtp.fc",
        "mtp.layers.0.self_attn.q_proj",
        "mtp.layers.0.mlp.experts.{0-3}.gate_proj",
    }
    by_name = {layer.name: layer for layer in checkpoint.layers(c.QWEN3_5_SMALL)}
    # Query and output gate; twice the hidden size into MTP.
    assert by_name["mtp.layers.0.self_attn.q_proj"].parts == (2 * 4 * 32,)
    assert (by_name["mtp.fc"].rows, by_name["mtp.fc"].columns) == (128, 256)
    assert by_name[f"{layer}.0.linear_attn.in_proj_qkv"].parts == (64, 64, 128)
    assert {layer.mtp for name, layer in by_name.items() if name.startswith("mtp.")} == {True}


def test_text_only_qwen3_5_and_its_default_of_layer_types() -> None:
    text = {**c.QWEN3_5_27B["text_config"], "num_hidden_layers": 4, "tie_word_embeddings": True}
    found = names({**text, "model_type": "qwen3_5_text"})
    assert "model.layers.3.self_attn.o_proj" in found
    assert "model.layers.{0-2}.linear_attn.in_proj_ba" not in found
    assert {f"model.layers.{{0-2}}.linear_attn.in_proj_{n}" for n in "ab"} <= found
    assert "model.layers.{0-3}.mlp.gate_proj" in found, "dense where there are no experts"
    assert "lm_head" not in found, "tied to the embedding"


def test_names_of_qwen3_next() -> None:
    text = {**c.QWEN3_5_SMALL["text_config"], "model_type": "qwen3_next"}
    found = names(text)
    assert {f"model.layers.{{0-2}}.linear_attn.in_proj_{n}" for n in ("qkvz", "ba")} <= found
    assert "mtp.layers.0.mlp.experts.{0-3}.up_proj" in found
    assert "mtp.fc" not in names({**text, "num_nextn_predict_layers": 0})


def test_names_of_deepseek() -> None:
    found = names(c.DEEPSEEK_V3)
    assert found >= {
        "model.layers.{0-2}.mlp.gate_proj",
        "model.layers.{3-61}.mlp.gate",
        "model.layers.{3-61}.mlp.experts.{0-255}.down_proj",
        "model.layers.{0-61}.self_attn.kv_a_proj_with_mqa",
        "model.layers.61.eh_proj",
        "model.layers.61.shared_head.head",
    }
    assert "model.layers.{0-61}.self_attn.indexer.wk" in names(c.DEEPSEEK_V32)
    # What DeepSeek's report says of MTP: 14B, 2 x 0.93B of them embedding and head.
    assert weights(c.DEEPSEEK_V3, mtp=True) / 1e9 == pytest.approx(11.5 + 0.93, rel=0.02)


def test_kimi_k2_5_lies_in_a_multimodal_model() -> None:
    text = {**c.DEEPSEEK_V3, "model_type": "kimi_k2", "num_hidden_layers": 4}
    found = names({"model_type": "kimi_k25", "text_config": text})
    assert "language_model.model.layers.{0-4}.self_attn.o_proj" in found
    assert "language_model.lm_head" in found


def test_layers_without_experts_among_those_with() -> None:
    config = {**c.QWEN3_30B, "num_hidden_layers": 6, "decoder_sparse_step": 2}
    found = names({**config, "mlp_only_layers": [3]})
    assert "model.layers.{1,5}.mlp.gate" in found
    assert "model.layers.{0,2-4}.mlp.gate_proj" in found


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="found 'qwen3_5_mo'; did you mean 'qwen3_5_moe'"):
        checkpoint.layers({**c.QWEN3_5_SMALL, "model_type": "qwen3_5_mo"})


def test_what_a_config_lacks_is_named() -> None:
    config = {k: v for k, v in c.QWEN3_30B.items() if k != "moe_intermediate_size"}
    with pytest.raises(CheckpointError, match="lacks 'moe_intermediate_size'.*qwen3_moe"):
        checkpoint.layers(config)
    text = {**c.QWEN3_5_SMALL["text_config"], "layer_types": ["linear_attention", "sliding"]}
    with pytest.raises(CheckpointError, match=r"layer_types\[1\]: found 'sliding'; expected full"):
        checkpoint.layers({**c.QWEN3_5_SMALL, "text_config": text})


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (["a.0.b", "a.1.b", "a.2.b", "a.4.b"], ("a.{0-2,4}.b",)),
        (["a.0.e.0", "a.0.e.1", "a.1.e.0", "a.1.e.1"], ("a.{0-1}.e.{0-1}",)),
        (["a.0.e.0", "a.0.e.1", "a.1.e.0"], ("a.0.e.{0-1}", "a.1.e.0")),
        (["lm_head", "a.7.b", "lm_head"], ("lm_head", "a.7.b")),
        ([], ()),
    ],
)
def test_collapse(given: list[str], lines: tuple[str, ...]) -> None:
    assert checkpoint.collapse(given) == lines
