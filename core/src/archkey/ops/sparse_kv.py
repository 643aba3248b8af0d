# SPDX-License-Identifier: Apache-2.0
"""Rows into and out of packed sparse-KV caches, and indices from positions to slots.

The byte layouts are in `archkey.ops._sparse_kv`; their plain definition is
`archkey.formats.sparse_kv`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from archkey.ops import _mla_checks as checks
from archkey.ops._checks import check_no_grad
from archkey.ops._contract import public
from archkey.ops._memo import metadata, remember
from archkey.ops._operand import layouts
from archkey.ops._sparse_kv import PACKED
from archkey.ops._sparse_kv_operands import (
    dequantize_problem,
    flat_rows,
    logical_problem,
    new_cache,
    quantize_problem,
    validate_distinct,
)
from archkey.ops._sparse_mla_contract import (
    DequantizeSparseKvProblem,
    LogicalToPhysicalIndicesProblem,
    QuantizeSparseKvProblem,
)
from archkey.ops._sparse_mla_operands import as_bytes

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = [
    "DequantizeSparseKvProblem",
    "LogicalToPhysicalIndicesProblem",
    "QuantizeSparseKvProblem",
    "dequantize_sparse_kv",
    "logical_to_physical_indices",
    "quantize_sparse_kv",
]


@public
def quantize_sparse_kv(
    session: Session,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor | None,
    *,
    format: str = "fp8_v32",
    scale_mode: str = "fp32",
    out: torch.Tensor | None = None,
    slot_mapping: torch.Tensor | None = None,
) -> torch.Tensor:
    """Quantise latents, and copy rope keys as bfloat16, into a packed cache.

    k_nope        `[T, n]`, or `[num_blocks, page_size, n]` for a whole cache; n is the format's
                  latent width; bfloat16, float16 or float32; last stride 1
    k_rope        the same but r wide; None for a format without rope
    format        a packed format; "_fnuz" ones on gfx942
    scale_mode    "fp32": a tile's scale is amax / max_fp8; "pow2": that, rounded up to a power of
                  two, which ue8m0 scales (fp8_model1) require. An all-zero tile has a tiny scale
    out           the cache `[num_blocks, page_size, row_bytes]`, bytes or FP8; other slots keep
                  their bytes; default: a new one of k_nope's pages (`[T, n]`: pages of one)
    slot_mapping  `[T]` int32 or int64: the slot of each token, outside the cache: dropped;
                  default: token t goes to slot t. It needs `out`

    Returns out.
    """
    op = "quantize_sparse_kv"
    key = (op, metadata(k_nope, k_rope, out), layouts(slot_mapping), format, scale_mode)
    problem = session.problems.get(key)
    if problem is None:
        problem = quantize_problem(session, k_nope, k_rope, format, scale_mode, out, slot_mapping)
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, k_nope, k_rope)
    if out is None:
        out = new_cache(k_nope, PACKED[format])
    if session.validate and slot_mapping is not None:
        validate_distinct(op, slot_mapping, math.prod(checks.pages_of(out).shape[:2]))
    run = session.launcher(problem)
    if k_nope.numel():
        cache = as_bytes(checks.pages_of(out))
        rope = None if k_rope is None else flat_rows(k_rope)
        run(flat_rows(k_nope), rope, slot_mapping, cache, format, scale_mode, cache)
    return out


@public
def dequantize_sparse_kv(
    session: Session,
    kv_cache: torch.Tensor,
    *,
    format: str = "fp8_v32",
    slot_mapping: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Unpack rows of a packed cache: latent, then rope.

    kv_cache      `[num_blocks, page_size, row_bytes]`, or 4-D with a unit dim at 1 or 2
    slot_mapping  `[T]` int32 or int64: the slots wanted; one outside the cache gives zeros;
                  default: all of them
    out           contiguous, bfloat16 or float16; default new, bfloat16

    Returns out: `[T, d]`, or `[num_blocks, page_size, d]` without slot_mapping.
    """
    op = "dequantize_sparse_kv"
    key = (op, metadata(kv_cache, out), layouts(slot_mapping), format)
    problem = session.problems.get(key)
    if problem is None:
        problem = dequantize_problem(session, kv_cache, format, slot_mapping, out)
        remember(session.problems, key, problem)
    cache, width = as_bytes(checks.pages_of(kv_cache)), PACKED[format].head_dim
    if out is None:
        lead = cache.shape[:2] if slot_mapping is None else slot_mapping.shape
        out = torch.empty((*lead, width), dtype=torch.bfloat16, device=cache.device)
    run = session.launcher(problem)
    if out.numel():
        run(cache, slot_mapping, format, flat_rows(out))
    return out


@public
def logical_to_physical_indices(
    session: Session,
    indices: torch.Tensor,
    block_table: torch.Tensor,
    page_size: int,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Positions in a sequence to slots of the cache: `table[b, i // page] * page + i % page`.

    indices      `[B, k]` or `[B, q_len, k]` int32; block_table `[B, n]` int32; last strides 1
    out          int32 of the shape of `indices`; default new

    An entry that is negative or past the table becomes -1, as does one whose page is negative or
    whose slot does not fit int32: -1 stays -1, and garbage never becomes another token's slot.

    Returns out.
    """
    op = "logical_to_physical_indices"
    key = (op, layouts(indices, block_table, out), page_size)
    problem = session.problems.get(key)
    if problem is None:
        problem = logical_problem(indices, block_table, page_size, out)
        remember(session.problems, key, problem)
    if out is None:
        out = torch.empty(indices.shape, dtype=torch.int32, device=indices.device)
    run = session.launcher(problem)
    if out.numel():
        run(indices, block_table, page_size, out)
    return out
