# SPDX-License-Identifier: Apache-2.0
"""mxfp4_linear where it is easily done wrong: a row of a table is a case."""

from __future__ import annotations

from typing import Any

from archkey.conformance.cases.mxfp4_linear.inputs import PACKED, Linear
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

_FLOATS = ("bf16", "fp16", "fp32")
_SHUFFLED: dict[str, Any] = {"dtype": PACKED, "layout": "shuffled_gfx950"}
# A k and n with its dtypes is compiled once on a device: cases share them where they can.
# Each kind of x; with more than one block of scales, the last of them not full.
_KINDS: tuple[dict[str, Any], ...] = (
    *({"dtype": dtype} for dtype in _FLOATS),
    {"dtype": PACKED},
    _SHUFFLED,
)
_ROWS: dict[str, Any] = {"tokens": (5,), "k": 144, "n": 48}
# Whole blocks, which are read 16 bytes at a time, scales by 4.
_WHOLE: dict[str, Any] = {"tokens": (5,), "k": 512, "n": 128}
_NEAR: dict[str, Any] = {"tokens": (3,), "k": 64, "n": 17}

_TABLE: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("kinds", _ROWS | kind) for kind in _KINDS),
    *(
        ("whole blocks", _WHOLE | kind | {"tokens": (tokens,), "out_dtype": "fp32"})
        for kind in _KINDS
        for tokens in (5, 40)
    ),
    # bfloat16 hides a float16 or a float32 x that was rounded to it; these results do not.
    *(("results in float32", _ROWS | kind | {"out_dtype": "fp32"}) for kind in _KINDS),
    *(
        ("sizes", {"tokens": (tokens,), "k": k, "n": n, **kind})
        for tokens, k, n in ((1, 2, 1), (1, 34, 17), (3, 96, 130), (33, 62, 1), (7, 1056, 65))
        for kind in (_KINDS[0], _KINDS[3])
    ),
    *(("width of a model", {"tokens": (2,), "k": 2880, "n": 40, **kind}) for kind in _KINDS),
    *(("few rows and many", _ROWS | {"tokens": (t,)}) for t in (1, 16, 17, 64, 65, 150, 257)),
    *(
        ("few rows and many", {"tokens": (t,), "k": 288, "n": 20, **_SHUFFLED})
        for t in (1, 17, 33, 257)
    ),
    *(("no rows", _ROWS | kind | {"tokens": (0,)}) for kind in _KINDS),
    *(
        ("bias", _ROWS | kind | {"bias": bias})
        for kind in _KINDS[::3]
        for bias in ("bf16", "fp16", "fp32")
    ),
    *(
        ("out of another dtype", _ROWS | kind | {how: dtype})
        for kind in _KINDS[:1] + _KINDS[3:4]
        for how in ("out", "out_dtype")
        for dtype in ("fp16", "fp32")
    ),
    *(("wide scales", _ROWS | kind | {"scales": "wide"}) for kind in (*_KINDS[:1], *_KINDS[2:])),
    *(
        (f"{scales} scales", rows | kind | {"scales": scales, "out_dtype": "fp32"})
        for kind in (*_KINDS[:1], *_KINDS[2:])
        for scales in ("least", "largest")
        for rows in (_ROWS, _WHOLE)
    ),
    *(
        ("NaN scales", rows | kind | {"scales": "NaN", "out_dtype": "fp32"})
        for kind in _KINDS
        for rows in (_ROWS, _WHOLE)
    ),
    *(("x not finite", _ROWS | kind | {"values": "not finite"}) for kind in _KINDS),
    *(("rows of zeros", _ROWS | kind | {"values": "zeros"}) for kind in _KINDS[::3]),
    *(
        ("dimensions of x", {"tokens": tokens, "k": 64, "n": 17, **kind})
        for tokens in ((), (2, 3), (2, 1, 3))
        for kind in (_KINDS[0], _KINDS[3])
    ),
    *(
        ("strided", _ROWS | kind | {"out": "bf16", which: layout})
        for kind in (_KINDS[0], _KINDS[3])
        for which in ("lay", "weight_lay", "scale_lay", "out_lay")
        for layout in ("slice", "odd")
    ),
    *(
        ("heads apart", {"tokens": (3, 2), "k": 64, "n": 17, "out": "bf16", **kind, **more})
        for kind in (_KINDS[0], _KINDS[3])
        for more in ({"lay": "heads"}, {"out_lay": "heads"})
    ),
    ("heads apart", {"tokens": (3, 2), "k": 64, "n": 17, "dtype": PACKED, "scale_lay": "slice"}),
    *(("one row for all", _ROWS | kind | {"lay": "repeated"}) for kind in (_KINDS[0], _KINDS[3])),
    *(("torch's own dtypes", _ROWS | kind | {"own_dtypes": True}) for kind in _KINDS),
    *(
        ("far rows", _NEAR | kind | more)
        for kind in (_KINDS[0], _KINDS[3])
        for more in (
            {"lay": "far0"},
            {"weight_lay": "far0"},
            {"scale_lay": "far0"},
            {"out": "bf16", "out_lay": "far0"},
        )
    ),
)

CASES = tuple(edges("mxfp4_linear", ((about, (Linear(**fields),)) for about, fields in _TABLE)))
