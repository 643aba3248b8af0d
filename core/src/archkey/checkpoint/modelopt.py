# SPDX-License-Identifier: Apache-2.0
"""NVIDIA ModelOpt: hf_quant_config.json, and `quant_method: "modelopt"` in config.json.

    hf_quant_config.json             config.json
    quantization.quant_algo          quant_algo          one of ALGORITHMS
    quantization.exclude_modules     ignore              globs; without wildcard, whole subtrees
    quantization.kv_cache_quant_algo kv_cache_scheme     of the KV cache
    quantization.quantized_layers    quantized_layers    algorithm by module, for MIXED_PRECISION
    quantization.group_size          in config_groups

With MIXED_PRECISION, what `quantized_layers` does not name is not quantised. Sources: NVIDIA
Model-Optimizer `torch/export/convert_hf_config.py` (fields, algorithms); vllm
`quantization/modelopt.py` (`is_layer_excluded`, `_resolve_quant_algo`, the LinearMethods' tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from archkey.checkpoint.fields import names, number, refuse, table, unread
from archkey.checkpoint.patterns import Pattern
from archkey.checkpoint.quantization import Quantization
from archkey.checkpoint.scheme import UNQUANTIZED, Activation, Scheme
from archkey.errors import CheckpointError, nearest

__all__ = ["ALGORITHMS", "read"]

_STATIC = Activation("fp8", "tensor", "static")
_NVFP4 = Activation("nvfp4", "group", "static", 16)
_MXFP8 = Activation("mxfp8", "group", "dynamic", 32)
_MXFP4 = Activation("mxfp4", "group", "dynamic", 32)

ALGORITHMS: Mapping[str, Scheme] = MappingProxyType(
    {
        "FP8": Scheme("fp8", "tensor", activation=_STATIC, layout="fp8-tensor"),
        "FP8_PER_CHANNEL_PER_TOKEN": Scheme(
            "fp8", "channel", activation=Activation("fp8", "token", "dynamic"), layout="fp8-channel"
        ),
        "FP8_PB_WO": Scheme("fp8", "block", (128, 128), "float32", layout="fp8-block-4d"),
        "NVFP4": Scheme("nvfp4", "group", (1, 16), "e4m3fn", _NVFP4, "nvfp4"),
        "W4A16_NVFP4": Scheme("nvfp4", "group", (1, 16), "e4m3fn", layout="nvfp4"),
        "NVFP4_W4A16": Scheme("nvfp4", "group", (1, 16), "e4m3fn", layout="nvfp4"),
        "MXFP8": Scheme("mxfp8", "group", (1, 32), "e8m0", _MXFP8, "mxfp8"),
        "MXFP4": Scheme("mxfp4", "group", (1, 32), "e8m0", _MXFP4, "mxfp4"),
        "W4A8_MXFP4_FP8": Scheme("mxfp4", "group", (1, 32), "e8m0", _STATIC, "mxfp4"),
    }
)
"""quant_algo -> scheme. UNQUANTIZED and MIXED_PRECISION are read beside it."""

_KNOWN = (
    *("quant_method", "quant_algo", "ignore", "exclude_modules", "kv_cache_scheme", "group_size"),
    *("kv_cache_quant_algo", "quantized_layers", "config_groups", "producer", "version"),
)


def read(description: Mapping[str, Any], dtype: str) -> Quantization:
    """The normal form of either file's description; CheckpointError for what is not known.

    dtype  of what is not quantised, by torch's name
    """
    fields = {**description, **table("modelopt: quantization", description.get("quantization"))}
    fields.pop("quantization", None)
    algorithm = str(fields.get("quant_algo") or "").upper()
    layers = table("modelopt: quantized_layers", fields.get("quantized_layers"))
    mixed = algorithm == "MIXED_PRECISION"
    if mixed and not layers:
        refuse("modelopt: quantized_layers", layers, "a module or more, with MIXED_PRECISION")
    excluded = fields.get("exclude_modules")
    return Quantization(
        producer="modelopt",
        default=UNQUANTIZED if mixed else _scheme("quant_algo", algorithm, fields),
        exclude=tuple(
            _pattern(text)
            for text in names(
                "modelopt: ignore", excluded if excluded is not None else fields.get("ignore")
            )
        ),
        overrides=tuple(
            (Pattern("subtree", name), _layer(name, config)) for name, config in layers.items()
        )
        if mixed
        else (),
        kv_cache=_kv_cache(fields),
        dtype=dtype,
        unread=unread(fields, _KNOWN),
    )


def _pattern(text: str) -> Pattern:
    return Pattern("glob" if any(letter in text for letter in "*?[") else "subtree", text)


def _layer(name: str, config: object) -> Scheme:
    where = f"quantized_layers[{name!r}]"
    fields = table(f"modelopt: {where}", config)
    algorithm = str(fields.get("quant_algo") or "").upper()
    if algorithm == "UNQUANTIZED":
        return UNQUANTIZED
    return _scheme(f"{where}.quant_algo", algorithm, fields)


def _scheme(where: str, algorithm: str, fields: Mapping[str, Any]) -> Scheme:
    if algorithm not in ALGORITHMS:
        raise CheckpointError(
            f"modelopt: {where}: found {algorithm!r}; {nearest(algorithm, ALGORITHMS)}. "
            f"Known: {', '.join(ALGORITHMS)}, MIXED_PRECISION."
        )
    scheme = ALGORITHMS[algorithm]
    size = fields.get("group_size")
    if size is not None and scheme.per in ("group", "block"):
        columns = number(f"modelopt: {where}: group_size", size)
        if columns != scheme.block[1]:
            refuse(f"modelopt: {where}: group_size of {algorithm}", size, str(scheme.block[1]))
    return scheme


def _kv_cache(fields: Mapping[str, Any]) -> str:
    """FP8 by name, or as {num_bits: 8, type: float}."""
    found = fields.get("kv_cache_quant_algo") or fields.get("kv_cache_scheme")
    if not found:
        return "none"
    if isinstance(found, Mapping):
        found = "FP8" if (found.get("num_bits"), found.get("type")) == (8, "float") else found
    formats = {"FP8": "fp8", "NVFP4": "nvfp4"}
    if not isinstance(found, str) or found.upper() not in formats:
        refuse("modelopt: KV cache", found, " or ".join(formats))
    return formats[found.upper()]
