# SPDX-License-Identifier: Apache-2.0
"""The tensors of a linear module: names, shapes and dtypes, as its producer stores them.

A shape is written in N and K, the rows and columns of the weight:

    K/2   two 4-bit elements to a byte            E    experts in one tensor
    K/g   columns over the group, rounded up      S    one for each module that was fused; a scalar,
    N/b   K/b  over the block, rounded up              where none was

Sources: Quark, vllm `quantization/quark/schemes/*.py:create_weights`; compressed-tensors
`compressors/*/base.py:compression_param_names` and `quantization/lifecycle/initialize.py`;
ModelOpt, vllm `quantization/modelopt.py:create_weights`; DeepSeek, vllm `quantization/fp8.py`;
GPT-OSS, transformers `integrations/mxfp4.py` (`_blocks`, `_scales`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from archkey.checkpoint.layer import Layer
from archkey.checkpoint.scheme import Scheme
from archkey.errors import CheckpointError

__all__ = ["LAYOUTS", "Part", "Tensor", "tensors"]

_FLOATS = ("float32", "bfloat16", "float16")
_E4M3 = ("float8_e4m3fn",)
_BYTES = ("uint8",)
_E8M0 = ("uint8", "float8_e8m0fnu")


@dataclass(frozen=True)
class Part:
    """A tensor of a layout: `shape` in the symbols above.

    dtypes  by torch's names: the first is allocated, the others are met in files, too; () is the
            model's own dtype
    static  there only if the activation's scales are stored
    """

    name: str
    shape: tuple[str, ...]
    dtypes: tuple[str, ...] = ()
    static: bool = False


_PACKED = ("N", "K/2")
_GROUPS = ("N", "K/g")
_INPUT = Part("input_scale", ("S",), _FLOATS, static=True)
_FP8 = Part("weight", ("N", "K"), _E4M3)

LAYOUTS: Mapping[str, tuple[Part, ...]] = MappingProxyType(
    {
        "plain": (Part("weight", ("N", "K")),),
        "mxfp4": (
            Part("weight", _PACKED, _BYTES),
            Part("weight_scale", _GROUPS, _E8M0),
            _INPUT,
        ),
        "mxfp4-packed": (
            Part("weight_packed", _PACKED, _BYTES),
            Part("weight_scale", _GROUPS, _E8M0),
            Part("input_global_scale", ("S",), _FLOATS, static=True),
        ),
        "mxfp4-stacked": (
            Part("_blocks", ("E", "N", "K/g", "g/2"), _BYTES),
            Part("_scales", ("E", "N", "K/g"), _BYTES),
        ),
        "nvfp4": (
            Part("weight", _PACKED, _BYTES),
            Part("weight_scale", _GROUPS, _E4M3),
            Part("weight_scale_2", ("S",), _FLOATS),
            _INPUT,
        ),
        "nvfp4-packed": (
            Part("weight_packed", _PACKED, _BYTES),
            Part("weight_scale", _GROUPS, _E4M3),
            Part("weight_global_scale", ("S",), _FLOATS),
            Part("input_global_scale", ("S",), _FLOATS, static=True),
        ),
        "nvfp4-quark": (
            Part("weight", _PACKED, _BYTES),
            Part("weight_scale", _GROUPS, _E4M3),
            Part("weight_scale_2", ("S",), _FLOATS),
            Part("input_scale_2", ("S",), _FLOATS, static=True),
        ),
        "mxfp8": (_FP8, Part("weight_scale", _GROUPS, _E8M0)),
        "fp8-tensor": (_FP8, Part("weight_scale", ("S",), _FLOATS), _INPUT),
        "fp8-channel": (_FP8, Part("weight_scale", ("N",), _FLOATS), _INPUT),
        "fp8-channel-2d": (_FP8, Part("weight_scale", ("N", "1"), _FLOATS), _INPUT),
        "fp8-block": (_FP8, Part("weight_scale", ("N/b", "K/b"), _FLOATS)),
        "fp8-block-4d": (_FP8, Part("weight_scale", ("N/b", "1", "K/b", "1"), _FLOATS)),
        "fp8-block-inv": (_FP8, Part("weight_scale_inv", ("N/b", "K/b"), _FLOATS)),
    }
)
"""How producers store a weight. Keys of `Scheme.layout`."""


@dataclass(frozen=True)
class Tensor:
    """A tensor to allocate: its name in the files, shape, and dtype by torch's name.

    also  dtypes that files have in its place; a loader casts
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    also: tuple[str, ...] = ()


def tensors(scheme: Scheme, layer: Layer, dtype: str, shards: int = 1) -> tuple[Tensor, ...]:
    """The tensors of `layer` under `scheme`.

    dtype   of what is not quantised, by torch's name
    shards  modules that were fused into this one, each with a scale of its own where there is one
            for a whole tensor

    CheckpointError if columns cannot be packed or grouped.
    """
    _check(scheme, layer)
    sizes = _sizes(scheme, layer)
    listed = []
    for part in LAYOUTS[scheme.layout]:
        if part.static and scheme.activation.scaling != "static":
            continue
        joint = "" if part.name.startswith("_") else "."
        shape = tuple(sizes[symbol] for symbol in part.shape if symbol != "S")
        if "S" in part.shape and shards > 1:
            shape = (shards,)
        first, *others = part.dtypes or (dtype,)
        listed.append(Tensor(f"{layer.name}{joint}{part.name}", shape, first, tuple(others)))
    return tuple(listed)


def _check(scheme: Scheme, layer: Layer) -> None:
    """A packed row is whole bytes; NVFP4 has no last group that is shorter."""
    packed = scheme.weight in ("mxfp4", "nvfp4")
    multiple = scheme.block[1] if scheme.weight == "nvfp4" or layer.stack else 2
    if packed and layer.columns % multiple:
        raise CheckpointError(
            f"{layer.name}: {scheme.weight} weights need columns in multiples of {multiple}, "
            f"found [{layer.rows}, {layer.columns}]"
        )
    if layer.stack and scheme.layout != "mxfp4-stacked":
        raise CheckpointError(
            f"{layer.name}: {layer.stack} experts in one tensor are read as GPT-OSS' MXFP4 alone, "
            f"found {scheme}"
        )


def _sizes(scheme: Scheme, layer: Layer) -> dict[str, int]:
    rows, columns = scheme.block
    sizes = {"N": layer.rows, "K": layer.columns, "K/2": layer.columns // 2, "1": 1}
    if columns:
        sizes |= {
            "K/g": -(-layer.columns // columns),
            "g/2": columns // 2,
            "N/b": -(-layer.rows // rows),
            "K/b": -(-layer.columns // columns),
        }
    return sizes | {"E": layer.stack}
