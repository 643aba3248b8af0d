# SPDX-License-Identifier: Apache-2.0
"""chunk_kda and fused_recurrent_kda where they are easily done wrong: a row of a table is a case.

Packed decode and the gates alone are in `edges_decode.py`.
"""

from __future__ import annotations

from typing import Any

from archkey.conformance.cases.kda.inputs import ChunkKda, RecurrentKda
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

Rows = tuple[tuple[str, dict[str, Any]], ...]

# State in, state out, lengths on both sides of a chunk.
_TWO: dict[str, Any] = {"lengths": (70, 9), "heads": (2, 2), "state": "fp32", "final": "new"}
_RAW: dict[str, Any] = _TWO | {"gate": "raw", "g_dtype": "bf16", "l2norm": "unit"}
_POOL: dict[str, Any] = _TWO | {"final": "", "v_first": True, "slots": "one", "in_place": True}

# Small, for many tokens.
_TAILS: dict[str, Any] = {"heads": (1, 2), "dims": (64, 64), "state": "fp32", "final": "new"}

_LENGTHS: Rows = (
    *(
        ("length beside a chunk's", {"lengths": (n,), "batch": 2, "state": "fp32", "final": "new"})
        for n in (63, 64, 65, 127, 129)
    ),
    *(("short", {"lengths": (n,), "batch": 2, "final": "new"}) for n in (1, 2, 15, 16, 17, 33)),
    ("no tokens", {"lengths": (0,), "batch": 2, "state": "fp32", "final": "new"}),
    ("no batch", {"lengths": (), "final": "new"}),
    *(
        ("empty sequences", {"lengths": lengths, "state": state, "final": "new"})
        for lengths in ((0, 5, 70), (7, 0, 0, 66), (33, 0), (0, 0, 0))
        for state in ("", "fp32")
    ),
    *(
        ("sequences of no whole chunk", {"lengths": lengths, "heads": (2, 2), "final": "new"})
        for lengths in ((15, 85, 100), (100, 100, 100), (63, 64, 65))
    ),
    *(
        ("rows past the last sequence", {"lengths": lengths, "padding": 9, "final": "new"})
        for lengths in ((5, 0, 66), (64,), (0,), ())
    ),
    ("lengths on the host too", _TWO | {"cpu_lengths": True, "wide": True}),
    ("tails of blocks of 16", _TAILS | {"lengths": (1, 7, 8, 9, 14, 15, 16, 17, 18, 47, 48, 49)}),
    ("tails of chunks", _TAILS | {"lengths": (62, 63, 64, 65, 66, 126, 127, 128, 129, 130)}),
    ("more than a window", _TAILS | {"lengths": (2, 0, 518, 3), "heads": (1, 1), "low": -0.1}),
)

_SIZES: Rows = (
    *(("heads", _TWO | {"heads": heads}) for heads in ((1, 1), (3, 3), (5, 5))),
    *(("value heads", _TWO | {"heads": heads}) for heads in ((1, 4), (2, 6), (3, 12))),
    *(
        ("dims", _TWO | {"dims": dims, "v_first": v_first})
        for v_first in (False, True)
        for dims in ((60, 60), (64, 64), (100, 100), (256, 256), (128, 64), (64, 128), (100, 60))
    ),
    *(("small dims", _TWO | {"dims": dims}) for dims in ((1, 1), (16, 200), (3, 5))),
    *(
        ("dtypes", _TWO | {"dtype": dtype, "g_dtype": g, "beta_dtype": beta, "out": out})
        for dtype, g, beta, out in (
            ("bf16", "bf16", "bf16", ""),
            ("fp16", "fp16", "fp32", ""),
            ("fp32", "fp32", "fp32", ""),
            ("bf16", "fp32", "fp16", "fp32"),
            ("fp16", "fp32", "fp32", "bf16"),
        )
    ),
)

_GATES: Rows = (
    *(("no decay", _TWO | {"low": 0.0, "heads": heads}) for heads in ((1, 1), (1, 3))),
    *(
        ("gate of -5 everywhere", _TWO | {"low": -5.0, "flat": True, **m})
        for m in ({}, {"safe": True}, {"safe": True, "bound": -5.0}, {"dims": (256, 64)})
    ),
    *(
        ("gate units, 20 nats a chunk", _TWO | {"low": low, "flat": flat})
        for low, flat in ((-0.3, True), (-0.6, False))
    ),
    *(
        ("200 nats a chunk", _TWO | {"low": low, "flat": flat, "dims": dims})
        for low, flat, dims in ((-3.2, True, (128, 128)), (-6.4, False, (100, 60)))
    ),
    *(
        ("gates masked with 0", _TWO | {"masked": masked, "low": low, "heads": (1, 3)})
        for masked, low in ((0.5, -1.0), (0.9, -20.0), (0.1, -1000.0))
    ),
    *(("steep gates", _TWO | {"low": low}) for low in (-20.0, -200.0)),
    ("steep gates", _TWO | {"low": -20.0, "flat": True}),
    *(
        ("raw gate", _RAW | {"bound": bound, "A_log": A_log, "dt_bias": bias})
        for bound in (None, -5.0, -0.5)
        for A_log in ("normal", "mixed")
        for bias in ("normal", "extreme", "absent")
    ),
    *(
        ("bound without A_log", _RAW | {"bound": bound, "A_log": "absent", "safe": bound > -6})
        for bound in (-5.0, -20.0)
    ),
    *(
        (
            "raw gate past float32's exponential",
            _RAW | {"bound": bound, "values": "extreme", **more},
        )
        for bound in (None, -5.0)
        for more in ({"A_log": "slow"}, {"dt_bias": "extreme", "A_log": "fast"})
    ),
    ("softplus about its threshold", _RAW | {"values": "threshold", "A_log": "slow"}),
)

_BETAS: Rows = (
    *(("beta of 0 and 1", _TWO | {"sharp": True, "beta": beta}) for beta in ("given", "raw")),
    *(
        ("raw beta", _TWO | {"beta": beta, "beta_dtype": dtype})
        for beta in ("raw", "doubled")
        for dtype in ("bf16", "fp32")
    ),
    ("reflections", _TWO | {"beta": "doubled", "sharp": True}),
    *(
        ("norm of q and k", _TWO | {"l2norm": how, "dims": dims, "scale": scale})
        for how in ("unit", "small")
        for dims, scale in (((128, 128), None), ((100, 64), 1.0))
    ),
    *(("scale", _TWO | {"scale": scale}) for scale in (1.0, 0.03)),
)

_STATES: Rows = (
    *(
        ("state layout", _TWO | {"v_first": v_first, "dims": dims, "state": state, "final": final})
        for v_first in (False, True)
        for dims in ((128, 128), (64, 128))
        for state, final in (("fp32", "new"), ("bf16", "bf16"))
    ),
    *(
        ("first and last state of two dtypes", _TWO | {"state": state, "final": final})
        for state, final in (("bf16", "new"), ("fp32", "bf16"))
    ),
    ("state without a last one", _TWO | {"final": ""}),
    ("last state without a first one", _TWO | {"state": "", "final": "bf16"}),
    *(
        (
            "last state over the first",
            _TWO | {"final": "same", "state": state, "lengths": (70, 0, 9)},
        )
        for state in ("fp32", "bf16")
    ),
    ("strided states", _TWO | {"final": "fp32", "pool_lay": "slice"}),
    *(
        ("slots of nobody", _POOL | {"v_first": v_first, "state": state, "wide": state == "bf16"})
        for v_first in (False, True)
        for state in ("fp32", "bf16")
    ),
    ("slots in a column", _POOL | {"slots": "column"}),
    *(
        (
            "sequences without a slot",
            _POOL | {"lengths": (70, 9, 0, 5), "skipped": skipped, "state": state},
        )
        for skipped in ((0,), (1, 2), (3,), (0, 1, 2, 3))
        for state in ("fp32", "bf16")
    ),
    ("batch entries without a slot", _POOL | {"lengths": (20,), "batch": 3, "skipped": (1,)}),
    ("slots and rows of nobody", _POOL | {"padding": 5, "skipped": (1,), "heads": (1, 3)}),
    *(
        ("strided pool", _POOL | {"pool_lay": layout, "dims": (64, 60)})
        for layout in ("slice", "odd", "heads")
    ),
)

_STRIDES: Rows = (
    *(
        ("strided tokens", _TWO | {"lay": layout, "heads": heads})
        for layout in ("row", "slice", "odd", "heads")
        for heads in ((2, 2), (1, 3))
    ),
    *(("strided gate", _TWO | {"g_lay": layout}) for layout in ("slice", "odd", "heads")),
    *(
        ("strided out", _TWO | {"out": out, "out_lay": layout})
        for out, layout in (("bf16", "slice"), ("fp32", "odd"), ("fp16", "heads"))
    ),
    *(
        ("strided batch", {"lengths": (20,), "batch": 3, "heads": (2, 2), "lay": layout})
        for layout in ("row", "slice")
    ),
    ("out is v", _TWO | {"out": "v"}),
    ("out is v", {"lengths": (70,), "batch": 2, "lay": "row", "out": "v"}),
    *(
        ("far tokens", {"lengths": (3, 14), **more})
        for more in ({"lay": "far1"}, {"g_lay": "far1"}, {"out": "bf16", "out_lay": "far1"})
    ),
    *(
        ("far batch", {"lengths": (3,), "batch": 3, **more})
        for more in ({"lay": "far0"}, {"g_lay": "far0"}, {"out": "bf16", "out_lay": "far0"})
    ),
    *(
        ("far slots", _POOL | {"lengths": (3, 14), "pool_lay": "far0", **more})
        for more in ({}, {"state": "bf16"}, {"v_first": False})
    ),
    ("far states", _TWO | {"lengths": (3, 14), "final": "fp32", "pool_lay": "far0"}),
)

_BOTH = (*_LENGTHS, *_SIZES, *_GATES, *_BETAS, *_STATES, *_STRIDES)

_CHUNK: Rows = (
    *(
        ("chunks of 32", _TWO | {"chunk": 32, "lengths": lengths, "h": True})
        for lengths in ((31, 33, 64), (65, 0, 2))
    ),
    (
        "tails of chunks",
        _TAILS | {"chunk": 32, "lengths": (30, 31, 32, 33, 34, 62, 63, 64, 65, 66, 96, 97)},
    ),
    *(
        (
            "chunks given, with padding",
            _TWO | {"chunks": True, "lengths": lengths, "h": h, "wide": h},
        )
        for lengths in ((70, 9), (0, 100, 0, 30), (0, 0))
        for h in (False, True)
    ),
    *(
        (
            "states of chunks",
            _TWO | {"h": True, "v_first": v_first, "dims": (64, 128), "lengths": (129, 0, 64)},
        )
        for v_first in (False, True)
    ),
    (
        "states of chunks",
        {"lengths": (130,), "batch": 2, "h": True, "state": "fp32", "dtype": "fp16"},
    ),
    *(
        ("snapshots", _TWO | {"track": True, "v_first": v_first, "lengths": (130, 65, 64, 5, 0)})
        for v_first in (False, True)
    ),
    (
        "snapshots in a pool",
        _POOL | {"track": True, "h": True, "lengths": (130, 65, 64, 5), "skipped": (1,)},
    ),
    ("snapshots of a batch", {"lengths": (70,), "batch": 2, "track": True, "chunk": 32}),
    *(
        (
            "more chunks than small_grid",
            {
                "lengths": (65,),
                "batch": 1,
                "heads": (43, 129),
                "dims": (16, 16),
                "final": "new",
                "low": low,
            },
        )
        for low in (-1.0, -20.0)
    ),
)

_VERIFY: dict[str, Any] = _POOL | {"slots": "tokens", "lengths": (4, 2, 0, 4, 1)}

_RECURRENT: Rows = (
    *(
        (
            "a slot for each token",
            _VERIFY | {"accepted": accepted, "v_first": v_first, "state": state},
        )
        for accepted, v_first, state in (
            ("", True, "fp32"),
            ("", False, "bf16"),
            ("none", True, "fp32"),
            ("all", True, "fp32"),
            ("mixed", True, "fp32"),
            ("mixed", False, "bf16"),
            ("mixed", True, "bf16"),
        )
    ),
    (
        "a slot for each token of a batch",
        _VERIFY | {"lengths": (4,), "batch": 5, "accepted": "mixed"},
    ),
    ("tokens without slots", _VERIFY | {"accepted": "mixed", "skipped": (0, 3), "wide": True}),
    *(
        (
            "the pool is only read",
            _POOL
            | {
                "slots": slots,
                "in_place": False,
                "final": final,
                "lengths": (4, 2, 5),
                "skipped": (1,),
            },
        )
        for slots in ("one", "tokens")
        for final in ("", "new", "bf16")
    ),
    ("the pool is only read", _VERIFY | {"in_place": False, "final": "new", "accepted": "mixed"}),
    ("accepted tokens of one slot", _POOL | {"accepted": "mixed"}),
    *(
        ("in place without slots", _TWO | {"in_place": True, "final": "", "state": state})
        for state in ("fp32", "bf16")
    ),
    *(
        (
            "decode",
            _POOL
            | {
                "lengths": (1,) * 6,
                "heads": heads,
                "dims": dims,
                "skipped": (2, 5),
                "l2norm": "unit",
                "gate": "raw",
                "beta": "raw",
            },
        )
        for heads in ((1, 1), (3, 12))
        for dims in ((128, 128), (100, 60))
    ),
    ("far slots of tokens", _VERIFY | {"pool_lay": "far0", "accepted": "all"}),
)

CASES = (
    *edges("chunk_kda", ((about, (ChunkKda(**f),)) for about, f in (*_BOTH, *_CHUNK))),
    *edges(
        "fused_recurrent_kda", ((about, (RecurrentKda(**f),)) for about, f in (*_BOTH, *_RECURRENT))
    ),
)
