# SPDX-License-Identifier: Apache-2.0
"""What sparse MLA kernels get wrong, a small case each, named by what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.cases.sparse_mla.rows import Dequantize, Logical, Quantize
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

_HEADS = (1, 3, 9, 63, 126)
_SCALES = (0.01, 0.3)  # 576^-0.5 and 192^-0.5, which nobody may assume, lie between
_LISTS = (
    ("index -1", "minus one"),
    ("indices outside the cache", "tail"),
    ("invalid indices between valid ones", "holes"),
    ("the same index many times", "same"),
    ("rows without a valid index", "empty rows"),
    ("no valid index at all", "empty"),
)
_LONG: dict[str, Any] = {"lists": "tail", "out": "fp16"}  # split over a device
_TOPK = (1, 7, 63, 64, 65, 129)  # around the tiles of a kernel
_PACKED: tuple[dict[str, Any], ...] = (
    {"kv_format": "fp8_v32"},
    {"kv_format": "fp8_v32_nope", "width": 512},
    {"kv_format": "fp8_model1", "width": 512},
)
_PAGED: dict[str, Any] = {"form": "paged", "blocks": 4, "page": 32}

_P = SparsePrefill(16, 3, 40)
_PREFILL: tuple[tuple[str, Sequence[SparsePrefill]], ...] = (
    ("three rows", (_P,)),
    ("LSE to base e", (_P, replace(_P, heads=9, lists="full"))),
    ("no LSE", (replace(_P, lse=""),)),
    *((f"{heads} heads", (replace(_P, heads=heads, tokens=2),)) for heads in _HEADS),
    *((about, [replace(_P, lists=kind, k=k) for k in (40, 70)]) for about, kind in _LISTS),
    *((f"lists of {k}", (replace(_P, k=k, lists="full"),)) for k in _TOPK),
    ("more list than keys", (replace(_P, blocks=9, k=64),)),
    ("few rows with long lists", (replace(_P, tokens=2, k=401, sink="inf", **_LONG),)),
    ("topk_length of each row", [replace(_P, length=True, lists=k) for k in ("full", "holes")]),
    ("sinks", (replace(_P, sink="finite"), replace(_P, sink="finite", heads=3, length=True))),
    ("infinite sinks", [replace(_P, sink="inf", lists=k) for k in ("full", "empty rows")]),
    ("width 512", (replace(_P, width=512), replace(_P, width=512, heads=9))),
    ("V is not 512 columns", [replace(_P, head_dim_v=n) for n in (576, 448, 100, 17)]),
    ("pool forms", (replace(_P, form="unit"), replace(_P, **_PAGED), replace(_P, unit=True))),
    *(
        (f"page {page}", (replace(_P, form="paged", page=page, blocks=130 // page + 2),))
        for page in (1, 2, 48, 64)
    ),
    *(
        (f"format {fmt['kv_format']}", calls)
        for fmt in _PACKED
        for calls in ((replace(_P, **fmt, **_PAGED), replace(_P, **fmt, lists="holes")),)
    ),
    (
        "scales between powers of two",
        [replace(_P, **fmt, **_PAGED, lists="full") for fmt in _PACKED[:2]],
    ),
    ("FP8 codes of the device", [replace(_P, **fmt, **_PAGED) for fmt in _PACKED]),
    ("rows apart", [replace(_P, gap=gap, out="bf16") for gap in (16, 3)]),
    ("packed blocks apart", [replace(_P, **fmt, **_PAGED, gap=16) for fmt in _PACKED]),
    ("packed rows at odd addresses", [replace(_P, **fmt, **_PAGED, gap=3) for fmt in _PACKED]),
    ("head-major LSE", (replace(_P, lse="head-major"),)),
    ("output of another dtype", (replace(_P, out="fp16"),)),
    ("scale of the caller", [replace(_P, scale=scale) for scale in _SCALES]),
    *(
        (f"far {name}", (replace(_P, far=name, out="bf16"),))
        for name in ("q", "kv", "indices", "out", "lse", "max_logits")
    ),
    ("far packed kv", [replace(_P, **fmt, **_PAGED, far="kv") for fmt in _PACKED]),
)

_D = SparseDecode(16, 2, 40)
_B = replace(_D, kv_format="bf16")
_X = replace(_D, extra_k=33)  # with a second cache
_DECODE: tuple[tuple[str, Sequence[SparseDecode]], ...] = (
    ("two sequences", (_D, _B)),
    ("LSE to base e", (_D, replace(_B, heads=9, lists="full"))),
    ("no LSE", (replace(_D, lse=""),)),
    *((f"{heads} heads", (replace(_D, heads=heads),)) for heads in _HEADS),
    *(
        (about, [replace(call, lists=kind) for call in (_D, _B, replace(_X, q_len=2))])
        for about, kind in _LISTS
    ),
    *((f"lists of {k}", (replace(_D, k=k, lists="full"),)) for k in _TOPK),
    ("more list than keys", (replace(_D, blocks=2, page=4, k=64),)),
    (
        "few rows with long lists",
        (
            replace(_B, batch=3, k=401, head_dim_v=576, **_LONG),
            replace(_X, k=150, extra_k=333, sink="finite", **_LONG, extra_length="batch"),
            replace(_X, k=333, extra_k=70, heads=3, q_len=2, lists="empty rows", out="fp16"),
        ),
    ),
    ("queries packed with heads", [replace(_D, heads=h, q_len=n) for h, n in ((3, 4), (63, 2))]),
    ("topk_length of each sequence", [replace(_D, length="batch", q_len=n) for n in (1, 3)]),
    ("topk_length of each row", (replace(_D, length="row", q_len=3, lists="full"),)),
    ("sinks", (replace(_D, sink="finite"), replace(_B, sink="finite", heads=3, q_len=2))),
    ("infinite sinks", [replace(_D, sink="inf", lists=k) for k in ("full", "empty rows")]),
    ("second cache", (_X, replace(_X, extra_page=1, extra_blocks=40), replace(_X, q_len=2))),
    ("topk_length of the second cache", [replace(_X, extra_length=n) for n in ("batch", "row")]),
    (
        "two lengths, two caches",
        (replace(_X, length="row", extra_length="batch", q_len=2, sink="inf"),),
    ),
    ("V is not 512 columns", [replace(_D, head_dim_v=n) for n in (576, 448, 100, 17)]),
    ("4-D cache", [replace(_D, form=f, page=p) for f in ("nhd", "hnd") for p in (1, 64)]),
    *(
        (f"page {page}", [replace(_D, **fmt, page=page, blocks=130 // page + 2) for fmt in _PACKED])
        for page in (1, 2, 16, 48, 576)
    ),
    *((f"format {fmt['kv_format']}", (replace(_D, **fmt, lists="full"),)) for fmt in _PACKED),
    ("scales between powers of two", [replace(_D, **fmt, k=70) for fmt in _PACKED[:2]]),
    ("FP8 codes of the device", [replace(_D, **fmt) for fmt in _PACKED]),
    ("width 512", (replace(_B, width=512),)),
    ("rows apart", [replace(_B, gap=gap, out="bf16", q_len=2) for gap in (16, 3)]),
    ("packed blocks apart", [replace(_X, **fmt, gap=16) for fmt in _PACKED]),
    ("packed rows at odd addresses", [replace(_X, **fmt, gap=3) for fmt in _PACKED]),
    ("head-major LSE", (replace(_D, lse="head-major", q_len=2),)),
    ("output of another dtype", (replace(_D, out="fp16"),)),
    ("scale of the caller", [replace(_D, scale=scale) for scale in _SCALES]),
    *(
        (f"far {name}", [replace(_X, far=name, out="bf16", **fmt) for fmt in _PACKED])
        for name in ("kv_cache", "extra_kv_cache")
    ),
    *(
        (f"far {name}", (replace(_B, far=name, out="bf16"),))
        for name in ("q", "kv_cache", "indices", "out", "lse")
    ),
)

_Q = Quantize(30)
_MODES = (("fp8_v32", "fp32"), ("fp8_v32_nope", "fp32"), ("fp8_model1", "pow2"))
_QUANTIZE: tuple[tuple[str, Sequence[Quantize]], ...] = (
    ("thirty tokens", (_Q,)),
    *((f"format {f}", (replace(_Q, kv_format=f, scale_mode=m),)) for f, m in _MODES),
    ("scales between powers of two", [replace(_Q, kv_format=f) for f, _ in _MODES[:2]]),
    ("scales rounded up to powers of two", (replace(_Q, scale_mode="pow2"),)),
    ("FP8 codes of the device", [replace(_Q, kv_format=f, scale_mode=m) for f, m in _MODES]),
    ("tiles of zeros", [replace(_Q, values="zeros", kv_format=f, scale_mode=m) for f, m in _MODES]),
    ("values that underflow", (replace(_Q, values="tiny"),)),
    ("values below the least amax", (replace(_Q, values="faint", dtype="fp32"),)),
    ("loud values", (replace(_Q, values="loud"), replace(_Q, values="loud", scale_mode="pow2"))),
    *((f"rows of {dtype}", (replace(_Q, dtype=dtype),)) for dtype in ("fp16", "fp32")),
    (
        "slots outside the cache",
        [replace(_Q, slots=s, page=1, blocks=40) for s in ("int32", "int64")],
    ),
    ("other slots keep their bytes", (replace(_Q, tokens=6),)),
    ("one token", (replace(_Q, tokens=1),)),
    ("no slot_mapping", (replace(_Q, slots=""), replace(_Q, slots="", tokens=48, paged=True))),
    (
        "a new cache",
        [
            replace(_Q, slots="", out="", tokens=48, paged=paged, kv_format=f, scale_mode=m)
            for f, m in _MODES
            for paged in (False, True)
        ],
    ),
    *(
        (f"page {page}", [Quantize(30, f, m, blocks=40 // page + 1, page=page) for f, m in _MODES])
        for page in (1, 2, 64)
    ),
    ("cache as another dtype", [replace(_Q, out=out) for out in ("int8", "fp8")]),
    ("4-D cache", [replace(_Q, form=form) for form in ("nhd", "hnd")]),
    ("latent and rope of one tensor", (replace(_Q, joint=True),)),
    ("rows apart", [Quantize(30, f, m, gap=gap) for f, m in _MODES for gap in (16, 3)]),
    *((f"far {name}", (Quantize(7, page=4, far=name),)) for name in ("k_nope", "k_rope", "out")),
    ("far planar out", (replace(_Q, far="out", kv_format="fp8_model1", scale_mode="pow2"),)),
)

_R = Dequantize(9)
_FORMATS = tuple(fmt["kv_format"] for fmt in _PACKED)
_DEQUANTIZE: tuple[tuple[str, Sequence[Dequantize]], ...] = (
    ("nine tokens", (_R,)),
    *((f"format {f}", (replace(_R, kv_format=f),)) for f in _FORMATS),
    ("scales between powers of two", [replace(_R, tokens=40, kv_format=f) for f in _FORMATS[:2]]),
    ("FP8 codes of the device", [replace(_R, kv_format=f, tokens=20) for f in _FORMATS]),
    ("slots outside the cache", [replace(_R, slots=slots) for slots in ("int32", "int64")]),
    ("one token", (replace(_R, tokens=1),)),
    ("all slots", [replace(_R, slots="", kv_format=f) for f in _FORMATS]),
    *((f"page {n}", [Dequantize(9, f, 40 // n + 2, n) for f in _FORMATS]) for n in (1, 2, 64)),
    ("output of another dtype", [replace(_R, out="fp16", slots=s) for s in ("int32", "")]),
    ("4-D cache", [replace(_R, form=form) for form in ("nhd", "hnd")]),
    ("blocks apart", [replace(_R, gap=16, kv_format=f) for f in _FORMATS]),
    ("far cache", [replace(_R, far=True, kv_format=f) for f in _FORMATS]),
)

_L = Logical((100, 5, 70), 33)
_LOGICAL: tuple[tuple[str, Sequence[Logical]], ...] = (
    ("three sequences", (_L, replace(_L, q_len=2))),
    ("index -1", (replace(_L, k=1), replace(_L, k=2, q_len=3))),
    ("one sequence", (Logical((70,), 500),)),
    *((f"page {page}", (replace(_L, page=page),)) for page in (1, 3, 16, 128)),
    ("slots past int32", [replace(_L, page=page, k=300) for page in (1, 2)]),
    ("rows apart", [replace(_L, gap=3, q_len=q_len) for q_len in (0, 2)]),
    *((f"far {name}", (replace(_L, far=name),)) for name in ("indices", "block_table", "out")),
)


CASES = (
    *edges("sparse_mla_prefill", _PREFILL),
    *edges("sparse_mla_decode", _DECODE),
    *edges("quantize_sparse_kv", _QUANTIZE),
    *edges("dequantize_sparse_kv", _DEQUANTIZE),
    *edges("logical_to_physical_indices", _LOGICAL),
)
