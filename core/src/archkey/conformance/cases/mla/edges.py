# SPDX-License-Identifier: Apache-2.0
"""What MLA kernels get wrong, a small case each, named by what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from archkey.conformance.case import Case
from archkey.conformance.cases.mla.inputs import Decode, Merge, Prefill
from archkey.conformance.cases.spec import describe, edges

__all__ = ["CASES"]

_HEADS = (1, 3, 9, 63, 126)
_LEVELS = (("scores far below 0", -150.0), ("scores far above 0", 150.0))
_SCALES = (0.01, 0.3)  # 576^-0.5 and 192^-0.5, which nobody may assume, lie between
_FP8: dict[str, Any] = {"dtype": "fp8", "q_descale": 0.37, "kv_descale": 0.083}
_FP8_QKV: dict[str, Any] = {
    "dtype": "fp8",
    "q_descale": 0.37,
    "k_descale": 0.083,
    "v_descale": 0.0191,
}

_D = Decode(16, (37, 70))
_DECODE: tuple[tuple[str, Sequence[Decode]], ...] = (
    ("two sequences", (_D,)),
    ("LSE to base e", (_D, replace(_D, heads=9, q_lens=3))),
    ("no LSE", (replace(_D, lse=""),)),
    *((f"{heads} heads", (replace(_D, heads=heads, kv_lens=(37, 5)),)) for heads in _HEADS),
    *(
        (f"page {page}", (replace(_D, kv_lens=(33, 131), page=page),))
        for page in (1, 16, 32, 64, 128)
    ),
    (
        "unused slots are NaN",
        (_D, replace(_D, kv_lens=(1, 65), q_lens=2), replace(_D, cache="fp8")),
    ),
    ("unused table entries name no page", (replace(_D, kv_lens=(5, 90, 0), page=16),)),
    ("pages just full", [replace(_D, kv_lens=(n, 128)) for n in (63, 64, 65)]),
    ("fewer keys than a page", (replace(_D, kv_lens=(1, 2, 15), page=128),)),
    ("sequence without keys", [replace(_D, kv_lens=(0, 37, 0), q_lens=n) for n in (1, 4)]),
    ("only sequences without keys", [replace(_D, kv_lens=(0, 0), q_lens=n) for n in (1, 2)]),
    ("more queries than keys", (replace(_D, kv_lens=(2, 0, 5, 3), q_lens=4),)),
    ("sequence without queries", (replace(_D, kv_lens=(33, 40, 0, 7), q_lens=(0, 3, 0, 1)),)),
    ("rows past the last sequence", (replace(_D, q_lens=(1, 2), spare=3),)),
    (
        "queries packed with heads",
        [Decode(heads, (37, 70), n) for heads, n in ((3, 4), (9, 5), (63, 2), (1, 7))],
    ),
    ("sequences of unlike lengths", (replace(_D, kv_lens=(5, 90, 17, 41), page=16),)),
    ("causal to the bottom right", (replace(_D, q_lens=4), replace(_D, q_lens=(7, 2), heads=3))),
    ("not causal", (replace(_D, q_lens=4, causal=False),)),
    ("window of one key", [replace(_D, window=0, page=page) for page in (16, 64)]),
    ("window", [replace(_D, window=n, page=16) for n in (1, 15, 16, 35, 36, 37, 68, 69)]),
    ("window of ragged queries", (replace(_D, window=20, q_lens=(1, 0), page=16),)),
    ("width 576", (_D, replace(_D, heads=9, page=1))),
    ("width 512", (replace(_D, width=512), replace(_D, width=512, heads=9, page=1))),
    ("V is not 512 columns", [replace(_D, head_dim_v=n) for n in (576, 448, 100, 17)]),
    ("float16", (replace(_D, dtype="fp16", q_lens=2),)),
    ("FP8 codes of the device", (replace(_D, **_FP8), replace(_D, **_FP8, heads=3, page=1))),
    ("FP8 codes without a descale", (replace(_D, dtype="fp8"), replace(_D, cache="fp8"))),
    (
        "FP8 cache of 16-bit queries",
        [replace(_D, cache="fp8", dtype=t, kv_descale=0.083) for t in ("bf16", "fp16")],
    ),
    ("descales are tensors", [replace(_D, **_FP8, tensors=t) for t in ("q kv", "q", "kv")]),
    ("descale of q", (replace(_D, dtype="fp8", q_descale=0.37), replace(_D, q_descale=2.0))),
    ("descale of the cache", (replace(_D, kv_descale=0.25), replace(_D, **_FP8, page=16))),
    ("4-D cache", [replace(_D, form=f, page=p) for f in ("nhd", "hnd") for p in (1, 64)]),
    ("rows apart", [replace(_D, gap=gap, q_lens=2, out="bf16") for gap in (16, 3)]),
    ("FP8 rows apart", [replace(_D, **_FP8, gap=gap, out="fp16") for gap in (16, 5)]),
    ("head-major LSE", (replace(_D, lse="head-major", q_lens=2),)),
    ("output of another dtype", (replace(_D, out="fp16"), replace(_D, dtype="fp16", out="bf16"))),
    ("loose bounds", [replace(_D, longest="loose", q_lens=q) for q in (1, (1, 3))]),
    ("no bounds", [replace(_D, longest="", q_lens=q) for q in (1, (1, 3))]),
    ("scale of the caller", [replace(_D, scale=scale) for scale in _SCALES]),
    *((about, (replace(_D, level=level),)) for about, level in _LEVELS),
    *(
        (f"far {name}", (replace(_D, far=name, page=16, out="bf16", kv_lens=(37, 5, 70)),))
        for name in ("kv_cache", "kv_cache tokens", "q", "out", "lse")
    ),
    ("far FP8 cache", (replace(_D, **_FP8, far="kv_cache", page=1, kv_lens=(5, 70)),)),
)

_P = Prefill(4, (5, 9), (20, 9))
_WIDTHS = ((192, 128), (256, 256), (128, 128))
_PREFILL: tuple[tuple[str, Sequence[Prefill]], ...] = (
    ("two sequences", (_P,)),
    ("LSE to base e", (_P, replace(_P, causal=False))),
    ("no LSE", (replace(_P, lse=""),)),
    *((f"{heads} heads", (replace(_P, heads=heads, q_lens=(2, 3)),)) for heads in _HEADS[:4]),
    *(
        (f"{h} heads over {hk}", (replace(_P, heads=h, kv_heads=hk),))
        for h, hk in ((6, 2), (9, 3), (4, 1))
    ),
    *(
        (f"widths {d}/{dv}", [replace(_P, widths=(d, dv), causal=c) for c in (True, False)])
        for d, dv in _WIDTHS
    ),
    ("K and V of one projection", [replace(_P, widths=w, projection=True) for w in _WIDTHS]),
    ("tiles just full", [Prefill(2, (n, 1), (n, 130)) for n in (63, 64, 65, 128)]),
    ("sequence without queries", (Prefill(4, (5, 0, 3, 0), (7, 40, 9, 5)),)),
    ("sequence without keys", [Prefill(4, (5, 3, 4), (0, 7, 0), causal=c) for c in (True, False)]),
    ("only sequences without keys", (Prefill(4, (5, 3), (0, 0)),)),
    ("neither queries nor keys", (Prefill(3, (0, 4, 0), (0, 6, 0)),)),
    (
        "chunk of a prefix that others lack",
        [
            Prefill(2, (5, 3, 4), k_lens, widths, causal=False, **fp8)
            for k_lens in ((0, 70, 9), (0, 33, 0))
            for widths in _WIDTHS[:2]
            for fp8 in ({}, _FP8_QKV)
        ],
    ),
    ("more queries than keys", (Prefill(4, (9, 70, 5), (4, 3, 1)),)),
    ("rows past the last sequence", (replace(_P, spare=3), replace(_P, spare=70, causal=False))),
    ("sequences of unlike lengths", (Prefill(4, (3, 1, 6), (5, 77, 20), causal=False),)),
    ("causal to the bottom right", (Prefill(4, (4, 7), (9, 70)), Prefill(1, (33,), (100,)))),
    ("not causal", (Prefill(4, (4, 7), (4, 70), causal=False),)),
    ("float16", (replace(_P, dtype="fp16"),)),
    ("FP8 codes of the device", [replace(_P, **_FP8_QKV, widths=w) for w in _WIDTHS]),
    ("FP8 codes without a descale", (replace(_P, dtype="fp8"),)),
    ("descales are tensors", [replace(_P, **_FP8_QKV, tensors=t) for t in ("q k v", "v")]),
    ("descale of q", (replace(_P, q_descale=2.0), replace(_P, dtype="fp8", q_descale=0.37))),
    ("descale of k", (replace(_P, k_descale=0.25), replace(_P, dtype="fp8", k_descale=0.083))),
    ("descale of v", (replace(_P, v_descale=0.25), replace(_P, dtype="fp8", v_descale=0.083))),
    ("rows apart", [replace(_P, gap=gap, out="bf16", causal=False) for gap in (16, 3)]),
    ("FP8 rows apart", [replace(_P, **_FP8_QKV, gap=gap, out="fp16") for gap in (16, 5)]),
    ("head-major LSE", (replace(_P, lse="head-major"),)),
    ("output of another dtype", (replace(_P, out="fp16"), replace(_P, dtype="fp16", out="bf16"))),
    ("loose bounds", (replace(_P, longest="loose"),)),
    ("scale of the caller", [replace(_P, scale=scale) for scale in _SCALES]),
    *((about, (replace(_P, level=level),)) for about, level in _LEVELS),
    *(
        (f"far {name}", (replace(_P, far=name, out="bf16"),))
        for name in ("q", "q heads", "k", "k heads", "v", "v heads", "out", "out heads", "lse")
    ),
)

_M = Merge(5, 4, pairs=((0.0, 0.0), (2.0, -1.0)))
_EMPTY = ((-inf, -inf), (inf, inf), (-inf, inf), (inf, -inf))
_MERGE: tuple[tuple[str, Sequence[Merge]], ...] = (
    ("two parts", (_M,)),
    ("LSE to base e", (replace(_M, pairs=((3.0, -3.0), (-2.0, 1.0))),)),
    ("one row", (replace(_M, tokens=1, heads=1),)),
    *((f"{heads} heads", (replace(_M, heads=heads),)) for heads in _HEADS),
    *((f"width {width}", (replace(_M, width=width),)) for width in (64, 100, 127, 256, 512, 576)),
    ("prefix of LSE -inf", (replace(_M, pairs=((-inf, 0.0), (0.0, 0.0))),)),
    ("prefix of LSE +inf", (replace(_M, pairs=((inf, 0.0), (0.0, 0.0))),)),
    ("suffix of LSE -inf", (replace(_M, pairs=((0.0, -inf), (0.0, 0.0))),)),
    ("suffix of LSE +inf", (replace(_M, pairs=((0.0, inf), (0.0, 0.0))),)),
    ("both parts empty", [replace(_M, pairs=(pair, (0.0, 0.0))) for pair in _EMPTY]),
    ("all rows empty", (replace(_M, pairs=_EMPTY),)),
    ("LSE far apart", (replace(_M, pairs=((300.0, -300.0), (-300.0, 300.0))),)),
    ("LSE far from 0", [replace(_M, pairs=((n, n), (n, n + 2))) for n in (-5000.0, 5000.0)]),
    (
        "in place",
        [
            replace(_M, in_place=parts, pairs=((1.0, -1.0), *_EMPTY, (-inf, 0.0), (0.0, inf)))
            for parts in ("aa", "bb", "ab")
        ],
    ),
    ("in place, rows apart", (replace(_M, in_place="aa", gap=3, layout="head-major"),)),
    *((f"dtype {dtype}", (replace(_M, dtype=dtype),)) for dtype in ("fp16", "fp32")),
    (
        "output of another dtype",
        [replace(_M, out=o, dtype=d) for d, o in (("bf16", "fp32"), ("fp32", "bf16"))],
    ),
    ("rows apart", [replace(_M, gap=gap, out="bf16") for gap in (16, 3)]),
    ("head-major LSE", (replace(_M, layout="head-major"),)),
    *(
        (f"far {name}", (replace(_M, far=name, out="bf16"),))
        for name in ("out_a", "out_b", "out", "lse_a", "lse_b", "lse")
    ),
)


# Half of the pages have numbers of more than 16 bits, and lie past byte 2^31.
_STREWN = Decode(16, (2000, 0, 700), page=16, room=140_000)

CASES = (
    *edges("mla_decode", _DECODE),
    Case("mla_decode", "large page numbers", describe(_STREWN), _STREWN, large=True),
    *edges("mla_prefill", _PREFILL),
    *edges("merge_attn_states", _MERGE),
)
