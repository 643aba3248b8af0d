# SPDX-License-Identifier: Apache-2.0
"""Packed decode and the gates of KDA where they are easily done wrong: a row is a case."""

from __future__ import annotations

from typing import Any

from archkey.conformance.cases.kda.inputs_decode import Gate, Packed
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

Rows = tuple[tuple[str, dict[str, Any]], ...]

_PACKED: Rows = (
    *(("batch", {"batch": batch}) for batch in (0, 1, 2, 7)),
    *(("heads", {"batch": 2, "heads": heads}) for heads in ((1, 1), (3, 3), (1, 4), (3, 12))),
    *(
        ("dims", {"batch": 2, "dims": dims})
        for dims in ((64, 64), (60, 60), (100, 60), (64, 128), (128, 64), (256, 256), (3, 5))
    ),
    *(
        (
            "sequences without a slot",
            {"batch": 4, "skipped": skipped, "state": state, "wide": state == "bf16"},
        )
        for skipped in ((0,), (1, 2), (3,), (0, 1, 2, 3))
        for state in ("fp32", "bf16")
    ),
    ("slots in a column", {"batch": 3, "column": True}),
    *(
        ("dtypes", {"batch": 3, "dtype": dtype, "gate_dtype": gate, "out": out})
        for dtype, gate, out in (
            ("fp16", "fp32", "fp16"),
            ("fp32", "fp32", "fp32"),
            ("bf16", "fp16", "fp32"),
        )
    ),
    *(
        ("gate", {"batch": 3, "bound": bound, "A_log": A_log, "dt_bias": bias})
        for bound in (None, -5.0, -0.5)
        for A_log, bias in (
            ("normal", "normal"),
            ("mixed", "extreme"),
            ("normal", "absent"),
            ("fast", "flat"),
        )
    ),
    ("bound without A_log", {"batch": 3, "bound": -5.0, "A_log": "absent"}),
    *(
        (
            "raw gate past float32's exponential",
            {"batch": 3, "bound": bound, "values": "extreme", "A_log": "slow"},
        )
        for bound in (None, -5.0)
    ),
    ("no norm of q and k", {"batch": 3, "l2norm": False, "scale": 1.0}),
    *(
        ("norm of q and k", {"batch": 3, "small": small, "scale": scale, "dims": (100, 64)})
        for small in (False, True)
        for scale in (None, 0.7)
    ),
    *(("strided rows", {"batch": 3, "lay": layout}) for layout in ("slice", "odd")),
    *(
        ("strided out", {"batch": 3, "out_lay": layout, "out": "fp32"})
        for layout in ("slice", "odd", "heads")
    ),
    *(("strided pool", {"batch": 3, "pool_lay": layout}) for layout in ("slice", "odd", "heads")),
    ("far rows", {"batch": 3, "lay": "far0"}),
    ("far out", {"batch": 3, "out_lay": "far0"}),
    *(
        ("far slots", {"batch": 3, "pool_lay": "far0", "state": state})
        for state in ("fp32", "bf16")
    ),
)

_GATES: Rows = (
    *(
        ("width", {"dim": dim, "heads": heads})
        for dim, heads in ((64, 1), (60, 3), (100, 4), (256, 2), (1, 5))
    ),
    *(
        ("gate", {"bound": bound, "A_log": A_log, "dt_bias": bias})
        for bound in (None, -5.0, -0.5)
        for A_log, bias in (
            ("normal", "normal"),
            ("mixed", "extreme"),
            ("slow", "absent"),
            ("fast", "flat"),
        )
    ),
    *(
        (
            "raw gate past float32's exponential",
            {"bound": bound, "values": "extreme", "dtype": dtype},
        )
        for bound in (None, -5.0)
        for dtype in ("bf16", "fp32")
    ),
    ("softplus about its threshold", {"values": "threshold", "dtype": "fp32", "dt_bias": "absent"}),
    ("bound without A_log", {"bound": -5.0, "A_log": "absent"}),
    *(
        ("dtypes", {"dtype": dtype, "out": out})
        for dtype, out in (("fp16", "bf16"), ("fp32", "fp16"), ("bf16", "fp32"))
    ),
    *(
        ("strided", {"lay": layout, "out": "buffer", "out_lay": out})
        for layout, out in (
            ("slice", "packed"),
            ("odd", "slice"),
            ("heads", "odd"),
            ("packed", "heads"),
        )
    ),
)

_CHUNK: dict[str, Any] = {"chunk": 64}

_LENGTHS: Rows = (
    *(
        ("length beside a chunk's", {"shape": (2, n), "chunk": chunk})
        for n, chunk in ((1, 64), (63, 64), (64, 64), (65, 64), (31, 32), (33, 32), (130, 64))
    ),
    *(
        (
            "empty sequences",
            {
                "shape": (1, sum(lengths)),
                "lengths": lengths,
                "wide": chunk == 32,
                "chunk": chunk,
                "chunks": chunks,
            },
        )
        for lengths in ((0, 5, 70), (7, 0, 0, 66), (33, 0))
        for chunk in (32, 64)
        for chunks in (False, True)
    ),
    *(
        (
            "rows past the last sequence",
            {"shape": (1, sum(lengths) + 9), "lengths": lengths, "unit": unit},
        )
        for lengths in ((5, 0, 66), (64,), (0,))
        for unit in ("ln", "log2")
    ),
    *(
        (
            "sequences of no whole chunk",
            {"shape": (1, 200), "lengths": (15, 85, 100), "unit": unit, "bound": bound},
        )
        for unit in ("ln", "log2")
        for bound in (None, -5.0)
    ),
    *(("no tokens", {"shape": shape}) for shape in ((1, 0), (0, 5), (2, 0))),
    ("far tokens", {"shape": (1, 3), "lay": "far1"}),
    ("far tokens", {"shape": (1, 3), "out": "buffer", "out_lay": "far1"}),
)

_FAR: Rows = (
    ("far rows", {"lay": "far0"}),
    ("far rows", {"out": "buffer", "out_lay": "far0"}),
)

_SHAPES = ((), (0,), (1,), (2, 3), (2, 1, 3), (17,))

CASES = (
    *edges("kda_packed_decode", ((about, (Packed(**f),)) for about, f in _PACKED)),
    *edges("kda_gate", ((about, (Gate((5,), **f),)) for about, f in (*_GATES, *_FAR))),
    *edges("kda_gate", (("shape", map(Gate, _SHAPES)),)),
    *edges(
        "kda_gate_chunk_cumsum", ((about, (Gate((2, 70), chunk=64, **f),)) for about, f in _GATES)
    ),
    *edges("kda_gate_chunk_cumsum", ((about, (Gate(**_CHUNK | f),)) for about, f in _LENGTHS)),
)
