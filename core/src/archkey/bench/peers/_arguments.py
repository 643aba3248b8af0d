# SPDX-License-Identifier: Apache-2.0
"""archkey's arguments as adapters pass them on: their names by operator, and their values.

Reading values waits for the device: an adapter does it while binding, never in its call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archkey.bench.peers._refusals import require

__all__ = [
    "MERGE",
    "MLA_DECODE",
    "MLA_PREFILL",
    "SEGMENTS",
    "UNIFIED",
    "given",
    "number",
    "output_dtype",
    "scalar",
    "softmax_scale",
    "wants_lse",
]

_HINTS = ("max_seqlen_q", "max_seqlen_k")
"""Arguments that bound sizes and change no result."""

SEGMENTS = (
    "seq_threshold_3D", "num_par_softmax_segments", "softmax_segm_output", "softmax_segm_max",
    "softmax_segm_expsum",
)  # fmt: skip
"""A workspace of unified_attention, for a split over keys; it changes no result."""

UNIFIED = (
    "q", "k", "v", "out", "cu_seqlens_q", "seqused_k", *_HINTS, "softmax_scale", "causal",
    "block_table",
)  # fmt: skip
"""Arguments of unified_attention that every library has a counterpart for."""

MLA_DECODE = (
    "q", "kv_cache", "block_table", "cache_seqlens", *_HINTS, "softmax_scale", "sm_scale", "causal",
)  # fmt: skip
"""Arguments of mla_decode that every library has a counterpart for."""

MLA_PREFILL = (
    "q", "k", "v", "out", "cu_seqlens_q", "cu_seqlens_k", *_HINTS, "softmax_scale", "sm_scale",
    "causal", "enable_pdl",
)  # fmt: skip
"""Arguments of mla_prefill that every library has a counterpart for."""

MERGE = ("out_a", "lse_a", "out_b", "lse_b", "out", "lse")
"""Arguments of merge_attn_states."""


def given(inputs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of the arguments that the call has; the others keep the library's defaults."""
    return {name: inputs[name] for name in names if inputs.get(name) is not None}


def output_dtype(inputs: Mapping[str, Any], default: torch.dtype, name: str = "out") -> torch.dtype:
    """That of the output which the caller passes, `default` without one.

    Adapters write to memory of their own, which has the layout that the library wants.
    """
    out = inputs.get(name)
    return default if out is None else out.dtype


def number(value: Any, name: str) -> float:
    """A factor as a number, read once while binding; None is 1."""
    if value is None:
        return 1.0
    if isinstance(value, torch.Tensor):
        require(value.numel() == 1, f"{name} of shape {list(value.shape)}")
    return float(value)


def scalar(value: Any, name: str, device: torch.device) -> torch.Tensor:
    """A factor as a float32 tensor `[1]` on `device`; None is 1."""
    if isinstance(value, torch.Tensor):
        require(value.numel() == 1, f"{name} of shape {list(value.shape)}")
        return value.reshape(1)
    return torch.full((1,), 1.0 if value is None else value, dtype=torch.float32, device=device)


def softmax_scale(inputs: Mapping[str, Any]) -> float:
    """softmax_scale, or sm_scale, which is the same."""
    scale = inputs.get("softmax_scale")
    return float(inputs["sm_scale"] if scale is None else scale)


def wants_lse(inputs: Mapping[str, Any]) -> bool:
    """Whether the call asks for the logarithms."""
    return bool(inputs.get("return_lse")) or inputs.get("lse") is not None
