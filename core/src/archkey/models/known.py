# SPDX-License-Identifier: Apache-2.0
"""Models by name: what of their config.json decides which kernels they run.

Sources: config.json of deepseek-ai/DeepSeek-V3 and DeepSeek-V3.2-Exp, moonshotai/Kimi-K2.5 and
Kimi-Linear-48B-A3B-Instruct, zai-org/GLM-5, Qwen/Qwen3.5-397B-A17B, openai/gpt-oss-120b,
meta-llama/Llama-3.3-70B-Instruct. A model that is not here is given by its config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["KNOWN"]

_MLA: dict[str, Any] = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    **_MLA,
}

KNOWN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "deepseek-v3": _DEEPSEEK,
        "deepseek-v3.2": {**_DEEPSEEK, "model_type": "deepseek_v32", "index_topk": 2048},
        "kimi-k2.5": {**_DEEPSEEK, "model_type": "kimi_k2", "num_attention_heads": 64},
        "kimi-linear-48b": {
            "model_type": "kimi_linear",
            "hidden_size": 2304,
            "num_attention_heads": 32,
            **_MLA,
            "q_lora_rank": None,
            "linear_attn_config": {"num_heads": 32, "head_dim": 128},
        },
        "glm-5": {
            "model_type": "glm_moe_dsa",
            "hidden_size": 6144,
            "num_attention_heads": 64,
            **_MLA,
            "q_lora_rank": 2048,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "index_topk": 2048,
        },
        "qwen3.5-397b": {
            "model_type": "qwen3_5_moe_text",
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 256,
        },
        "gpt-oss-120b": {
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
        },
        "llama-3.3-70b": {
            "model_type": "llama",
            "hidden_size": 8192,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    }
)
"""Name -> config."""
