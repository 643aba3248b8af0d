# SPDX-License-Identifier: Apache-2.0
"""Which linear modules the decoders of a model type have: tables of names, sizes and cuts.

A `Row` is a module below a decoder layer. Its sizes are names of `SIZES`, each computed from the
config's text model. Sources: transformers `models/<type>/modeling_*.py` (names, sizes; DeepSeek's
own `modeling_deepseek.py` and `inference/model.py` for the indexer of V3.2); the MTP modules, which
transformers has not: vllm `models/qwen3_5_mtp.py`, `qwen3_next_mtp.py`, `deepseek_mtp.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["MODELS", "SIZES", "WRAPPERS", "Model", "Row", "Wrapper"]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A linear module: `rows` are its parts of N, `columns` is K, `cut` how ranks share it.

    heads  a size: the rows are whole heads, as many; "kv_heads" are copied where ranks are more
    """

    name: str
    rows: tuple[str, ...]
    columns: str
    cut: str = "column"
    heads: str = ""


SIZES: Mapping[str, Callable[[Config], int]] = MappingProxyType(
    {
        "hidden": lambda c: c["hidden_size"],
        "2hidden": lambda c: 2 * c["hidden_size"],
        "vocab": lambda c: c["vocab_size"],
        "mlp": lambda c: c["intermediate_size"],
        "heads": lambda c: c["num_attention_heads"],
        "kv_heads": lambda c: c.get("num_key_value_heads") or c["num_attention_heads"],
        "q": lambda c: c["num_attention_heads"] * _head(c),
        "2q": lambda c: 2 * c["num_attention_heads"] * _head(c),
        "kv": lambda c: SIZES["kv_heads"](c) * _head(c),
        "experts": lambda c: _experts(c),
        "expert": lambda c: c["moe_intermediate_size"],
        "2mlp": lambda c: 2 * c["intermediate_size"],
        "shared": lambda c: c["shared_expert_intermediate_size"],
        "shared_experts": lambda c: c["n_shared_experts"] * c["moe_intermediate_size"],
        "one": lambda c: 1,
        "key": lambda c: c["linear_num_key_heads"] * c["linear_key_head_dim"],
        "value": lambda c: c["linear_num_value_heads"] * c["linear_value_head_dim"],
        "value_heads": lambda c: c["linear_num_value_heads"],
        "qkvz": lambda c: 2 * (SIZES["key"](c) + SIZES["value"](c)),
        "ba": lambda c: 2 * c["linear_num_value_heads"],
        "q_rank": lambda c: c["q_lora_rank"],
        "mla_q": lambda c: (
            c["num_attention_heads"] * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
        ),
        "kv_rank": lambda c: c["kv_lora_rank"],
        "kv_rank+rope": lambda c: c["kv_lora_rank"] + c["qk_rope_head_dim"],
        "mla_kv": lambda c: c["num_attention_heads"] * (c["qk_nope_head_dim"] + c["v_head_dim"]),
        "mla_v": lambda c: c["num_attention_heads"] * c["v_head_dim"],
        "index_heads": lambda c: c["index_n_heads"],
        "index_q": lambda c: c["index_n_heads"] * c["index_head_dim"],
        "index_k": lambda c: c["index_head_dim"],
    }
)
"""Sizes by name, from the config of the text model; KeyError for a field that it lacks."""


def _head(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _experts(config: Config) -> int:
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    return int(next((config[name] for name in names if config.get(name)), 0))


def _mlp(prefix: str, size: str) -> tuple[Row, ...]:
    return (
        Row(f"{prefix}.gate_proj", (size,), "hidden"),
        Row(f"{prefix}.up_proj", (size,), "hidden"),
        Row(f"{prefix}.down_proj", ("hidden",), size, "row"),
    )


_ATTENTION = (
    Row("self_attn.q_proj", ("q",), "hidden", heads="heads"),
    Row("self_attn.k_proj", ("kv",), "hidden", heads="kv_heads"),
    Row("self_attn.v_proj", ("kv",), "hidden", heads="kv_heads"),
    Row("self_attn.o_proj", ("hidden",), "q", "row"),
)
# Rows of the query and of its output gate alternate, head by head.
_GATED = (Row("self_attn.q_proj", ("2q",), "hidden", heads="heads"), *_ATTENTION[1:])
_NEXT_LINEAR = (
    Row("linear_attn.in_proj_qkvz", ("qkvz",), "hidden"),
    Row("linear_attn.in_proj_ba", ("ba",), "hidden"),
    Row("linear_attn.out_proj", ("hidden",), "value", "row"),
)
_LINEAR = (
    Row("linear_attn.in_proj_qkv", ("key", "key", "value"), "hidden"),
    Row("linear_attn.in_proj_z", ("value",), "hidden"),
    Row("linear_attn.in_proj_b", ("value_heads",), "hidden"),
    Row("linear_attn.in_proj_a", ("value_heads",), "hidden"),
    Row("linear_attn.out_proj", ("hidden",), "value", "row"),
)
_MLA = (
    Row("self_attn.q_a_proj", ("q_rank",), "hidden", "replicated"),
    Row("self_attn.q_b_proj", ("mla_q",), "q_rank", heads="heads"),
    Row("self_attn.kv_a_proj_with_mqa", ("kv_rank+rope",), "hidden", "replicated"),
    Row("self_attn.kv_b_proj", ("mla_kv",), "kv_rank", heads="heads"),
    Row("self_attn.o_proj", ("hidden",), "mla_v", "row"),
)
_INDEXER = (
    Row("self_attn.indexer.wq_b", ("index_q",), "q_rank", "replicated"),
    Row("self_attn.indexer.wk", ("index_k",), "hidden", "replicated"),
    Row("self_attn.indexer.weights_proj", ("index_heads",), "hidden", "replicated"),
)
_DENSE = _mlp("mlp", "mlp")
_ROUTER = Row("mlp.gate", ("experts",), "hidden", "replicated")
_EXPERTS = (_ROUTER, *_mlp("mlp.experts.{}", "expert"))
_NEXT_EXPERTS = (
    *_EXPERTS,
    *_mlp("mlp.shared_expert", "shared"),
    Row("mlp.shared_expert_gate", ("one",), "hidden", "replicated"),
)
_DEEPSEEK_EXPERTS = (*_EXPERTS, *_mlp("mlp.shared_experts", "shared_experts"))
_OSS_EXPERTS = (
    Row("mlp.router", ("experts",), "hidden", "replicated"),
    Row("mlp.experts.gate_up_proj", ("2mlp",), "hidden"),
    Row("mlp.experts.down_proj", ("hidden",), "mlp", "row"),
)


@dataclass(frozen=True)
class Model:
    """The modules of a model type's decoder layers, and of its multi-token prediction.

    mixers     layer_types' word -> rows; "" is what all layers have
    dense      rows of the MLP of a layer without experts
    sparse     of a layer with experts; `{}` in a name stands for each expert's number
    mtp        where it lies: "mtp." a module of its own, "layers." behind the last layer, "" none
    mtp_field  the config's number of MTP layers, and what engines take where it is not said
    mtp_extra  rows beside the decoder layers of MTP: once for "mtp.", in each layer for "layers."
    stacked    experts lie in one tensor `[E, ...]`
    """

    mixers: Mapping[str, tuple[Row, ...]]
    dense: tuple[Row, ...] = _DENSE
    sparse: tuple[Row, ...] = ()
    mtp: str = ""
    mtp_field: tuple[str, int] = ("", 0)
    mtp_extra: tuple[Row, ...] = ()
    stacked: bool = False


_FULL, _GDN = "full_attention", "linear_attention"
_FC = (Row("fc", ("hidden",), "2hidden", "replicated"),)
_EH = (
    Row("eh_proj", ("hidden",), "2hidden", "replicated"),
    Row("shared_head.head", ("vocab",), "hidden"),
)
_LLAMA = Model({"": _ATTENTION})
_QWEN3_5 = Model(
    {_FULL: _GATED, _GDN: _LINEAR},
    sparse=_NEXT_EXPERTS,
    mtp="mtp.",
    mtp_field=("mtp_num_hidden_layers", 1),
    mtp_extra=_FC,
)
_NEXTN = ("num_nextn_predict_layers", 0)
_DEEPSEEK = Model({"": _MLA}, _DENSE, _DEEPSEEK_EXPERTS, "layers.", _NEXTN, _EH)

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "llama": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "qwen3_moe": Model({"": _ATTENTION}, sparse=_EXPERTS),
        "qwen3_next": Model(
            {_FULL: _GATED, _GDN: _NEXT_LINEAR},
            sparse=_NEXT_EXPERTS,
            mtp="mtp.",
            mtp_field=("num_nextn_predict_layers", 1),
            mtp_extra=_FC,
        ),
        "qwen3_5_text": _QWEN3_5,
        "qwen3_5_moe_text": _QWEN3_5,
        "deepseek_v3": _DEEPSEEK,
        "deepseek_v32": Model(
            {"": (*_MLA, *_INDEXER)}, _DENSE, _DEEPSEEK_EXPERTS, "layers.", _NEXTN, _EH
        ),
        "kimi_k2": _DEEPSEEK,
        "gpt_oss": Model({"": _ATTENTION}, sparse=_OSS_EXPERTS, stacked=True),
    }
)
"""model_type of the text model -> its modules."""


@dataclass(frozen=True)
class Wrapper:
    """A multimodal model: `text` is the text model's type, `prefix` lies before its layers."""

    text: str
    prefix: str
    head: str = "lm_head"


WRAPPERS: Mapping[str, Wrapper] = MappingProxyType(
    {
        "qwen3_5": Wrapper("qwen3_5_text", "model.language_model."),
        "qwen3_5_moe": Wrapper("qwen3_5_moe_text", "model.language_model."),
        "kimi_k25": Wrapper("kimi_k2", "language_model.model.", "language_model.lm_head"),
    }
)
"""model_type of a config.json with a text_config."""
