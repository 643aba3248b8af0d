# SPDX-License-Identifier: Apache-2.0
"""AMD Quark: `quant_method: "quark"` in config.json.

    global_quant_config       {weight, input_tensors, output_tensors, bias}, each null, a spec, or a
                              list of specs (NVFP4: elements, then the scale of the scales)
    layer_quant_config        the same by pattern of names; the first that matches
    layer_type_quant_config   the same by class of module
    exclude                   globs, or regular expressions after "re:"
    export                    {weight_format, pack_method, kv_cache_group, ...}
    a spec                    {dtype, qscheme, group_size, block_size, ch_axis, is_dynamic,
                              symmetric, scale_format, scale_calculation_mode, ...}

Sources: vllm and sglang `quantization/quark/quark.py` (`from_config`, `_find_matched_config`,
`_is_w_ocp_mx_a_x`, `_is_fp8_w8a8`, `_is_nvfp4`) and its `schemes/` for the names of tensors; the
block scales of sglang#38998; `transform.py` for rotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archkey.checkpoint.fields import names, number, one_of, pair, refuse, table, unread
from archkey.checkpoint.patterns import Matcher, Pattern, producer_pattern
from archkey.checkpoint.quantization import Quantization
from archkey.checkpoint.scheme import NO_ACTIVATION, UNQUANTIZED, Activation, Scheme

__all__ = ["read"]

_KNOWN = (
    *("quant_method", "global_quant_config", "layer_quant_config", "layer_type_quant_config"),
    *("exclude", "export", "algo_config", "quant_mode", "version"),
)

# (dtype, qscheme, group size, scale format) of the first spec, dtype of the second one.
_WEIGHTS: Mapping[tuple[str, str, int, str, str], tuple[str, str]] = {
    ("fp4", "per_group", 32, "e8m0", ""): ("mxfp4", "mxfp4"),
    ("fp4", "per_group", 16, "", "fp8_e4m3"): ("nvfp4", "nvfp4-quark"),
    ("fp8_e4m3", "per_group", 32, "e8m0", ""): ("mxfp8", "mxfp8"),
    ("fp8_e4m3", "per_tensor", 0, "", ""): ("fp8", "fp8-tensor"),
    ("fp8_e4m3", "per_channel", 0, "", ""): ("fp8", "fp8-channel"),
    ("fp8_e4m3", "per_block", 0, "", ""): ("fp8", "fp8-block-inv"),
}

_SCALES = {"mxfp4": "e8m0", "mxfp8": "e8m0", "nvfp4": "e4m3fn"}
_PER = {"per_tensor": "tensor", "per_channel": "token", "per_group": "group"}
_AXES: Mapping[str, tuple[object, ...]] = {
    "per_group": (None, -1, 1),  # along K
    "per_channel": (None, 0),  # one for a row
}


def read(description: Mapping[str, Any], dtype: str) -> Quantization:
    """The normal form of `quantization_config`; CheckpointError for what is not known.

    dtype  of what is not quantised, by torch's name
    """
    if "global_quant_config" not in description:
        refuse("quark: quantization_config", [*description], "a field global_quant_config")
    export = table("quark: export", description.get("export"))
    one_of(
        "quark: export.weight_format",
        export.get("weight_format", "real_quantized"),
        ("real_quantized",),
    )
    one_of("quark: export.pack_method", export.get("pack_method", "reorder"), ("reorder", "order"))
    _refuse_rotations(description.get("algo_config"))
    cached = names("quark: export.kv_cache_group", export.get("kv_cache_group"))
    layers = table("quark: layer_quant_config", description.get("layer_quant_config"))
    kv_cache = _kv_cache(layers, cached)
    types = table("quark: layer_type_quant_config", description.get("layer_type_quant_config"))
    default = description.get("global_quant_config")
    others = []
    for name, config in types.items():
        if name.strip("'<>").rpartition(".")[2] == "Linear":
            default = config
        else:
            others.append(f"layer_type_quant_config: {name}")
    return Quantization(
        producer="quark",
        default=_scheme("global_quant_config", default, outputs=False),
        exclude=tuple(
            producer_pattern(text, "glob")
            for text in names("quark: exclude", description.get("exclude"))
        ),
        overrides=tuple(
            (
                producer_pattern(text, "glob"),
                _scheme(f"layer_quant_config[{text!r}]", config, outputs=bool(cached)),
            )
            for text, config in layers.items()
        ),
        kv_cache=kv_cache,
        dtype=dtype,
        unread=(*unread(description, _KNOWN), *others),
    )


def _scheme(where: str, config: object, *, outputs: bool) -> Scheme:
    """The scheme of {weight, input_tensors, ...}; quantised outputs only where the cache has them.

    outputs  whether an entry may quantise its output, as those of k_proj and v_proj do
    """
    where = f"quark: {where}"
    specs = table(where, config)
    for name in ("bias", *(() if outputs else ("output_tensors",))):
        if specs.get(name):
            refuse(f"{where}.{name}", specs[name], "null: it is not read")
    weights = _specs(f"{where}.weight", specs.get("weight"))
    if not weights:
        if specs.get("input_tensors"):
            refuse(f"{where}.weight", None, "a spec, because input_tensors has one")
        return UNQUANTIZED
    key = _key(weights)
    if key not in _WEIGHTS:
        known = "; ".join(" ".join(str(part) for part in k if part) for k in _WEIGHTS)
        found = " ".join(str(part) for part in key if part)
        refuse(f"{where}.weight", found, f"one of: {known}")
    first = weights[0]
    if first.get("is_dynamic"):
        refuse(f"{where}.weight.is_dynamic", True, "false: weights are stored quantised")
    if first.get("symmetric") is False:
        refuse(f"{where}.weight.symmetric", False, "true: zero points are not read")
    axes = _AXES.get(key[1], (None, first.get("ch_axis")))
    if first.get("ch_axis") not in axes:
        refuse(f"{where}.weight.ch_axis", first["ch_axis"], f"{axes[-1]} for {key[1]}")
    weight, layout = _WEIGHTS[key]
    per = key[1].removeprefix("per_")
    block = (1, key[2]) if per == "group" else (0, 0)
    scale = _SCALES.get(weight, "")
    if per == "block":
        block, scale = pair(f"{where}.weight.block_size", first.get("block_size")), "float32"
        scale_type = first.get("scale_type") or "float"
        one_of(f"{where}.weight.scale_type", scale_type, ("float", "float32"))
    return Scheme(weight, per, block, scale, _activation(where, specs.get("input_tensors")), layout)


def _specs(where: str, found: object) -> tuple[Mapping[str, Any], ...]:
    if found is None:
        return ()
    listed = found if isinstance(found, list) else [found]
    return tuple(table(where, spec) for spec in listed)


def _key(specs: tuple[Mapping[str, Any], ...]) -> tuple[str, str, int, str, str]:
    first = specs[0]
    qscheme = str(first.get("qscheme"))
    grouped = qscheme == "per_group"
    return (
        str(first.get("dtype")),
        qscheme,
        number("quark: group_size", first.get("group_size")) if grouped else 0,
        str(first.get("scale_format") or "") if grouped and len(specs) == 1 else "",
        "+".join(str(spec.get("dtype")) for spec in specs[1:]),
    )


def _activation(where: str, found: object) -> Activation:
    where = f"{where}.input_tensors"
    specs = _specs(where, found)
    if not specs:
        return NO_ACTIVATION
    key = _key(specs)
    first = specs[0]
    if key not in _WEIGHTS and key[:2] != ("fp8_e4m3", "per_group"):
        refuse(where, " ".join(str(part) for part in key if part), "a format that is known")
    kind = _WEIGHTS[key][0] if key in _WEIGHTS else "fp8"
    # Two specs are NVFP4: the group's scale is made at run time below a stored one of the tensor.
    static = len(specs) > 1 or not first.get("is_dynamic")
    mode = "" if static else str(first.get("scale_calculation_mode") or "")
    return Activation(
        kind,
        _PER[one_of(f"{where}.qscheme", key[1], _PER)],
        "static" if static else "dynamic",
        key[2],
        mode,
    )


def _kv_cache(layers: Mapping[str, Any], cached: tuple[str, ...]) -> str:
    """The format of the KV cache: that of the outputs which `kv_cache_group` names."""
    if not cached:
        return "none"
    wanted = Matcher(Pattern("glob", text) for text in cached)
    outputs = [
        table("quark: output_tensors", config.get("output_tensors"))
        for text, config in layers.items()
        if text in cached or wanted.find(text)
    ]
    dtypes = {str(spec.get("dtype")) for spec in outputs}
    if dtypes != {"fp8_e4m3"}:
        found = sorted(dtypes) or "no entry of layer_quant_config"
        refuse(f"quark: KV cache of {', '.join(cached)}", found, "output_tensors of fp8_e4m3")
    return "fp8"


def _refuse_rotations(found: object) -> None:
    """Online rotations change what a layer computes; algorithms that end in the weights do not."""
    algorithms = found if isinstance(found, list) else [found] if found else []
    for algorithm in algorithms:
        config = table("quark: algo_config", algorithm)
        online = table("quark: online_config", config.get("online_config"))
        if online.get("online_rotation_layers"):
            refuse(
                "quark: algo_config.online_config.online_rotation_layers",
                online["online_rotation_layers"],
                "none: rotated activations are not read",
            )
