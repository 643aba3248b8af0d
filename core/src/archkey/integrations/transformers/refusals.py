# SPDX-License-Identifier: Apache-2.0
"""What models of transformers may ask of attention and archkey does not compute."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from archkey.ops._checks import unsupported

OP = "archkey.integrations.transformers"

HINT = 'Take another attn_implementation for this module, as in {"vision_config": "sdpa"}.'

# Arguments that change the result, and what they stand for.
_OPTIONS = MappingProxyType(
    {
        "output_attentions": "the weights are never held in memory",
        "position_bias": "a bias between queries and keys",
        "indices": "attention to chosen keys only",
        "block_indices": "attention to chosen blocks only",
        "cu_seq_lens_q": "sequences packed into one row; continuous batching has `paged|`",
    }
)


def refuse(module: Any, dropout: float, options: Mapping[str, Any]) -> None:
    """Raise Unsupported for dropout, for attention that is not causal, and for such arguments."""
    if dropout:
        unsupported(OP, "dropout", "0", dropout, "archkey is for inference: call model.eval().")
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        found = f"{type(module).__name__} with is_causal=False"
        unsupported(OP, "the module", "causal", found, HINT)
    if getattr(getattr(module, "config", None), "output_attentions", False):
        options = {**options, "output_attentions": True}  # set before the implementation was
    for name, what in _OPTIONS.items():
        value = options.get(name)
        if value is not None and value is not False:
            unsupported(OP, name, "off", type(value).__name__, f"Not implemented: {what}. {HINT}")
