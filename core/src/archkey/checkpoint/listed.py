# SPDX-License-Identifier: Apache-2.0
"""Descriptions of a method and a list of modules: DeepSeek's and Qwen's "fp8", GPT-OSS' "mxfp4".

    fp8     activation_scheme, weight_block_size, fmt, scale_fmt, ignored_layers or
            modules_to_not_convert
    mxfp4   modules_to_not_convert

Sources: transformers `FineGrainedFP8Config` and `Mxfp4Config`; vllm `quantization/fp8.py`
(`Fp8Config`, `weight_scale_inv`) and `quantization/mxfp4.py`; sglang
`quantization/utils.py:is_layer_skipped` for the lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archkey.checkpoint.fields import names, one_of, pair, refuse, unread
from archkey.checkpoint.patterns import Pattern
from archkey.checkpoint.quantization import NEVER, Quantization
from archkey.checkpoint.scheme import UNQUANTIZED, Activation, Scheme

__all__ = ["read_fp8", "read_mxfp4"]

_LISTS = ("ignored_layers", "modules_to_not_convert")

# DeepSeek-V3 and V3.2 have no list. Their files hold these in bfloat16, and engines build them so:
# vllm `models/deepseek_mtp.py` (eh_proj, shared_head), `models/deepseek_v2.py` (the indexer's
# weights_proj); heads are no LinearBase in `quantization/fp8.py:get_quant_method`.
_FP8_NEVER = (
    *NEVER,
    *(
        Pattern("subtree", text)
        for text in ("lm_head", "eh_proj", "shared_head.head", "indexer.weights_proj")
    ),
)


def read_fp8(description: Mapping[str, Any], dtype: str) -> Quantization:
    """The normal form of `quant_method: "fp8"`; CheckpointError for what is not known."""
    one_of("fp8: fmt", description.get("fmt") or "e4m3", ("e4m3",))
    scaling = one_of(
        "fp8: activation_scheme", description.get("activation_scheme"), ("dynamic", "static")
    )
    block = description.get("weight_block_size")
    mode = str(description.get("scale_fmt") or "")
    if block is None:
        # Dynamic scales are of a token or of a tensor, as the engine likes: no file knows.
        activation = Activation("fp8", "tensor" if scaling == "static" else "token", scaling)
        default = Scheme("fp8", "tensor", activation=activation, layout="fp8-tensor")
    else:
        size = pair("fp8: weight_block_size", block)
        if scaling == "static":
            refuse("fp8: activation_scheme with weight_block_size", scaling, "dynamic")
        activation = Activation("fp8", "group", scaling, size[1], mode)
        default = Scheme("fp8", "block", size, "float32", activation, "fp8-block-inv")
    return Quantization(
        producer="fp8",
        default=default,
        exclude=_excluded("fp8", description),
        never=_FP8_NEVER,
        dtype=dtype,
        unread=unread(
            description,
            ("quant_method", "fmt", "activation_scheme", "weight_block_size", "scale_fmt", *_LISTS),
        ),
    )


def read_mxfp4(description: Mapping[str, Any], dtype: str) -> Quantization:
    """The normal form of `quant_method: "mxfp4"`: GPT-OSS, whose experts alone are quantised."""
    stacked = Scheme("mxfp4", "group", (1, 32), "e8m0", layout="mxfp4-stacked")
    return Quantization(
        producer="mxfp4",
        default=UNQUANTIZED,
        exclude=_excluded("mxfp4", description),
        overrides=((Pattern("subtree", "mlp.experts"), stacked),),
        dtype=dtype,
        unread=unread(description, ("quant_method", *_LISTS)),
    )


def _excluded(method: str, description: Mapping[str, Any]) -> tuple[Pattern, ...]:
    """Both lists: transformers writes one and vllm reads the other."""
    return tuple(
        Pattern("subtree", text)
        for field in _LISTS
        for text in names(f"{method}: {field}", description.get(field))
    )
