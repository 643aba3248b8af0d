# SPDX-License-Identifier: Apache-2.0
"""From a config.json, or the folder of a model, to a `Quantization`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from archkey.checkpoint import compressed_tensors, listed, modelopt, quark
from archkey.checkpoint.quantization import Quantization
from archkey.errors import CheckpointError, nearest

__all__ = ["PRODUCERS", "config_of", "dtype_of", "read", "text_config"]

PRODUCERS: Mapping[str, Callable[[Mapping[str, Any], str], Quantization]] = MappingProxyType(
    {
        "quark": quark.read,
        "compressed-tensors": compressed_tensors.read,
        "modelopt": modelopt.read,
        "modelopt_fp4": modelopt.read,
        "modelopt_mixed": modelopt.read,
        "fp8": listed.read_fp8,
        "mxfp4": listed.read_mxfp4,
    }
)
"""`quant_method` -> reader of the description and of the dtype of what is not quantised."""

_CONFIG, _MODELOPT = "config.json", "hf_quant_config.json"


def read(config: Mapping[str, Any] | str | Path) -> Quantization:
    """What `config` says of the quantisation of a model's weights.

    config  the content of a config.json, its path, or the folder of a model; hf_quant_config.json
            beside it is read, too

    A model without any description is not quantised. CheckpointError for a file that cannot be
    read, a method or a field's value that is not known, and for descriptions that contradict.
    """
    known = config_of(config)
    dtype = dtype_of(known)
    description = _description(known)
    beside = known.get(_MODELOPT)
    if description is None and beside is None:
        return Quantization("none", dtype=dtype)
    if description is None:
        return modelopt.read(beside or {}, dtype)
    method = str(description.get("quant_method"))
    if method not in PRODUCERS:
        raise CheckpointError(
            f"quantization_config.quant_method: found {method!r}; {nearest(method, PRODUCERS)}. "
            f"Known: {', '.join(PRODUCERS)}."
        )
    found = PRODUCERS[method](description, dtype)
    if beside is not None and found.producer == "modelopt":
        _agree(found, modelopt.read(beside, dtype))
    return found


def config_of(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """The content of a config.json; hf_quant_config.json beside it as the entry of that name."""
    if isinstance(config, Mapping):
        return {_MODELOPT: config} if "quantization" in config else config
    path = Path(config)
    folder = path if path.is_dir() else path.parent
    if path.name == _MODELOPT and not (folder / _CONFIG).exists():
        return {_MODELOPT: _json(path)}
    content = _json(folder / _CONFIG if path.is_dir() or path.name == _MODELOPT else path)
    if (folder / _MODELOPT).exists():
        return {**content, _MODELOPT: _json(folder / _MODELOPT)}
    return content


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the text model; the whole of it by itself."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def _description(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization_config, also where it lies in text_config, or under its older name."""
    for place in (config, text_config(config)):
        for name in ("quantization_config", "compression_config"):
            found = place.get(name)
            if isinstance(found, Mapping) and found:
                return found
    return None


def dtype_of(config: Mapping[str, Any]) -> str:
    """The dtype of what is not quantised; bfloat16 where none is said."""
    for place in (text_config(config), config):
        for name in ("dtype", "torch_dtype"):
            if isinstance(place.get(name), str):
                return str(place[name]).removeprefix("torch.")
    return "bfloat16"


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"{path}: {reason}; expected a config.json or the folder that holds it"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected an object")
    return content


def _agree(config: Quantization, beside: Quantization) -> None:
    """ModelOpt writes both files; if they differ, one of them was edited."""
    pairs = (
        ("scheme", config.default, beside.default),
        ("excluded modules", {*config.exclude}, {*beside.exclude}),
        ("quantised layers", {*config.overrides}, {*beside.overrides}),
    )
    for what, here, there in pairs:
        if here != there:
            raise CheckpointError(
                f"{_CONFIG} and {_MODELOPT} differ in their {what}; engines read one or the other. "
                f"Make them agree."
            )
