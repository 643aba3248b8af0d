# SPDX-License-Identifier: Apache-2.0
"""The calls that a model makes of archkey's operators, on tensors without memory.

Each function yields (operator, keyword arguments), laid out as engines lay them out: the latents
of MLA are slices of one projection's row, V of its prefill a slice of another, lengths and tables
int32. Batch and number of tokens are any; only a call's layout, dtypes and options decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archkey.checkpoint.models import SIZES
from archkey.errors import ArgumentValueError
from archkey.ops._sparse_kv import PACKED

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch

__all__ = ["FAMILIES", "Call", "Terms"]

Config = Mapping[str, Any]
Call = tuple[str, dict[str, Any]]

_TOKENS, _BATCH, _PAGES = 32, 8, 4


@dataclass(frozen=True)
class Terms:
    """How a model is served.

    tp         ranks that share its heads
    dtype      of activations and weights; kv_dtype of the cache: "auto" is dtype, "fp8"
    page_size  tokens a page of the cache
    q_len      tokens that a verification has a sequence; 1: there is none
    quant      kind of `rmsnorm_quant` that the norms feed, "" for none
    descale    of an FP8 cache: "tensor" (one float32 element), "number" or "heads" (`[B, Hk]`,
               grouped-query attention alone)
    fp8        the device's flavour, "e4m3fn" or "e4m3fnuz"
    """

    tp: int
    dtype: str
    kv_dtype: str
    page_size: int
    q_len: int
    quant: str
    descale: str
    fp8: str

    def new(self, *shape: int, dtype: str = "") -> Any:
        """A tensor without memory."""
        return torch.empty(shape, dtype=getattr(torch, dtype or self.dtype), device="meta")

    def cut(self, heads: int, *, copied: bool = False) -> int:
        """Heads of one rank. copied: of fewer heads than ranks each rank has one."""
        if copied and heads < self.tp and self.tp % heads == 0:
            return 1
        if heads % self.tp:
            raise ArgumentValueError(f"tp={self.tp} does not divide {heads} heads")
        return heads // self.tp

    @property
    def cache(self) -> str:
        """dtype of the cache."""
        return self.dtype if self.kv_dtype == "auto" else f"float8_{self.fp8}"

    def scale(self, heads: int = 0) -> Any:
        """The descale of the cache; None where it has none."""
        if self.kv_dtype == "auto":
            return None
        if self.descale == "heads" and heads:
            return self.new(_BATCH, heads, dtype="float32")
        return 1.0 if self.descale == "number" else self.new(1, dtype="float32")

    def lengths(self, n: int = _BATCH) -> Any:
        """Lengths, or their running sum."""
        return self.new(n, dtype="int32")

    def queries(self) -> tuple[int, ...]:
        """Tokens a sequence of a decode, and of a verification if there is one."""
        return (1,) if self.q_len == 1 else (1, self.q_len)


def norms(c: Config, t: Terms) -> Iterator[Call]:
    """Of hidden states: the first alone, all others with the residual; quantised ones if asked."""
    x, weight = t.new(_TOKENS, SIZES["hidden"](c)), t.new(SIZES["hidden"](c))
    yield "rmsnorm", {"x": x, "weight": weight}
    residual = torch.empty_like(x)
    yield "fused_add_rmsnorm", {"x": x, "residual": residual, "weight": weight}
    if t.quant:
        fixed = {"x": x, "weight": weight, "eps": 1e-6, "quant": t.quant, **_scale(t)}
        yield "rmsnorm_quant", fixed
        yield "rmsnorm_quant", {**fixed, "residual": residual}


def _scale(t: Terms) -> dict[str, Any]:
    """What a kind of quantisation with a scale from outside is given."""
    return {"scale": t.new(1, dtype="float32")} if t.quant == "fp8_tensor" else {}


def head_norms(c: Config, t: Terms) -> Iterator[Call]:
    """Of each head of q and k: slices of one projection's row, or tensors of their own."""
    heads, kv = _heads(c, t)
    width = SIZES["q"](c) // SIZES["heads"](c)
    row, weight = t.new(_TOKENS, (heads + 2 * kv) * width), t.new(width)
    for at, n in ((0, heads), (heads, kv)):
        part = row[:, at * width : (at + n) * width].unflatten(1, (n, width))
        yield "rmsnorm", {"x": part, "weight": weight}
        yield "rmsnorm", {"x": t.new(_TOKENS, n, width), "weight": weight}


def latents(c: Config, t: Terms) -> Iterator[Call]:
    """MLA's q_a and kv_a, side by side in one row with the rope columns; kv_a alone without q_a."""
    q, kv = c.get("q_lora_rank") or 0, SIZES["kv_rank"](c)
    row = t.new(_TOKENS, q + SIZES["kv_rank+rope"](c))
    q_a, kv_a = row[:, :q] if q else None, row[:, q : q + kv]
    q_weight = t.new(q) if q else None
    q_eps = 1e-6 if q else None
    second = {"k": kv_a, "k_weight": t.new(kv), "k_eps": 1e-6}
    yield "fused_qk_rmsnorm", {"q": q_a, "q_weight": q_weight, "q_eps": q_eps, **second}
    if t.quant and q:
        first = {"x": q_a, "weight": q_weight, "eps": 1e-6, "quant": t.quant, **_scale(t)}
        others = {"x2": kv_a, "x2_weight": t.new(kv), "x2_eps": 1e-6}
        yield "rmsnorm_quant", {**first, **others}


def mla(c: Config, t: Terms) -> Iterator[Call]:
    """Absorbed decode over the latent cache, un-absorbed prefill."""
    heads, width = t.cut(SIZES["heads"](c)), SIZES["kv_rank+rope"](c)
    for n in t.queries():
        yield (
            "mla_decode",
            {
                "q": t.new(_BATCH, n, heads, width),
                "kv_cache": t.new(_PAGES, t.page_size, width, dtype=t.cache),
                "block_table": t.lengths(_BATCH * _PAGES).view(_BATCH, _PAGES),
                "cache_seqlens": t.lengths(),
                "softmax_scale": 1.0,
                "head_dim_v": SIZES["kv_rank"](c),
                "kv_descale": t.scale(),
            },
        )
    yield from mla_prefill(c, t)


def mla_prefill(c: Config, t: Terms) -> Iterator[Call]:
    """New tokens alone; with a cached prefix the same and each chunk of it, which are merged."""
    heads, nope = t.cut(SIZES["heads"](c)), c["qk_nope_head_dim"]
    width, v_width = nope + c["qk_rope_head_dim"], c["v_head_dim"]
    qk = t.new(_TOKENS, heads, width)
    given = {
        "q": qk,
        "k": torch.empty_like(qk),
        "v": t.new(_TOKENS, heads, nope + v_width)[..., nope:],
        "cu_seqlens_q": t.lengths(_BATCH + 1),
        "cu_seqlens_k": t.lengths(_BATCH + 1),
        "max_seqlen_q": _TOKENS,
        "max_seqlen_k": _TOKENS,
        "softmax_scale": 1.0,
    }
    for causal, lse in ((True, False), (True, True), (False, True)):
        yield "mla_prefill", {**given, "causal": causal, "return_lse": lse}
    part, lse = t.new(_TOKENS, heads, v_width), t.new(_TOKENS, heads, dtype="float32")
    yield "merge_attn_states", {"out_a": part, "lse_a": lse, "out_b": part, "lse_b": lse}


def sparse_mla(c: Config, t: Terms) -> Iterator[Call]:
    """Attention to chosen keys, what serves its cache, and the dense prefill of short prompts."""
    heads, width, k = t.cut(SIZES["heads"](c)), SIZES["kv_rank+rope"](c), c["index_topk"]
    if t.kv_dtype == "auto":
        form, cache = "bf16", t.new(_PAGES, t.page_size, 1, width)
    else:
        form = "fp8_v32" + ("_fnuz" if t.fp8 == "e4m3fnuz" else "")
        row = PACKED[form].row_bytes
        cache = t.new(_PAGES, t.page_size, 1, row, dtype="uint8")
        slots = t.new(_TOKENS, dtype="int64")
        rows = t.new(_TOKENS, width)
        nope, rope = rows.split((SIZES["kv_rank"](c), c["qk_rope_head_dim"]), 1)
        parts = {"k_nope": nope, "k_rope": rope, "format": form}
        yield "quantize_sparse_kv", {**parts, "out": cache, "slot_mapping": slots}
        yield "dequantize_sparse_kv", {"kv_cache": cache, "format": form, "slot_mapping": slots}
    given = {"softmax_scale": 1.0, "kv_format": form}
    table = t.lengths(_BATCH * _PAGES).view(_BATCH, _PAGES)
    for n in t.queries():
        lists = t.lengths(_BATCH * n * k).view(_BATCH, n, k)
        q = t.new(_BATCH, n, heads, width)
        yield "sparse_mla_decode", {"q": q, "kv_cache": cache, "indices": lists, **given}
        positions = {"indices": lists, "block_table": table, "page_size": t.page_size}
        yield "logical_to_physical_indices", positions
    lists = t.lengths(_TOKENS * k).view(_TOKENS, k)
    q = t.new(_TOKENS, heads, width)
    yield "sparse_mla_prefill", {"q": q, "kv": cache, "indices": lists, **given}
    yield from mla_prefill(c, t)


def kda(c: Config, t: Terms) -> Iterator[Call]:
    """Kimi's linear attention: decode from the projections, prefill short and long, verification.

    Gate and beta are raw, q and k are normalised in the kernel, states lie V first in float32.
    """
    linear = c["linear_attn_config"]
    heads, d = t.cut(linear["num_heads"]), linear["head_dim"]
    state = t.new(_PAGES, heads, d, d, dtype="float32")
    gate = {"A_log": t.new(heads, dtype="float32"), "dt_bias": t.new(heads * d, dtype="float32")}
    slots = t.lengths()
    yield (
        "kda_packed_decode",
        {
            "mixed_qkv": t.new(_BATCH, 3 * heads * d),
            "a": t.new(_BATCH, heads * d),
            "b": t.new(_BATCH, heads),
            **gate,
            "scale": None,
            "initial_state": state,
            "ssm_state_indices": slots,
            "out": t.new(_BATCH, 1, heads, d),
        },
    )
    raw = {
        "use_qk_l2norm_in_kernel": True,
        "use_gate_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "state_v_first": True,
        "initial_state": state,
    }

    def tokens(count: int) -> dict[str, Any]:
        one = t.new(1, count, heads, d)
        named = dict.fromkeys(("q", "k", "v", "g"), one)
        sums = t.lengths(_BATCH + 1)
        return {**named, "beta": t.new(1, count, heads), **gate, **raw, "cu_seqlens": sums}

    for count in (_TOKENS, 1 << 16):  # with few tokens there are few (chunk, head) pairs
        yield "chunk_kda", {**tokens(count), "initial_state_indices": slots}
    if t.q_len > 1:
        each = t.lengths(_BATCH * (1 + t.q_len)).view(_BATCH, 1 + t.q_len)
        slot = {"ssm_state_indices": each, "num_accepted_tokens": slots}
        call = {**tokens(_BATCH * t.q_len), **slot, "inplace_final_state": True}
        yield "fused_recurrent_kda", call


def grouped_query(c: Config, t: Terms) -> Iterator[Call]:
    """Attention over a paged cache: decode, verification, prefill; of windows, too, if it has."""
    heads, kv = _heads(c, t)
    width = SIZES["q"](c) // SIZES["heads"](c)
    cache = t.new(_PAGES, t.page_size, kv, width, dtype=t.cache)
    sinks = t.new(heads) if c["model_type"] == "gpt_oss" else None
    window = c.get("sliding_window") if "sliding_attention" in _kinds(c) else None
    for n in (*t.queries(), 1024):
        q = t.new(_BATCH * n, heads, width)
        for size in ((-1, -1), *(((window - 1, 0),) if window else ())):
            yield (
                "unified_attention",
                {
                    "q": q,
                    "k": cache,
                    "v": torch.empty_like(cache),
                    "out": torch.empty_like(q),
                    "cu_seqlens_q": t.lengths(_BATCH + 1),
                    "max_seqlen_q": n,
                    "seqused_k": t.lengths(),
                    "max_seqlen_k": _PAGES * t.page_size,
                    "softmax_scale": 1.0,
                    "causal": True,
                    "window_size": size,
                    "block_table": t.lengths(_BATCH * _PAGES).view(_BATCH, _PAGES),
                    "k_descale": t.scale(kv),
                    "v_descale": t.scale(kv),
                    "sinks": sinks,
                },
            )


def _heads(c: Config, t: Terms) -> tuple[int, int]:
    """Query and key heads of one rank."""
    return t.cut(SIZES["heads"](c)), t.cut(SIZES["kv_heads"](c), copied=True)


def _kinds(c: Config) -> set[str]:
    """Kinds of layers; those of GPT-OSS alternate where they are not listed."""
    default = ("sliding_attention", "full_attention") if c["model_type"] == "gpt_oss" else ()
    return set(c.get("layer_types") or default)


Family = Callable[[Config, Terms], Iterator[Call]]

_DENSE: tuple[Family, ...] = (norms, latents, mla)
_SPARSE: tuple[Family, ...] = (norms, latents, sparse_mla)
_LLAMA: tuple[Family, ...] = (norms, grouped_query)
_QWEN: tuple[Family, ...] = (norms, head_norms, grouped_query)

FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "deepseek_v3": _DENSE,
    "kimi_k2": _DENSE,
    "deepseek_v32": _SPARSE,
    "glm_moe_dsa": _SPARSE,
    "kimi_linear": (*_DENSE, kda),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "gpt_oss": _LLAMA,
    **dict.fromkeys(("qwen3", "qwen3_moe", "qwen3_next"), _QWEN),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), _QWEN),
}
"""model_type of the text model -> what it calls."""
