# SPDX-License-Identifier: Apache-2.0
"""RMSNorm where it is easily done wrong: a row of a table is a case, its first entry says why."""

from __future__ import annotations

from typing import Any

from archkey.conformance.cases.rmsnorm import edges_qk
from archkey.conformance.cases.rmsnorm.inputs import CASTS_TO_0_7, AddNorm, Norm
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

Rows = tuple[tuple[str, dict[str, Any]], ...]

# What holds with and without a residual: fields of Norm. Outputs are float32 where a rounding in
# between, to bfloat16, would hide behind the one of the store.
_SHARED: Rows = (
    *(
        ("width of no power of two", {"tokens": 3, "width": width, "out": "fp32"})
        for width in (1, 2, 3, 111, 200, 513, 2305, 4097, 7169)
    ),
    *(
        ("width", {"tokens": 2, "width": width, "dtype": "fp16"})
        for width in (128, 512, 1536, 4096, 6144, 7168, 8192)
    ),
    *(
        ("row of several blocks", {"tokens": 2, "width": width, "out": out})
        for width in (16384, 18432)
        for out in ("fp32", "x")
    ),
    ("row of several blocks", {"tokens": 1, "width": 65536}),
    (
        "row of several blocks",
        {"tokens": 3, "width": 16385, "lay": "odd", "out": "bf16", "out_lay": "slice"},
    ),
    *(("rows that fill no tile", {"tokens": tokens, "width": 128}) for tokens in (1, 2, 17, 33)),
    *(
        ("only the last column", {"tokens": 2, "width": width, "values": "last column"})
        for width in (111, 512, 18432)
    ),
    ("no rows", {"tokens": 0, "width": 512}),
    ("no rows", {"tokens": 0, "width": 128, "heads": 4}),
    *(
        ("strided rows", {"tokens": 5, "width": width, "dtype": dtype, "lay": layout})
        for width, dtype in ((512, "bf16"), (576, "fp16"))
        for layout in ("slice", "odd")
    ),
    ("strided out", {"tokens": 5, "width": 512, "out": "bf16", "out_lay": "slice"}),
    ("strided out", {"tokens": 5, "width": 200, "out": "fp16", "out_lay": "odd", "lay": "slice"}),
    *(
        ("heads", {"tokens": 3, "width": 128, "heads": heads, "dtype": "fp16"})
        for heads in (1, 3, 4)
    ),
    *(
        ("heads apart", {"tokens": 3, "width": 128, "heads": heads, "lay": layout})
        for heads in (1, 3)
        for layout in ("heads", "slice")
    ),
    (
        "heads apart in out alone",
        {"tokens": 3, "width": 256, "heads": 3, "out": "fp16", "out_lay": "heads"},
    ),
    ("one row for all", {"tokens": 4, "width": 512, "lay": "repeated", "out": "fp32"}),
    (
        "one token for all",
        {"tokens": 3, "width": 128, "heads": 2, "lay": "repeated", "out": "fp16"},
    ),
    *(
        ("out is x", {"tokens": 3, "width": width, "lay": layout, "out": "x"})
        for width, layout in ((200, "packed"), (512, "slice"), (18433, "odd"))
    ),
    *(
        ("dtypes", {"tokens": 3, "width": 512, "dtype": dtype, "weight": weight, "out": out})
        for dtype, weight, out in (
            ("bf16", "fp32", "fp32"),
            ("bf16", "fp16", "fp16"),
            ("fp16", "fp32", "bf16"),
            ("fp32", "bf16", "fp16"),
            ("fp32", "fp32", "fp32"),
        )
    ),
    *(
        ("weight bias", {"tokens": 3, "width": 512, "bias": bias, "weight": weight, "out": "fp32"})
        for bias in (1.0, -0.5)
        for weight in ("bf16", "fp32")
    ),
    *(
        (
            "rounded before the weight" if cast else "not rounded before the weight",
            {
                **{"tokens": 3, "width": 512, "dtype": dtype, "weight": "fp32", "out": "fp32"},
                **{"values": "signs", "eps": CASTS_TO_0_7, "cast": cast},
            },
        )
        for dtype in ("bf16", "fp16")
        for cast in (True, False)
    ),
    *(
        ("eps under the root", {"tokens": 3, "width": 512, "values": "tiny", "eps": eps, **more})
        for eps in (1e-6, 1e-5)
        for more in ({}, {"dtype": "fp32"})
    ),
    ("eps alone", {"tokens": 3, "width": 512, "values": "faint", "out": "fp32"}),
    ("eps of 1", {"tokens": 3, "width": 512, "eps": 1.0, "out": "fp32"}),
    ("rows of zeros", {"tokens": 5, "width": 512, "values": "zero rows"}),
    ("mean not zero", {"tokens": 3, "width": 512, "values": "shifted"}),
    *(
        ("NaN and infinity", {"tokens": 5, "width": width, "values": "not finite", "dtype": dtype})
        for width, dtype in ((111, "bf16"), (512, "fp16"), (18432, "fp32"))
    ),
)

_NORM: Rows = (
    *_SHARED,
    (
        "squares past the range of float16",
        {"tokens": 3, "width": 512, "dtype": "fp16", "values": "large"},
    ),
    ("far rows", {"tokens": 3, "width": 512, "lay": "far0"}),
    (
        "far out",
        {"tokens": 3, "width": 512, "out": "bf16", "out_lay": "far0"},
    ),
    ("far rows in place", {"tokens": 2, "width": 512, "lay": "far0", "out": "x"}),
    *(
        ("far heads", {"tokens": 2, "width": 128, "heads": 3, **more})
        for more in ({"lay": "far1"}, {"out": "bf16", "out_lay": "far1"})
    ),
)

_ADD: Rows = (
    *_SHARED,
    # The sum is no number of float16 either, so it goes to float32.
    (
        "squares past the range of float16",
        {
            "tokens": 3,
            "width": 512,
            "dtype": "fp16",
            "values": "large",
            "out": "fp16",
            "residual": "fp32",
        },
    ),
    *(
        ("norm of the unrounded sum", {"tokens": 3, "width": width, "out": "fp32", "bias": 1.0})
        for width in (512, 18432)
    ),
    *(
        (
            "residual of another dtype",
            {"tokens": 3, "width": 2304, "dtype": dtype, "residual": residual},
        )
        for dtype, residual in (("bf16", "fp32"), ("fp32", "bf16"), ("fp16", "fp32"))
    ),
    *(
        ("in place", {"tokens": 3, "width": width, "lay": layout, "residual_lay": other})
        for width in (512, 18432)
        for layout, other in (("packed", "packed"), ("slice", "odd"))
    ),
    *(
        (
            "x and residual are only read",
            {"tokens": 3, "width": width, "out": "bf16", "residual_out": "new", "out_lay": layout},
        )
        for width in (512, 18432)
        for layout in ("packed", "odd")
    ),
    *(
        (
            "the outputs change places",
            {"tokens": 3, "width": width, "out": "residual", "residual_out": "x"},
        )
        for width in (512, 18432)
    ),
    ("residual heads apart", {"tokens": 3, "width": 128, "heads": 3, "residual_lay": "heads"}),
    *(
        ("far rows", {"tokens": 2, "width": 512, **more})
        for more in (
            {"lay": "far0"},
            {"residual_lay": "far0"},
            {"out": "bf16", "residual_out": "new", "out_lay": "far0"},
        )
    ),
    (
        "each heads apart in its own way",
        {
            **{"tokens": 3, "width": 128, "heads": 3, "lay": "heads", "residual_lay": "slice"},
            **{"out": "bf16", "residual_out": "new", "out_lay": "odd"},
        },
    ),
    *(
        ("far heads", {"tokens": 2, "width": 128, "heads": 3, **more})
        for more in (
            {"lay": "far1"},
            {"residual_lay": "far1"},
            {"out": "bf16", "residual_out": "new", "out_lay": "far1"},
        )
    ),
)

CASES = (
    *edges("rmsnorm", ((about, (Norm(**fields),)) for about, fields in _NORM)),
    *edges("fused_add_rmsnorm", ((about, (AddNorm(**fields),)) for about, fields in _ADD)),
    *edges_qk.CASES,
)
