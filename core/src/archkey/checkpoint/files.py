# SPDX-License-Identifier: Apache-2.0
"""What safetensors files hold, from their headers; no weight is read.

Needs the library `safetensors` (extra `archkey[checkpoint]`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from archkey.checkpoint.layer import Layer
from archkey.errors import CheckpointError

__all__ = ["Header", "from_safetensors", "layers_of"]

_INDEX = "model.safetensors.index.json"

# The format's own words (safetensors' `Dtype`) and torch's.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Header:
    """A tensor in a file: shape, dtype by torch's name, and the file's name."""

    shape: tuple[int, ...]
    dtype: str
    file: str


def from_safetensors(folder: str | Path) -> dict[str, Header]:
    """The tensors of a model's folder by name: those of the index, or of all its files.

    CheckpointError for a folder without safetensors files, for a file that the index names and is
    not there or lacks a tensor, and where the library is not installed.
    """
    root = Path(folder)
    index = root / _INDEX
    if not index.exists():
        files = sorted(root.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{root}: found no *.safetensors and no {_INDEX}")
        return {name: header for file in files for name, header in _headers(file)}
    named = _weight_map(index)
    found = {
        name: header for file in sorted({*named.values()}) for name, header in _headers(root / file)
    }
    for name, file in named.items():
        if name not in found or found[name].file != file:
            raise CheckpointError(f"{index.name}: {name} is not in {file}, where the index puts it")
    return {name: found[name] for name in named}


def layers_of(headers: Mapping[str, Header]) -> tuple[Layer, ...]:
    """The linear modules that `headers` show, for models without a table: 2-D weights by name.

    Of 4-bit weights K is twice what is stored. Embeddings are left out.
    """
    listed = []
    for name, header in headers.items():
        module, _, last = name.rpartition(".")
        if last not in ("weight", "weight_packed") or len(header.shape) != 2:
            continue
        if "embed" in module.rpartition(".")[2]:
            continue
        rows, columns = header.shape
        packed = header.dtype == "uint8"
        listed.append(Layer(module, (rows,), 2 * columns if packed else columns))
    return tuple(listed)


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        return {str(name): str(file) for name, file in content["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no index of weights ({error})") from None


def _headers(path: Path) -> Iterator[tuple[str, Header]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise CheckpointError(
            "headers are read with safetensors, which is not installed: "
            'pip install "archkey[checkpoint]"'
        ) from None
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                piece = file.get_slice(name)
                dtype = piece.get_dtype()
                yield name, Header(tuple(piece.get_shape()), _DTYPES.get(dtype, dtype), path.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from None
