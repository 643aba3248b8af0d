# SPDX-License-Identifier: Apache-2.0
"""Descriptions as each producer writes them, small; and models' configs, small or real."""

from __future__ import annotations

from typing import Any


def mx(*, dynamic: bool) -> dict[str, Any]:
    """Quark's spec of MXFP4, with all the fields that its exporter writes."""
    return {
        "dtype": "fp4",
        "is_dynamic": dynamic,
        "qscheme": "per_group",
        "ch_axis": -1,
        "group_size": 32,
        "block_size": None,
        "symmetric": None,
        "round_method": "half_even",
        "scale_type": "float",
        "scale_format": "e8m0",
        "scale_calculation_mode": "even",
        "mx_element_dtype": None,
        "observer_cls": "PerBlockMXObserver",
        "is_scale_quant": False,
    }


def fp8(qscheme: str, *, dynamic: bool = False, **more: Any) -> dict[str, Any]:
    """Quark's spec of FP8."""
    return {"dtype": "fp8_e4m3", "qscheme": qscheme, "is_dynamic": dynamic, **more}


def specs(weight: Any, inputs: Any = None, outputs: Any = None) -> dict[str, Any]:
    """What Quark gives a layer."""
    return {"weight": weight, "input_tensors": inputs, "output_tensors": outputs, "bias": None}


MXFP4 = specs(mx(dynamic=False), mx(dynamic=True))


def quark(*exclude: str, default: Any = None, **more: Any) -> dict[str, Any]:
    """Quark's description, MXFP4 unless `default` is given."""
    return {
        "quant_method": "quark",
        "quant_mode": "eager_mode",
        "version": "0.11.1",
        "algo_config": None,
        "global_quant_config": default or MXFP4,
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "exclude": [*exclude],
        "export": {
            "weight_format": "real_quantized",
            "pack_method": "reorder",
            "kv_cache_group": [],
        },
        **more,
    }


def args(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    """compressed-tensors' QuantizationArgs."""
    dynamic = more.pop("dynamic", False)
    return {
        "num_bits": bits,
        "type": "float",
        "strategy": strategy,
        "symmetric": True,
        "dynamic": dynamic,
        "group_size": None,
        "block_structure": None,
        **more,
    }


def compressed(
    weights: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    *ignore: str,
    format: str = "float-quantized",
    **more: Any,
) -> dict[str, Any]:
    """compressed-tensors' description with one group, all Linear."""
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "format": format,
        "ignore": [*ignore],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        **more,
    }


def modelopt(algorithm: str, *ignore: str, **more: Any) -> dict[str, Any]:
    """ModelOpt's description in config.json."""
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "ignore": [*ignore],
        "producer": {"name": "modelopt", "version": "0.44.0"},
        **more,
    }


DEEPSEEK_FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
}
GPT_OSS = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def with_quantization(model: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """`model` with a quantization_config."""
    return {**model, "quantization_config": description}


QWEN3_5_SMALL = {
    "model_type": "qwen3_5_moe",
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        "dtype": "bfloat16",
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "layer_types": [*["linear_attention"] * 3, "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 96,
        "vocab_size": 256,
        "mtp_num_hidden_layers": 1,
        "tie_word_embeddings": False,
    },
}

# Real ones. Sources: config.json of meta-llama/Llama-3.1-8B, Qwen/Qwen3-30B-A3B, Qwen/Qwen3.5-27B,
# deepseek-ai/DeepSeek-V3, DeepSeek-V3.2-Exp, openai/gpt-oss-20b.
LLAMA_8B = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
}
QWEN3_5_27B = {
    "model_type": "qwen3_5",
    "text_config": {
        "model_type": "qwen3_5_text",
        "dtype": "bfloat16",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 64,
        "full_attention_interval": 4,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_num_value_heads": 48,
        "linear_value_head_dim": 128,
        "mtp_num_hidden_layers": 1,
        "vocab_size": 248320,
    },
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
DEEPSEEK_V32 = {
    **DEEPSEEK_V3,
    "model_type": "deepseek_v32",
    "index_n_heads": 64,
    "index_head_dim": 128,
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "vocab_size": 201088,
}
