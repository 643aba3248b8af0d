# SPDX-License-Identifier: Apache-2.0
"""Small models of real architectures with random weights, for the tests with transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 97
WINDOW = 8
"""Of the layers that have one; shorter than the longest prompts."""

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA = {**_SIZES, "sliding_window": WINDOW, "query_pre_attn_scalar": 9, "layer_types": _MIXED}

# Each for what its attention has that the others have not.
_FAMILIES = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _SIZES),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _SIZES),  # norms of queries and keys
    "Mistral": ("MistralForCausalLM", "MistralConfig", {**_SIZES, "sliding_window": WINDOW}),
    "Gemma2": (  # softcap
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": None},
    ),
    "Gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA),  # a scale of its own
    "GPT-OSS": (  # sinks
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            **_SIZES,
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}
FAMILIES = tuple(_FAMILIES)
MODELS: dict[str, Any] = {}
"""Models on the CPU that were made already; a test sets the attention that it wants."""


def make(family: str, **sizes: int) -> Any:
    """A float32 model on the CPU whose attention is far from uniform, and whose sinks matter."""
    model, config, fields = _FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**fields | sizes)).eval()
    for name, parameter in made.named_parameters():
        if "sinks" in name:
            torch.nn.init.normal_(parameter, std=2.0)
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return made.requires_grad_(False)


def small(family: str, attention: str) -> Any:
    """The model of `family` with `attention` as its implementation."""
    if family not in MODELS:
        MODELS[family] = make(family)
    MODELS[family].set_attn_implementation(attention)
    return MODELS[family]


def tokens(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random prompts of these lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def padded(prompts: list[list[int]], side: str = "left") -> dict[str, torch.Tensor]:
    """input_ids and attention_mask of a batch, as a tokenizer gives them."""
    longest = max(map(len, prompts))
    rows = []
    for prompt in prompts:
        gap = [0] * (longest - len(prompt))
        rows.append(gap + prompt if side == "left" else prompt + gap)
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}
