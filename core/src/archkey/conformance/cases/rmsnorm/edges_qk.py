# SPDX-License-Identifier: Apache-2.0
"""Two norms in one launch where it is easily done wrong: a row of a table is a case."""

from __future__ import annotations

from typing import Any

from archkey.conformance.cases.rmsnorm.inputs import CASTS_TO_0_7, QkNorm
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

Rows = tuple[tuple[str, dict[str, Any]], ...]

_QK: Rows = (
    *(
        ("q and k of one row", {"tokens": tokens, "q": (0, q), "k": (0, k), "row": True})
        for tokens, q, k in ((3, 1536, 512), (1, 2048, 512), (33, 128, 64), (2, 200, 111))
    ),
    *(
        ("no q", {"tokens": tokens, "q": (0, 0), "k": (0, k), "row": True})
        for tokens, k in ((3, 512), (1, 111), (5, 7168))
    ),
    *(
        ("k wider than q", {"tokens": 3, "q": (0, q), "k": (0, k), "dtype": "fp16"})
        for q, k in ((128, 1024), (3, 4097), (512, 18432))
    ),
    ("both of several blocks", {"tokens": 2, "q": (0, 16384), "k": (0, 18432)}),
    *(
        (
            "heads of q and k",
            {"tokens": 3, "q": (q, width), "k": (k, width), "row": True, "rope": 256},
        )
        for q, k, width in ((8, 1, 128), (6, 2, 128), (3, 0, 64), (0, 3, 100), (2, 6, 256))
    ),
    ("heads of k alone", {"tokens": 3, "q": (0, 0), "k": (3, 128), "row": True}),
    *(
        (
            "eps of the other half",
            {"tokens": 3, "q": (0, 512), "k": (0, 512), "values": "tiny", "q_eps": q, "k_eps": k},
        )
        for q, k in ((1e-6, 1e-3), (1e-3, 1e-6))
    ),
    *(
        ("in place", {"tokens": 3, "q": (0, q), "k": (0, k), "row": True, "out": "in place"})
        for q, k in ((1536, 512), (18432, 576), (0, 512))
    ),
    *(
        (
            "strided",
            {
                "tokens": 3,
                "q": (0, 512),
                "k": (0, 256),
                "lay": layout,
                "out": "bf16",
                "out_lay": out,
            },
        )
        for layout, out in (("slice", "slice"), ("odd", "packed"), ("packed", "odd"))
    ),
    *(
        (
            "heads apart in out alone",
            {"tokens": 3, "q": (2, 128), "k": (3, 64), "out": "fp16", "out_lay": layout},
        )
        for layout in ("heads", "slice")
    ),
    *(
        (
            "dtypes",
            {
                "tokens": 3,
                "q": (0, 512),
                "k": (0, 128),
                "dtype": dtype,
                "weight": weight,
                "out": out,
            },
        )
        for dtype, weight, out in (("bf16", "fp32", "fp32"), ("fp32", "bf16", "fp16"))
    ),
    ("weight bias", {"tokens": 3, "q": (8, 128), "k": (1, 128), "bias": 1.0, "out": "fp32"}),
    *(
        (
            "rounded before the weight",
            {
                "tokens": 3,
                "q": (0, 512),
                "k": (0, 128),
                "weight": "fp32",
                "out": "fp32",
                "values": "signs",
                "cast": True,
                "q_eps": CASTS_TO_0_7,
                "k_eps": CASTS_TO_0_7,
                "dtype": dtype,
            },
        )
        for dtype in ("bf16", "fp16")
    ),
    ("NaN and infinity", {"tokens": 5, "q": (0, 512), "k": (0, 128), "values": "not finite"}),
    ("rows of zeros", {"tokens": 5, "q": (0, 512), "k": (0, 128), "values": "zero rows"}),
    ("no rows", {"tokens": 0, "q": (0, 512), "k": (0, 128)}),
    ("no rows", {"tokens": 0, "q": (0, 0), "k": (0, 128)}),
    ("far rows", {"tokens": 2, "q": (0, 512), "k": (0, 128), "lay": "far0"}),
    ("far rows", {"tokens": 2, "q": (0, 0), "k": (0, 128), "lay": "far0"}),
    (
        "far out",
        {"tokens": 2, "q": (0, 512), "k": (0, 128), "out": "bf16", "out_lay": "far0"},
    ),
    *(
        ("far heads", {"tokens": 2, "q": (2, 128), "k": (3, 64), **more})
        for more in ({"lay": "far1"}, {"out": "bf16", "out_lay": "far1"})
    ),
    ("odd widths", {"tokens": 3, "q": (0, 2305), "k": (0, 7169), "row": True, "rope": 1}),
)

CASES = tuple(edges("fused_qk_rmsnorm", ((about, (QkNorm(**fields),)) for about, fields in _QK)))
