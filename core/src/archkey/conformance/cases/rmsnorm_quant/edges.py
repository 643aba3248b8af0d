# SPDX-License-Identifier: Apache-2.0
"""rmsnorm_quant where it is easily done wrong: a row of a table is a case."""

from __future__ import annotations

from typing import Any

from archkey.conformance.cases.rmsnorm_quant.inputs import EXACT, Quant
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

Rows = tuple[tuple[str, dict[str, Any]], ...]

_FP8 = ("fp8_tensor", "fp8_token", "fp8_group")
# Each kind with each rule for its scales and each layout of them.
_KINDS: tuple[dict[str, Any], ...] = (
    {"quant": "fp8_tensor"},
    *({"quant": "fp8_token", "mode": mode} for mode in ("fp32", "pow2")),
    *(
        {"quant": "fp8_group", "mode": mode, "layout": layout}
        for mode in ("fp32", "pow2")
        for layout in ("row", "col")
    ),
    *(
        {"quant": "mxfp4", "mode": mode, "layout": layout}
        for mode in ("rceil", "even", "floor", "ceil")
        for layout in ("row", "shuffled_gfx950")
    ),
    *({"quant": "nvfp4", "layout": layout} for layout in ("row", "swizzled_128x4")),
)
_PLAIN = tuple({"quant": quant} for quant in (*_FP8, "mxfp4", "nvfp4"))
_ROWS: dict[str, Any] = {"tokens": 5, "width": 512}
_HEADS: dict[str, Any] = {"tokens": 3, "width": 128, "heads": 3}

_EVERY: Rows = (
    *(("kinds", _ROWS | kind) for kind in _KINDS),
    *(("kinds, outputs given", _ROWS | kind | {"given": True}) for kind in _KINDS),
    *(
        ("width of a model", {"tokens": 2, "width": width, **kind})
        for kind in _PLAIN
        for width in (1536, 7168)
    ),
    *(("one row", {"tokens": 1, "width": 7168, **kind}) for kind in _PLAIN),
    *(("no rows", {"tokens": 0, "width": 512, **kind}) for kind in _KINDS),
    *(("rows of zeros", _ROWS | kind | {"values": "zero rows"}) for kind in _KINDS),
    *(
        ("NaN and infinity", _ROWS | kind | {"values": "not finite"})
        for kind in _PLAIN
        + ({"quant": "fp8_token", "mode": "pow2"}, {"quant": "fp8_group", "mode": "pow2"})
    ),
    *(("y not rounded first", {"tokens": 9, "width": 2048, **kind}) for kind in _PLAIN),
    *(
        ("residual", _ROWS | kind | {"residual": residual, "residual_out": out})
        for kind in _PLAIN
        for residual, out in (("bf16", ""), ("fp32", "new"), ("bf16", "x"))
    ),
    *(
        ("y too", _ROWS | kind | {"y": y, "residual": "fp16"})
        for kind in _PLAIN
        for y in ("fp32", "x")
    ),
    *(
        ("second norm", _ROWS | kind | {"x2": x2, "x2_out": out, "x2_eps": 1e-4})
        for kind in _PLAIN
        for x2, out in (((0, 512), ""), ((3, 64), "fp32"), ((0, 576), "x2"))
    ),
    *(("heads", {"tokens": 3, "width": 128, "heads": 3, "given": True, **kind}) for kind in _PLAIN),
    *(("weight bias", _ROWS | kind | {"bias": 1.0}) for kind in _PLAIN),
    *(
        ("rounded before the weight", {"tokens": 9, "width": 2048, "cast": True} | kind | more)
        for kind in _PLAIN
        for more in ({"y": "bf16"}, {"dtype": "fp16", "residual": "bf16", "x2": (0, 64)})
    ),
    *(
        ("eps under the root", _ROWS | kind | {"values": "tiny", "eps": 1e-5})
        for kind in _PLAIN[:1] + _PLAIN[4:]
    ),
    *(
        (
            "strided",
            _ROWS
            | kind
            | {
                "lay": layout,
                "residual": "bf16",
                "y": "bf16",
                "x2": (0, 64),
                "given": True,
                "out_lay": out,
            },
        )
        for kind in _PLAIN
        for layout, out in (("slice", "odd"), ("odd", "slice"))
    ),
    *(
        ("heads apart", {"tokens": 3, "width": 128, "heads": 3, "given": True, **kind, **more})
        for kind in _PLAIN
        for more in ({"lay": "heads"}, {"out_lay": "heads"})
    ),
    *(
        ("each in its own way", shape | kind | more | {"residual": "bf16", "y": "bf16"})
        for kind in _PLAIN
        for shape, more in (
            (_ROWS, {"lay": "slice", "residual_lay": "odd", "residual_out": "new"}),
            (_HEADS, {"lay": "heads", "residual_lay": "slice", "given": True, "out_lay": "odd"}),
            (_HEADS, {"residual_lay": "heads", "residual_out": "new", "out_lay": "slice"}),
        )
    ),
    *(
        ("row of several blocks", {"tokens": 2, "width": 16384, **kind, **more})
        for kind in _PLAIN
        for more in ({"residual": "bf16"}, {"y": "x", "lay": "slice"})
    ),
    *(("one row for all", _ROWS | kind | {"lay": "repeated"}) for kind in _PLAIN),
    *(
        ("dtypes", _ROWS | kind | {"dtype": dtype, "weight": weight})
        for kind in _PLAIN
        for dtype, weight in (("fp16", "fp32"), ("fp32", "bf16"))
    ),
    *(
        ("far rows", _ROWS | {"tokens": 2} | kind | more)
        for kind in _PLAIN
        for more in (
            {"lay": "far0"},
            {"lay": "far0", "residual": "bf16", "x2": (0, 64)},
            {"given": True, "out_lay": "far0", "y": "bf16"},
            {
                **{"residual": "bf16", "residual_out": "new", "x2": (0, 64), "x2_out": "bf16"},
                "out_lay": "far0",
            },
        )
    ),
    *(
        ("far heads", {"tokens": 2, "width": 128, "heads": 3, **kind, **more})
        for kind in _PLAIN
        for more in ({"lay": "far1"}, {"given": True, "out_lay": "far1"})
    ),
)

_SPECIAL: Rows = (
    *(
        ("scales apart", _ROWS | kind | {"given": True, "scale_lay": "slice"})
        for kind in (
            {"quant": "fp8_token"},
            {"quant": "fp8_group"},
            {"quant": "mxfp4"},
            {"quant": "nvfp4"},
        )
    ),
    *(
        (
            "columns of scales apart",
            _ROWS | {"quant": "fp8_group", "layout": "col", "given": True, **more},
        )
        for more in ({"scale_lay": "slice"}, {"scale_lay": "odd"}, {"heads": 3, "width": 256})
    ),
    *(
        (
            "far scales",
            _ROWS | {"quant": "fp8_group", "layout": layout, "given": True, "scale_lay": "far0"},
        )
        for layout in ("row", "col")
    ),
    *(
        (
            "groups",
            {"tokens": 3, "width": width, "quant": "fp8_group", "group": group, "mode": mode},
        )
        for width, group in ((512, 64), (384, 128), (512, 512), (200, 100), (96, 32), (111, 3))
        for mode in ("fp32", "pow2")
    ),
    *(
        ("odd width", {"tokens": 3, "width": width, "quant": quant})
        for quant in _FP8[:2]
        for width in (1, 111, 200, 513, 2305, 7169, 16385)
    ),
    *(
        (
            "last block not full",
            {"tokens": 3, "width": width, "quant": "mxfp4", "mode": mode, "layout": layout},
        )
        for width in (2, 34, 200, 1000, 7170)
        for mode, layout in (("rceil", "row"), ("even", "shuffled_gfx950"))
    ),
    *(
        ("padded scales", {"tokens": tokens, "width": width, **kind, "given": given})
        for tokens, width in ((1, 32), (33, 288), (257, 320))
        for kind in (
            {"quant": "mxfp4", "layout": "shuffled_gfx950"},
            {"quant": "nvfp4", "layout": "swizzled_128x4"},
        )
        for given in (False, True)
    ),
    *(
        ("scale of a tensor", _ROWS | {"quant": quant, "scale": scale})
        for quant in ("fp8_tensor", "nvfp4")
        for scale in (0.3, 0.0071)
    ),
    *(
        ("ties", _ROWS | {"quant": "fp8_tensor", "scale": 1.0, "weights": weights, **EXACT})
        for weights in ("fp8 ties", "fp8 subnormals")
    ),
    (
        "saturation",
        _ROWS | {"quant": "fp8_tensor", "scale": 1.0, "weights": "fp8 saturation", **EXACT},
    ),
    *(
        ("ties", _ROWS | {"quant": quant, "mode": "pow2", "weights": "fp8 ties", **EXACT})
        for quant in ("fp8_token", "fp8_group")
    ),
    *(
        ("ties", _ROWS | {"quant": "mxfp4", "mode": mode, "weights": weights, **EXACT})
        for mode, weights in (
            ("rceil", "fp4 ties"),
            ("even", "fp4 ties"),
            ("floor", "fp4 ties"),
            ("ceil", "fp4 ties, twice"),
        )
    ),
    *(
        ("ties", _ROWS | {"quant": "nvfp4", "scale": scale, "weights": "fp4 ties to 6", **EXACT})
        for scale in (1.0,)
    ),
    *(
        (
            "thresholds of scales",
            {
                "tokens": 2,
                "width": 1024,
                "quant": "mxfp4",
                "mode": mode,
                "weights": "fp4 thresholds",
                **EXACT,
            },
        )
        for mode in ("rceil", "even", "floor", "ceil")
    ),
    (
        "saturation",
        _ROWS | {"quant": "nvfp4", "scale": 2.0**-9, "weights": "fp4 ties to 6", **EXACT},
    ),
    *(
        ("blocks of zeros", _ROWS | kind | {"weights": "blocks of zeros", **EXACT})
        for kind in _PLAIN[2:]
    ),
    (
        "blocks whose scale is zero",
        _ROWS | {"quant": "nvfp4", "scale": 1.0, "weights": "blocks of dust", **EXACT},
    ),
)

CASES = tuple(
    edges("rmsnorm_quant", ((about, (Quant(**fields),)) for about, fields in (*_EVERY, *_SPECIAL)))
)
