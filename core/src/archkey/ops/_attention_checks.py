# SPDX-License-Identifier: Apache-2.0
"""Checks of unified attention's arguments: metadata, and under ARCHKEY_VALIDATE=1 values too."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from archkey.ops._checks import (
    FLOATS,
    FP8,
    bad_type,
    bad_value,
    check_apart,
    check_dtype,
    check_fp8,
    check_same_device,
    check_shape,
    check_tensor,
    shape_text,
    unsupported,
)
from archkey.ops._operand import check_operand

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.session import Session
else:
    from archkey._torch import torch

OP = "unified_attention"
MAX_HEAD_DIM = 512
_FARTHEST = 2**31 - 1
"""From page to page; a page's number times it has 64 bits."""

# What an engine may ask for beyond the contract, and why that is refused.
_EXTRAS = MappingProxyType(
    {
        "mm_prefix_range": "bidirectional ranges inside a causal mask",
        "use_alibi_sqrt": "square-root ALiBi",
        "kv_quant_mode": "an INT8, INT4 or NVFP4 cache; FP8 needs no mode, only descales",
        "q_scales": "an NVFP4 query",
        "raw_k": "this step's keys beside a cache of another format",
        "raw_v": "this step's values beside a cache of another format",
        "k_scale_cache": "scales per token and head of an INT8 or FP8 cache",
        "v_scale_cache": "scales per token and head of an INT8 or FP8 cache",
        "shuffled_kv_cache": "the [blocks, Hk, D/x, page, x] cache layout",
        "skip_reduce": "split results that were not reduced",
        "topk": "a draft tree wider than one; write its mask into qq_bias",
    }
)
# FP8 with one scale a tensor is what descales say, and a tree of width one is a chain.
_HARMLESS = MappingProxyType({"kv_quant_mode": 1, "topk": 1})


def refuse_extras(extras: dict[str, Any]) -> None:
    """An option that is off passes; one that is on is Unsupported; another name is a TypeError."""
    for name, value in extras.items():
        if name not in _EXTRAS:
            bad_type(OP, "the call", "made with known keywords only", name)
        if isinstance(value, torch.Tensor) or (value and value != _HARMLESS.get(name)):
            unsupported(OP, name, "off", value, f"Not implemented: {_EXTRAS[name]}.")


def operands(
    session: Session, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str, q_descale: Any
) -> tuple[torch.Tensor, torch.Tensor, str, str]:
    """(k and v as `[blocks, page_size, Hk, D]` views, dtype of q, dtype of the cache)."""
    dtype = check_operand(OP, "q", q, FLOATS + FP8, 3, q)
    kv_dtype = check_operand(OP, "k", k, (dtype, *FP8), 4, q)
    check_operand(OP, "v", v, (kv_dtype,), 4, q)
    if layout == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    elif layout != "NHD":
        bad_value(OP, "kv_layout", "'NHD' or 'HND'", repr(layout))
    shape, heads, head_dim = k.shape, q.shape[1], q.shape[2]
    if shape[3] != head_dim:
        bad_value(OP, "k", f"{head_dim} wide like q", shape_text(k))
    if v.shape[:3] != shape[:3]:
        bad_value(OP, "v", f"of shape {[*shape[:3], 'any']} like k", shape_text(v))
    check_fp8(OP, "q", dtype, session.fp8)
    check_fp8(OP, "k", kv_dtype, session.fp8)
    if dtype in FP8 and q_descale is None:
        hint = "An FP8 query has no scale of its own; pass 1.0 if it needs none."
        bad_value(OP, "q_descale", "given with an FP8 q", "None", hint)
    width = max(head_dim, v.shape[3])
    if width > MAX_HEAD_DIM or not head_dim or not v.shape[3]:
        hint = "The latent cache of MLA is mla_decode's."
        bad_value(OP, "the head dim", f"1 to {MAX_HEAD_DIM}", width, hint)
    page_size, kv_heads = shape[1], shape[2]
    for name, cache in (("k", k), ("v", v)):
        if cache.stride(0) > _FARTHEST:
            expected = f"with pages at most {_FARTHEST} elements apart"
            bad_value(OP, name, expected, cache.stride(0))
    if page_size < 1:
        bad_value(OP, "k's page size", "1 or more", page_size)
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        bad_value(OP, "q's heads", f"a multiple of k's {kv_heads}", heads)
    return k, v, dtype, kv_dtype


def out_dtype(
    session: Session, out: Any, q: torch.Tensor, shape: tuple[int, ...], output_scale: Any
) -> str:
    """dtype of out; an FP8 one needs a scale."""
    dtype = check_operand(OP, "out", out, FLOATS + FP8, shape, q)
    check_apart(OP, "out", out)
    if dtype in FP8:
        check_fp8(OP, "out", dtype, session.fp8)
        if output_scale is None:
            bad_value(OP, "output_scale", "given with an FP8 out", "None")
    return dtype


def lengths(
    q: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    max_seqlen_k: int,
    page_size: int,
) -> int:
    """Number of sequences."""
    check_operand(OP, "seqused_k", seqused_k, ("int32",), 1, q)
    sequences = seqused_k.shape[0]
    check_operand(OP, "cu_seqlens_q", cu_seqlens_q, ("int32",), (sequences + 1,), q)
    check_operand(OP, "block_table", block_table, ("int32",), 2, q)
    rows, columns = block_table.shape
    if rows < sequences or columns * page_size < max_seqlen_k:
        need = f"at least [{sequences}, {-(-max_seqlen_k // page_size)}] for max_seqlen_k"
        bad_value(OP, "block_table", f"of shape {need}", shape_text(block_table))
    return sequences


def numbers(softmax_scale: Any, softcap: Any) -> None:
    """The scale is positive and finite; so is the softcap, or 0."""
    for name, value in (("softmax_scale", softmax_scale), ("softcap", softcap)):
        if not isinstance(value, float | int):
            hint = "A tensor would have to be read on the host; take .item() once."
            bad_type(OP, name, "a number", type(value).__name__, hint)
    if not 0 < softmax_scale < float("inf"):
        bad_value(OP, "softmax_scale", "positive and finite", softmax_scale)
    if not 0 <= softcap < float("inf"):
        bad_value(OP, "softcap", "0 (off), or positive and finite", softcap)


def vector(name: str, x: Any, heads: int, q: torch.Tensor) -> str:
    """dtype of an optional contiguous `[H]`, or "none"."""
    if x is None:
        return "none"
    return check_operand(OP, name, x, FLOATS, (heads,), q)


def query_bias(qq_bias: Any, max_seqlen_q: int, q: torch.Tensor) -> str:
    """dtype of the optional bias between queries, or "none"."""
    if qq_bias is None:
        return "none"
    dtype = check_operand(OP, "qq_bias", qq_bias, FLOATS, 2, q)
    if min(qq_bias.shape) < max_seqlen_q:
        need = f"[Q, Q] with Q >= max_seqlen_q = {max_seqlen_q}"
        bad_value(OP, "qq_bias", f"of shape {need}", shape_text(qq_bias))
    return dtype


def factor(name: str, x: Any, q: torch.Tensor, per_head: tuple[int, int] | None) -> str:
    """Kind of a scale: "none", "number", "tensor" or, if `per_head` allows it, "per_head"."""
    if x is None:
        return "none"
    if isinstance(x, float | int):
        return "number"
    check_tensor(OP, name, x)
    check_dtype(OP, name, x, ("float32",))
    check_same_device(OP, q, **{name: x})
    if per_head is not None and x.shape == per_head:
        return "per_head"
    if x.numel() != 1:
        shapes = "one element" if per_head is None else f"one element or {list(per_head)}"
        bad_value(OP, name, f"a tensor of {shapes}", shape_text(x))
    return "tensor"


def segments(
    buffers: tuple[Any, Any, Any], number: int | None, rows: int | None, q: torch.Tensor, width: int
) -> int:
    """Parts of the split that the caller's three buffers hold; 0 without them.

    0 too for more queries than they or `rows` allow: engines pass them to every call, and mean by
    seq_threshold_3D the largest batch that is worth a split.
    """
    if buffers == (None, None, None):
        return 0
    names = ("softmax_segm_output", "softmax_segm_max", "softmax_segm_expsum")
    for name, buffer in zip(names, buffers, strict=True):
        dims = 4 if name == names[0] else 3
        check_operand(OP, name, buffer, ("float32",), dims, q)
    output = buffers[0]
    found = output.shape
    parts = int(found[2]) if number is None else number
    for name, buffer in zip(names[1:], buffers[1:], strict=True):
        check_shape(OP, name, buffer, (found[0], q.shape[1], parts))
    most = found[0] if rows is None else rows
    if found[0] < most or found[1:3] != (q.shape[1], parts) or found[3] < width:
        need = f"at least [{most}, {q.shape[1]}, {parts}, {width}]"
        bad_value(OP, names[0], f"of shape {need}", shape_text(output))
    return parts if q.shape[0] <= most else 0


def lse_of(lse: Any, tokens: int, heads: int, q: torch.Tensor) -> bool:
    """Whether lse is wanted; its strides are free, so `[H, T].T` will do."""
    if lse is None:
        return False
    check_tensor(OP, "lse", lse)
    check_dtype(OP, "lse", lse, ("float32",))
    check_shape(OP, "lse", lse, (tokens, heads))
    check_same_device(OP, q, lse=lse)
    check_apart(OP, "lse", lse)
    return True


# ---- of every call: what changes from call to call while the tensors stay as they are


def window(causal: bool, window_size: Any) -> int:
    """Earlier keys that stay visible; -1: all of them."""
    if not causal:
        bad_value(OP, "causal", "True", causal, "Only causal attention reads this cache.")
    try:
        left, right = window_size
    except (TypeError, ValueError):
        bad_value(OP, "window_size", "a pair (left, 0), or (-1, -1)", window_size)
    if right > 0:
        bad_value(OP, "window_size[1]", "0 or -1", right, "A causal query sees no later key.")
    return left if left >= 0 else -1


def planned(problem: Any, plan: Any) -> Run:
    """The kernel of a plan that was made for `problem`."""
    if getattr(plan, "problem", None) != problem:
        hint = f"Make one with session.plan({problem})."
        bad_value(OP, "plan", "a plan for this call's problem", plan, hint)
    return plan.run  # type: ignore[no-any-return]


# ---- values: ARCHKEY_VALIDATE=1


def validate(
    q: torch.Tensor,
    k: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    max_seqlen_k: int,
    block_table: torch.Tensor,
    window_left: int,
) -> None:
    """Lengths are within their bounds, and used pages in the cache."""
    bounds = cu_seqlens_q.tolist()
    q_lens = cu_seqlens_q.diff()
    if bounds[0] != 0 or bounds[-1] > q.shape[0] or (q_lens < 0).any():
        bad_value(OP, "cu_seqlens_q", f"rising from 0 to at most {q.shape[0]}", bounds)
    if (q_lens > max_seqlen_q).any():
        bad_value(OP, "max_seqlen_q", f"{int(q_lens.max())} or more", max_seqlen_q)
    if (seqused_k < 0).any() or (seqused_k > max_seqlen_k).any():
        expected = f"between 0 and max_seqlen_k = {max_seqlen_k}"
        bad_value(OP, "seqused_k", expected, seqused_k.tolist())
    first = (seqused_k - q_lens - window_left).clamp(min=0) if window_left >= 0 else 0 * q_lens
    page_size, column = k.shape[1], torch.arange(block_table.shape[1], device=q.device)
    used = (column >= (first // page_size)[:, None]) & (column * page_size < seqused_k[:, None])
    pages = block_table[: len(seqused_k)][used]
    if (pages < 0).any() or (pages >= k.shape[0]).any():
        expected = f"pages of the cache, 0 to {k.shape[0] - 1}, where keys are in use"
        bad_value(OP, "block_table", expected, f"{int(pages.min())} to {int(pages.max())}")
