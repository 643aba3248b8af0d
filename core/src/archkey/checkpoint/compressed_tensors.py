# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors (llm-compressor): `quant_method: "compressed-tensors"` in config.json.

    config_groups    {group: {targets, weights, input_activations, output_activations, format}}
    targets, ignore  names, regular expressions after "re:", and classes of modules ("Linear")
    format           how tensors are stored, of all groups or of one
    kv_cache_scheme  {num_bits, type, ...} or null
    weights          {num_bits, type, strategy, group_size, block_structure, dynamic, ...}

A module that no target names is not quantised. Exact names go before regular expressions, and both
before classes. Sources: compressed-tensors `quantization/quant_config.py`, `quant_args.py`,
`quant_scheme.py` (fields, and the strategy that stands for none), `utils/match.py:match_targets`
(order), `compressors/*/base.py:compression_param_names` (tensors); vllm
`quantization/compressed_tensors/utils.py:find_matched_target`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archkey.checkpoint.fields import names, number, one_of, pair, refuse, table, unread
from archkey.checkpoint.patterns import Pattern, producer_pattern
from archkey.checkpoint.quantization import Quantization
from archkey.checkpoint.scheme import NO_ACTIVATION, UNQUANTIZED, Activation, Scheme
from archkey.errors import CheckpointError

__all__ = ["read"]

_KNOWN = (
    *("quant_method", "config_groups", "ignore", "format", "kv_cache_scheme", "sparsity_config"),
    *("transform_config", "quantization_status", "global_compression_ratio", "run_compressed"),
    *("version",),
)

_LINEAR = "Linear"

_UNSTORED = ("dense", "fakequant", "mixed-precision")
"""Formats that say nothing of one group."""

# (bits, strategy, group size) -> format of the weight, what its scale is, layout, formats.
_FLOAT = ("float-quantized", "naive-quantized")
_WEIGHTS: Mapping[tuple[int, str, int], tuple[str, str, str, tuple[str, ...]]] = {
    (4, "group", 32): ("mxfp4", "e8m0", "mxfp4-packed", ("mxfp4-pack-quantized",)),
    (4, "tensor_group", 16): ("nvfp4", "e4m3fn", "nvfp4-packed", ("nvfp4-pack-quantized",)),
    (8, "group", 32): ("mxfp8", "e8m0", "mxfp8", ("mxfp8-quantized",)),
    (8, "tensor", 0): ("fp8", "", "fp8-tensor", _FLOAT),
    (8, "channel", 0): ("fp8", "", "fp8-channel-2d", _FLOAT),
    (8, "block", 0): ("fp8", "float32", "fp8-block", _FLOAT),
}

# (bits, strategy, group size or 0 for any) -> format of the activation, what shares a scale.
_ACTIVATIONS: Mapping[tuple[int, str, int], tuple[str, str]] = {
    (4, "group", 32): ("mxfp4", "group"),
    (4, "tensor_group", 16): ("nvfp4", "group"),
    (8, "group", 32): ("mxfp8", "group"),
    (8, "group", 128): ("fp8", "group"),
    (8, "tensor", 0): ("fp8", "tensor"),
    (8, "token", 0): ("fp8", "token"),
}


def read(description: Mapping[str, Any], dtype: str) -> Quantization:
    """The normal form of `quantization_config`; CheckpointError for what is not known.

    dtype  of what is not quantised, by torch's name
    """
    if not description.get("config_groups"):
        refuse("compressed-tensors: quantization_config", [*description], "config_groups")
    sparsity = table("compressed-tensors: sparsity_config", description.get("sparsity_config"))
    if sparsity.get("format", "dense") != "dense":
        refuse("compressed-tensors: sparsity_config.format", sparsity["format"], "dense")
    rotations = table("compressed-tensors: transform_config", description.get("transform_config"))
    if rotations.get("config_groups"):
        refuse("compressed-tensors: transform_config", [*rotations["config_groups"]], "none")
    named: list[tuple[Pattern, Scheme]] = []
    classes: list[Scheme] = []
    others: list[str] = []
    groups = table("compressed-tensors: config_groups", description.get("config_groups"))
    for name, group in groups.items():
        scheme, targets = _group(name, group, description.get("format"))
        classes += [scheme for target in targets if target == _LINEAR]
        others += [f"config_groups.{name}.targets: {t}" for t in targets if _is_other_class(t)]
        named += [(producer_pattern(t, "name"), scheme) for t in targets if not _is_class(t)]
    if len(set(classes)) > 1:
        raise CheckpointError(
            f"compressed-tensors: {len(set(classes))} config_groups target {_LINEAR!r} with "
            "different schemes; name the modules of all groups but one"
        )
    ignored = names("compressed-tensors: ignore", description.get("ignore"))
    return Quantization(
        producer="compressed-tensors",
        default=classes[0] if classes and _LINEAR not in ignored else UNQUANTIZED,
        exclude=tuple(producer_pattern(text, "name") for text in ignored if not _is_class(text)),
        overrides=tuple(sorted(named, key=lambda rule: rule[0].kind != "name")),
        kv_cache=_kv_cache(description.get("kv_cache_scheme")),
        dtype=dtype,
        unread=(*unread(description, _KNOWN), *others),
    )


def _is_class(target: str) -> bool:
    """Classes are written as Python writes them; modules of models are in lower case."""
    return target[:1].isupper() and "." not in target


def _is_other_class(target: str) -> bool:
    return _is_class(target) and target != _LINEAR


def _group(name: str, group: object, stored: object) -> tuple[Scheme, tuple[str, ...]]:
    """Scheme and targets of a config group; `stored` is the format of all groups."""
    where = f"compressed-tensors: config_groups.{name}"
    if isinstance(group, list):
        refuse(where, group, "a scheme with targets, written out")
    config = table(where, group)
    targets = names(f"{where}.targets", config.get("targets"))
    if config.get("output_activations"):
        refuse(f"{where}.output_activations", config["output_activations"], "null: it is not read")
    if not config.get("weights"):
        return UNQUANTIZED, targets
    weights = table(f"{where}.weights", config["weights"])
    bits, strategy, group_size = key = _key(f"{where}.weights", weights)
    if key not in _WEIGHTS:
        refuse(f"{where}.weights", _key_text(key), f"one of: {'; '.join(map(_key_text, _WEIGHTS))}")
    if weights.get("symmetric") is False:
        refuse(f"{where}.weights.symmetric", False, "true: zero points are not read")
    weight, scale, layout, formats = _WEIGHTS[key]
    written = config.get("format") or stored
    if written is not None and written not in _UNSTORED:
        one_of(f"{where}.format of {weight} weights", written, formats)
    block = (1, group_size) if group_size else (0, 0)
    if strategy == "block":
        block = pair(f"{where}.weights.block_structure", weights.get("block_structure"))
    per = "group" if strategy == "tensor_group" else strategy
    activation = _activation(where, config.get("input_activations"))
    return Scheme(weight, per, block, scale, activation, layout), targets


def _key(where: str, args: Mapping[str, Any]) -> tuple[int, str, int]:
    """(bits, strategy, group size); QuantizationArgs' own rule for a strategy that is not given."""
    if args.get("type", "int") != "float":
        refuse(f"{where}.type", args.get("type", "int"), "float: integer weights are not read")
    size = args.get("group_size")
    inferred = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = str(args.get("strategy") or inferred)
    grouped = strategy in ("group", "tensor_group")
    bits = number(f"{where}.num_bits", args.get("num_bits", 8))
    return bits, strategy, number(f"{where}.group_size", size) if grouped else 0


def _key_text(key: tuple[int, str, int]) -> str:
    return f"{key[0]} bits per {key[1]}" + (f" of {key[2]}" if key[2] else "")


def _activation(where: str, found: object) -> Activation:
    if not found:
        return NO_ACTIVATION
    where = f"{where}.input_activations"
    args = table(where, found)
    key = _key(where, args)
    if key not in _ACTIVATIONS:
        refuse(where, _key_text(key), f"one of: {'; '.join(map(_key_text, _ACTIVATIONS))}")
    kind, per = _ACTIVATIONS[key]
    # "local": the group's scale is made at run time below a stored one of the tensor.
    scaling = "dynamic" if args.get("dynamic") is True else "static"
    return Activation(kind, per, scaling, key[2])


def _kv_cache(found: object) -> str:
    if not found:
        return "none"
    where = "compressed-tensors: kv_cache_scheme"
    args = table(where, found)
    if (args.get("type"), args.get("num_bits")) != ("float", 8):
        refuse(where, f"{args.get('num_bits')} bits {args.get('type')}", "8 bits float")
    return "fp8"
