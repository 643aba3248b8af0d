# SPDX-License-Identifier: Apache-2.0
"""One rank's share of a module under tensor parallelism; what would cut a block is refused."""

from __future__ import annotations

from dataclasses import replace

from archkey.checkpoint.layer import CUTS, Layer
from archkey.checkpoint.scheme import Scheme
from archkey.errors import ArgumentValueError, CheckpointError

__all__ = ["share"]


def share(layer: Layer, scheme: Scheme, tp: int) -> Layer:
    """`layer` as each of `tp` ranks holds it.

    "column" cuts each of its parts, and heads never; "row" cuts K. CheckpointError where the
    rows, columns or heads do not divide, and where a group or block would lie on two ranks: its
    scale could be on one alone. (vllm `quantization/fp8.py:create_weights` refuses the same.)
    """
    if layer.cut not in CUTS:
        raise ArgumentValueError(
            f"{layer.name}: cut: found {layer.cut!r}; expected one of {', '.join(CUTS)}"
        )
    if tp == 1:
        return layer
    if layer.cut == "row":
        columns = _divided(layer, layer.columns, tp, "columns")
        _refuse_cut_block(layer, scheme, columns, 1, tp)
        return replace(layer, columns=columns)
    if layer.cut == "replicated":
        return layer
    ranks = _ranks_of_heads(layer, tp)
    parts = tuple(_divided(layer, part, ranks, "rows") for part in layer.parts)
    for part in parts if ranks > 1 else ():
        _refuse_cut_block(layer, scheme, part, 0, tp)
    return replace(layer, parts=parts, heads=layer.heads // ranks)


def _ranks_of_heads(layer: Layer, tp: int) -> int:
    """How many different shares there are: `tp`, or as many as heads that ranks hold together."""
    if layer.heads and layer.heads % tp:
        if layer.shared_heads and tp % layer.heads == 0:
            return layer.heads
        raise CheckpointError(
            f"{layer.name}: {layer.heads} heads cannot be shared by {tp} ranks; choose a divisor"
        )
    return tp


def _divided(layer: Layer, size: int, ranks: int, what: str) -> int:
    if size % ranks:
        raise CheckpointError(
            f"{layer.name}: {size} {what} of [{layer.rows}, {layer.columns}] cannot be shared by "
            f"{ranks} ranks; choose a divisor"
        )
    return size // ranks


def _refuse_cut_block(layer: Layer, scheme: Scheme, size: int, axis: int, tp: int) -> None:
    """Refuse a share of `size` rows (axis 0) or columns (1) that ends inside a block."""
    block = scheme.block[axis]
    if block and size % block:
        what = ("rows", "columns")[axis]
        raise CheckpointError(
            f"{layer.name}: with {tp} ranks each has {size} {what}, which cuts the {scheme.per}s "
            f"of {block} that share a scale ({scheme}); choose fewer ranks, or replicate it"
        )
