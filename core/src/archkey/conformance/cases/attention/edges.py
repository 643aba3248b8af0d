# SPDX-License-Identifier: Apache-2.0
"""What kernels of unified attention get wrong, a small case each, named by what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import inf
from typing import Any

from archkey.conformance.cases.attention.inputs import Attention
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

_DECODES = ((1, 37), (1, 16), (1, 90))
_PREFILLS = ((7, 7), (20, 20), (33, 49))
_EMPTY = ((1, 0), (3, 9), (9, 4), (0, 5), (1, 0))


def _call(*sizes: Any, **fields: Any) -> Attention:
    return Attention(*sizes, **fields)


_a = partial(_call, ((1, 37), (5, 70)))
_d = partial(_call, _DECODES)
_prefill = partial(_call, _PREFILLS)


_HEADS = ((1, 1), (3, 3), (5, 1), (6, 2), (7, 7), (12, 4), (14, 2), (40, 8), (64, 8), (32, 1))
_WIDTHS = (1, 3, 16, 24, 72, 80, 96, 100, 111, 112, 128, 160, 192, 256, 320, 511, 512)
_UNLIKE = ((192, 128), (64, 128), (96, 1), (100, 111), (512, 16), (1, 512))
_PAGES = (1, 2, 3, 8, 20, 32, 48, 64, 100, 128, 528)
_WINDOWS = (2, 15, 16, 17, 36, 37, 38, 69, 70)
_MOST = {"softcap": 2.0, "alibi": "fp32", "sinks": "fp32", "window": 20}
_ALL = {**_MOST, "bias": "fp32"}

_FP8: dict[str, Any] = {"dtype": "fp8", "descales": (0.75, 0.5, 0.25)}
_CACHE: dict[str, Any] = {"cache": "fp8", "descales": (None, 0.5, 0.25)}
_KINDS = ("number", "scalar", "tensor", "per_head", "expanded", "transposed")

Row = tuple[str, Iterable[Attention]]

_SHAPES: tuple[Row, ...] = (
    ("two sequences", (_a(),)),
    ("NaN in unused slots", (_call(((1, 37), (5, 70), (1, 2)), page=page) for page in (16, 64))),
    ("unused entries of the block table", (_a(page=1), _d(page=64))),
    ("LSE to base e", (_a(), _d())),
    ("no LSE", (_a(lse=""), _d(lse=""))),
    ("head-major LSE", (_a(lse="head-major"),)),
    *((f"{h} heads over {hk}", (_a(heads=(h, hk)),)) for h, hk in _HEADS),
    (
        "query rows packed with heads",
        (
            _call(((1, 9), (n, 30), (2, 2)), heads)
            for heads, n in (((5, 1), 3), ((5, 1), 7), ((10, 2), 4), ((3, 1), 17), ((128, 1), 2))
        ),
    ),
    *((f"head dim {d}", (_a(dims=(d, d), heads=(4, 2)),)) for d in _WIDTHS),
    *((f"head dims {d} and {dv}", (_a(dims=(d, dv)),)) for d, dv in _UNLIKE),
    *(
        (f"page {page}", (_call(((1, 37), (4, n)), (4, 1), (128, 128), page),))
        for page in _PAGES
        for n in (131, 540 if page > 128 else 2 * page)
    ),
    ("pages just full", (_call(((1, n), (3, n + 16))) for n in (15, 16, 17))),
    ("tiles just full", (_call(((n, n), (1, n)), (2, 1)) for n in (15, 16, 17, 63, 64, 65))),
    ("many tiles of queries", (_call(((130, 130), (70, 150)), (2, 1)),)),
    ("one long sequence", (_call(((1, 300),), (5, 1)), _call(((4, 300),), (8, 1)))),
    ("batch entries of unlike lengths", (_call(((1, 5), (3, 90), (1, 17), (6, 41), (2, 2))),)),
    ("many sequences", (_call(((1, 3), (0, 2), (2, 5), (1, 1)) * 6, (4, 1)),)),
    ("causal to the bottom right", (_call(((4, 9), (7, 70), (33, 60))),)),
    ("sequence without queries", (_call(((0, 5), (3, 17), (0, 0), (1, 9), (0, 33))),)),
    ("sequence without keys", (_call(((1, 0), (1, 9), (1, 0))), _call(((4, 0), (2, 6))))),
    ("only sequences without keys", (_call(((1, 0),) * 3), _call(((5, 0), (20, 0))))),
    ("neither queries nor keys", (_call(((0, 0), (4, 6), (0, 0))),)),
    ("more queries than keys", (_call(((7, 4), (2, 9), (70, 5), (40, 21))),)),
    (
        "rows past the last sequence",
        (_a(spare=3), _d(spare=1), _a(spare=70)),
    ),
    ("no sequences", (_call((), spare=3),)),
    ("rows of the block table past the last sequence", (_a(rows=5),)),
    *(
        ("equal results under every bound", (_d(most_q=most, **more),))
        for most in (1, 2, 16, 17, 100)
        for more in ({}, {"window": 20, "sinks": "bf16"})
    ),
    ("loose bound of keys", (call(most_k=400) for call in (_a, _d))),
    ("decode alone", (_d(), _d(**_MOST), _d(**_FP8))),
    (
        "decode in a mixed batch",
        (_call((*_DECODES, (5, 37), (1, 3), (17, 17)), **more) for more in ({}, _MOST, _FP8)),
    ),
    (
        "batch invariant",
        (
            call(invariant=True, **more)
            for call in (_a, _d, _prefill)
            for more in ({}, _MOST, {"segments": 4})
        ),
    ),
    ("scores far below 0", (_a(level=-150.0, sinks="fp32", sink=-150.0),)),
    ("scores far above 0", (_a(level=150.0), _d(level=150.0))),
    ("scale of the caller", (_a(scale=scale) for scale in (0.02, 0.4))),
    (
        "numbers that are integers",
        (
            _a(scale=1, softcap=30, dims=(8, 8), **more)
            for more in ({}, {**_CACHE, "descales": (1, 1, 2)})
        ),
    ),
)

_MASKS: tuple[Row, ...] = (
    (
        "window of one key",
        (call(window=1, page=page) for call in (_d, _prefill) for page in (1, 16)),
    ),
    *(
        (f"window of {window} keys", (_call(((1, 37), (1, 70), (5, 70)), window=window),))
        for window in _WINDOWS
    ),
    *(
        (
            f"window of {window} keys in a prefill",
            (_call(((40, 40), (20, 70)), (2, 1), window=window),),
        )
        for window in (2, 15, 16, 17, 33)
    ),
    ("window larger than all keys", (_a(window=n) for n in (71, 1000, 2**31))),
    (
        "keys before the window are gone",
        (
            _call(((1, 200), (5, 130), (1, 33)), window=20, page=page, **more)
            for page in (1, 16, 64)
            for more in ({}, _FP8)
        ),
    ),
    ("window and more queries than keys", (_call(((9, 4), (30, 21)), window=n) for n in (1, 3))),
    ("window and empty sequences", (_call(_EMPTY, window=3),)),
    ("softcap", (_a(softcap=cap) for cap in (0.5, 50.0))),
    ("softcap of huge scores", (call(scale=30.0, softcap=1.0) for call in (_a, _d))),
    ("softcap before ALiBi", (_a(softcap=1.0, alibi="fp32"),)),
    ("softcap before the bias", (_a(softcap=1.0, bias="fp32"),)),
    ("softcap spares the sink", (_a(softcap=1.0, sinks="fp32", sink=4.0),)),
    ("softcap before the mask", (_call(_PREFILLS, softcap=1.0, window=5),)),
    *(
        ("ALiBi counts from the query", (call(alibi=dtype, **more),))
        for call in (_a, _prefill)
        for dtype, more in (("bf16", {}), ("fp16", {}), ("fp32", {"sinks": "fp32", "lse": ""}))
    ),
    ("ALiBi of 5 heads", (_a(alibi="fp32", heads=(5, 1)),)),
    ("sink counts once", (_d(sinks=dtype) for dtype in ("bf16", "fp16", "fp32"))),
    (
        "sink counts once",
        (_call(((1, 300), (1, 5)), heads, sinks="bf16", sink=3.0) for heads in ((8, 2), (5, 1))),
    ),
    (
        "sink counts in LSE",
        (_call(((4, 9), (1, 0)), sinks="fp32", sink=sink) for sink in (2.0, -2.0)),
    ),
    (
        "sink of a row without keys",
        (_call(_EMPTY, sinks="bf16"), _call(((1, 0),) * 2, sinks="bf16")),
    ),
    ("sink takes nearly all", (_a(sinks="fp32", sink=30.0),)),
    ("sink takes nearly nothing", (_a(sinks="fp32", sink=-60.0),)),
    (
        "heads without a sink",
        (_call(lengths, sinks="fp32", sink=-inf) for lengths in (_DECODES, _EMPTY)),
    ),
    *(
        ("bias between queries", (call(bias=dtype),))
        for call in (_a, _prefill, _d)
        for dtype in ("bf16", "fp32")
    ),
    ("bias and more queries than keys", (_call(((9, 4), (6, 21)), bias="fp32"),)),
    ("bias larger than needed", (_a(bias="fp16", bias_room=11),)),
    ("bias rows apart", (_a(bias="bf16", apart="bias", gap=gap) for gap in (16, 3))),
    ("bias is a tree", (_call(((4, 37), (4, 5)), bias=d, tree="tree") for d in ("bf16", "fp32"))),
    (
        "bias hides every key of a row",
        (
            _call(((6, 6), (5, 40)), bias="fp32", tree="blind", **more)
            for more in ({}, {"sinks": "fp32"})
        ),
    ),
    ("all options at once", (_a(**_ALL), _a(**_ALL, **_FP8), _call(_EMPTY, **_ALL))),
)

_DTYPES: tuple[Row, ...] = (
    ("float16", (call(dtype="fp16", out="fp16") for call in (_a, _d))),
    ("float32", (call(dtype="fp32", out="fp32") for call in (_a, _d))),
    (
        "output of another dtype",
        (_a(dtype=d, out=o) for d, o in (("bf16", "fp16"), ("fp16", "bf16"), ("fp32", "bf16"))),
    ),
    ("FP8 codes of the device", (call(**_FP8, page=page) for call in (_a, _d) for page in (1, 16))),
    ("FP8 codes of the device", (_a(**_FP8, dims=(d, d), heads=(5, 1)) for d in (80, 192, 256))),
    (
        "FP8 cache of unquantised queries",
        (call(**_CACHE, dtype=d) for call in (_a, _d) for d in ("bf16", "fp16", "fp32")),
    ),
    ("FP8 codes without a descale", (_a(cache="fp8"), _a(dtype="fp8", descales=(1.0, None, None)))),
    ("FP8 and more queries than keys", (_call(_EMPTY, **_FP8),)),
    *(
        (
            f"descale of {name}",
            (call(descales=tuple(0.3 if n == name else rest for n in "qkv"), **more),),
        )
        for name in "qkv"
        for call in (_a, _d)
        for more, rest in (({"dtype": "fp8"}, 1.0), ({"dtype": "bf16"}, None))
    ),
    *(
        ("descales differ", (_a(**more, kinds=(kind, kind, kind)),))
        for kind in _KINDS
        for more in (_FP8, _CACHE)
    ),
    *(
        (
            "descales of sequence and KV head",
            (_call(((1, 9), (3, 17), (2, 40)), heads, **_FP8, kinds=kinds),),
        )
        for heads in ((8, 2), (5, 1), (6, 6))
        for kinds in (
            ("per_head",) * 3,
            ("scalar", "per_head", "number"),
            ("per_head", "tensor", "per_head"),
        )
    ),
    ("descales with softcap and sinks", (_a(**_FP8, softcap=1.0, sinks="bf16"),)),
    (
        "output scale divides",
        (
            _a(out=d, output_scale=0.3, output_kind=k)
            for d, k in (("bf16", "number"), ("fp16", "scalar"), ("fp32", "tensor"))
        ),
    ),
    (
        "FP8 output",
        (
            call(out="fp8", output_scale=0.02, output_kind=k, **more)
            for call in (_a, _d)
            for k in ("number", "scalar", "tensor")
            for more in ({}, _FP8)
        ),
    ),
    ("FP8 output saturates", (_a(out="fp8", output_scale=0.0004),)),
    ("FP8 output of rows without keys", (_call(_EMPTY, out="fp8", output_scale=0.02, spare=2),)),
)

_MEMORY: tuple[Row, ...] = (
    *(
        ("rows apart", (_a(gap=gap, apart=apart),))
        for gap in (16, 3)
        for apart in ("q k v out table", "q", "k", "v", "out")
    ),
    ("FP8 rows apart", (_a(gap=gap, **_FP8, page=p) for gap in (16, 5) for p in (1, 16))),
    ("rows of the block table apart", (_a(gap=7, apart="table"),)),
    (
        "cache HND",
        (_a(layout="HND", page=page, gap=gap) for page in (1, 16, 20) for gap in (0, 16)),
    ),
    (
        "K and V of one tensor",
        (
            _a(pair=pair, layout=layout)
            for pair in ("columns", "blocks", "halves")
            for layout in ("NHD", "HND")
        ),
    ),
    ("K and V of one tensor", (_a(pair="columns", dims=(64, 96)), _a(pair="blocks", **_FP8))),
    *(
        ("workspace of the caller", (call(segments=n, segment_rows=rows),))
        for call, rows in ((_d, 0), (_d, 5), (_a, 0))
        for n in (1, 2, 7, 16)
    ),
    (
        "more segments than keys",
        (_call(((1, 3), (1, 0), (1, 40)), segments=64, sinks=sinks) for sinks in ("", "fp32")),
    ),
    (
        "segments and a window",
        (_call(((1, 200), (1, 30)), window=40, segments=8, sinks=sinks) for sinks in ("", "bf16")),
    ),
    ("segments of everything", (_d(**_ALL, segments=4, dims=(80, 80)), _d(**_FP8, segments=4))),
    ("workspace too small", (_a(segments=4, segment_rows=-2), _d(segments=4, threshold=2))),
    (
        "workspace up to its threshold",
        (_d(segments=4, threshold=n) for n in (3, 2)),
    ),
    # Three entries along a far dimension: with two, the stride itself would take 64 bits.
    *(
        (f"far {name}", (_call(((3, 20), (1, 37), (3, 16)), (6, 3), far=name, layout=layout),))
        for name in ("k", "k slots", "k heads", "v", "v slots", "v heads")
        for layout in ("NHD", "HND")
    ),
    *(
        (f"far {name}", (_call(lengths, (6, 3), far=name),))
        for name in ("q", "q heads", "out", "out heads", "lse", "lse heads", "table")
        for lengths in (((1, 20), (1, 37), (1, 16)), ((1, 20), (5, 37), (1, 16)))
    ),
    (
        "far FP8 cache",
        (_call(((1, 20), (4, 37), (1, 16)), page=1, far=name, **_FP8) for name in "kv"),
    ),
    ("far FP8 output", (_call(_DECODES, out="fp8", output_scale=0.02, far="out"),)),
    ("far bias", (_call(((5, 9),), bias="bf16", far="bias"),)),
    (
        "far descales",
        (_call(_DECODES, **_FP8, kinds=("per_head",) * 3, far=f"{name}_descale") for name in "qkv"),
    ),
    ("far workspace", (_d(segments=4, far="workspace"),)),
)

CASES = tuple(edges("unified_attention", (*_SHAPES, *_MASKS, *_DTYPES, *_MEMORY)))
