# SPDX-License-Identifier: Apache-2.0
"""Small models with latent attention and random weights.

Their latents and heads have the widths of the real models, which the operators are for; all else is
small. No layer has experts: bfloat16 would choose others where two are as good.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
import transformers
from tests.integrations._models import VOCABULARY

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "first_k_dense_replace": 2,
    "mlp_layer_types": ["dense", "dense"],
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,  # the softmax scale is 1.46 times that of the width
}
_FAMILIES = MappingProxyType(
    {
        "DeepSeek-V3": ("DeepseekV3", {}),
        "DeepSeek-V3 YaRN": ("DeepseekV3", {"rope_parameters": _YARN}),
        "DeepSeek-V3 q_proj": ("DeepseekV3", {"q_lora_rank": None, "rope_interleave": False}),
        "DeepSeek-V2": ("DeepseekV2", {"n_group": None, "topk_group": None}),
        "GLM-4 MoE Lite": ("Glm4MoeLite", {"qk_nope_head_dim": 192, "v_head_dim": 256}),
    }
)
FAMILIES = tuple(_FAMILIES)


def make(family: str, dtype: torch.dtype = torch.float32, device: str = "cpu", **sizes: int) -> Any:
    """A model whose attention is far from uniform; of one family the same numbers in any dtype."""
    name, more = _FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**_SIZES | more | sizes)
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return made.requires_grad_(False).to(device, dtype)


class Pair:
    """A family's model in float32 with eager attention, and in bfloat16, on a device."""

    def __init__(self, family: str, device: str) -> None:
        self.device = device
        self.reference = make(family, device=device)
        self.model = make(family, torch.bfloat16, device)
        for model in (self.reference, self.model):
            model.set_attn_implementation("eager")

    def wanted(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        """Logits of what is no padding, and the error that eager bfloat16 has, rms."""
        want, eager = (self.logits(model, batch) for model in (self.reference, self.model))
        return want, float((eager - want).square().mean().sqrt())

    def logits(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of one forward without a cache."""
        batch = self.here(batch)
        return model(**batch, use_cache=False).logits[batch["attention_mask"].bool()].float()

    def here(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the device."""
        return {name: x.to(self.device) for name, x in batch.items()}
