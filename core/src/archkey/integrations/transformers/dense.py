# SPDX-License-Identifier: Apache-2.0
"""Attention over the keys and values that a cache of transformers hands out, where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.integrations.transformers.masks import Spans
from archkey.integrations.transformers.refusals import HINT, OP, refuse
from archkey.ops._checks import bad_value, shape_text, unsupported
from archkey.ops.attention import unified_attention

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch


# No graph of torch.compile: what runs is looked up by a call's metadata, which tracing would pin.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Spans | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, as transformers calls it.

    query           `[B, H, S, D]`
    key, value      `[B, Hk, L, D]` and `[.., Dv]`: the slots of a dynamic or static cache, or of
                    none; not copied, unless their rows lie at different distances
    attention_mask  what `mask` made; a window is the mask's
    scaling         default `D ** -0.5`
    s_aux           `[H]` sinks, natural-log logits

    Returns `([B, S, H, Dv], None)`. Raises Unsupported for dropout, weights, a mask of the caller's
    own, or a module that is not causal, and ArgumentError for what `unified_attention` refuses.
    """
    refuse(module, dropout, options)
    if not isinstance(attention_mask, Spans):
        found = "none" if attention_mask is None else shape_text(attention_mask)
        unsupported(OP, "attention_mask", "`[B, tokens]` for the model, or None", found, HINT)
    batch, heads, queries, head_dim = query.shape
    slots = attention_mask.slots.shape
    if (batch, key.shape[2]) != slots or queries != attention_mask.queries:
        expected = f"of {slots[1]} slots for {attention_mask.queries} queries, as the mask says"
        bad_value(OP, "key", expected, f"{shape_text(key)} for {shape_text(query)}")
    step = _step(key)
    if step is None or step != _step(value):
        key, value = (x.clone(memory_format=torch.contiguous_format) for x in (key, value))
        step = key.shape[1] * key.shape[2]
    table, lengths, cu_seqlens_q = attention_mask.table(query.device, step)
    out = torch.empty(
        batch * queries, heads, value.shape[3], dtype=query.dtype, device=query.device
    )
    window = attention_mask.window
    unified_attention(
        query.transpose(1, 2).reshape(batch * queries, heads, head_dim),
        _rows(key, step),
        _rows(value, step),
        out,
        cu_seqlens_q,
        queries,
        lengths,
        slots[1],
        head_dim**-0.5 if scaling is None else scaling,
        True,
        (-1, -1) if window is None else (window - 1, 0),
        table,
        softcap or 0.0,
        sinks=s_aux,
    )
    return out.view(batch, queries, heads, -1), None


def _step(x: torch.Tensor) -> int | None:
    """Rows from one sequence to the next in `[B, Hk, L, D]`; None if that is no whole number."""
    apart, row = x.stride(0), x.stride(2)
    return apart // row if row and apart % row == 0 and x.stride(3) == 1 else None


def _rows(x: torch.Tensor, step: int) -> torch.Tensor:
    """`[B, Hk, L, D]` as pages of one token, `[rows, 1, Hk, D]`, in place.

    Token j of sequence b is page `b * step + j`. One page a sequence would need no strides, but a
    page size that grows with every token is another problem for a kernel at every token.
    """
    batch, heads, length, width = x.shape
    row = x.stride(2)
    return x.as_strided(((batch - 1) * step + length, 1, heads, width), (row, row, x.stride(1), 1))
