# SPDX-License-Identifier: Apache-2.0
"""What builders of page tables get wrong, a small case each, named by what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

from archkey.conformance.cases.attention.table_inputs import Ragged, Requests
from archkey.conformance.cases.spec import edges

__all__ = ["CASES"]

_LENS = (37, 5, 16, 70)
_PAGES = (1, 2, 4, 8, 32, 64, 128, 256)
_WIDTHS = ("int32", "int64")

_Rows = tuple[tuple[str, Iterable[dict[str, Any]]], ...]

# What holds for both operators: fields of what they have in common.
_SHARED: _Rows = (
    ("four sequences", ({}, {"swa": True})),
    *((f"page {page}", ({"page": page}, {"page": page, "swa": True})) for page in _PAGES),
    ("pages just full", ({"lens": (n, 2 * n)} for n in (15, 16, 17))),
    ("stale tail", ({"columns": n, "swa": swa} for n in (1, 40) for swa in (False, True))),
    ("no tail", ({"columns": 0, "rows": 0},)),
    ("tail is kept", ({"fill_tail": False, "columns": 9, "swa": swa} for swa in (False, True))),
    ("rows past the last sequence are kept", ({"rows": 5, "swa": swa} for swa in (False, True))),
    ("sequence without tokens", ({"lens": lens} for lens in ((0, 9), (9, 0, 0, 33), (9, 0)))),
    ("only sequences without tokens", ({"lens": (0, 0, 0)}, {"lens": (0,), "fill_tail": False})),
    ("no sequences", ({"lens": ()},)),
    ("many sequences", ({"lens": (3, 0, 9) * 22, "page": 4},)),
    (
        "more columns than a block",
        ({"lens": (1100, 3, 2050), "page": 1, "swa": swa} for swa in (False, True)),
    ),
    ("more columns of tail than a block", ({"page": 16, "columns": 2500},)),
    (
        "negative slots are page 0",
        (
            {"lens": (70, 100), "negative": slot, "page": page, "swa": swa, "slots": slots}
            for slot, page in ((-1, 16), (-17, 16), (-1, 1), (-200, 64))
            for swa in (False, True)
            for slots in _WIDTHS
        ),
    ),
    (
        "evicted slots are page 0",
        (
            {"lens": (70, 100, 5), "swa": True, "evicted": n, "page": page, **more}
            for n, page in ((1, 16), (3, 16), (9, 1))
            for more in ({}, {"negative": -1})
        ),
    ),
    ("dtypes", ({"slots": slots, "lengths": n} for slots in _WIDTHS for n in _WIDTHS)),
    ("slots past 2^31", ({"slots": "int64", "base": 2**33, "page": page} for page in (16, 128))),
    ("window slots past 2^31", ({"swa": True, "base": 2**33, "page": page} for page in (16, 128))),
    ("rows apart", ({"gap": gap, "swa": swa} for gap in (1, 16) for swa in (False, True))),
    ("both tables of one tensor", ({"beside": True, "swa": True, "columns": 7},)),
    *(
        (f"far {name}", ({"lens": (20, 5, 37), "rows": 0, "far": name, "swa": True},))
        for name in ("page_table", "swa_page_table")
    ),
)

_RAGGED: _Rows = (
    ("sequences do not start at entry 0", ({"around": n} for n in (1, 64))),
    ("list longer than the sequences", ({"around": 16, "lens": (9, 0, 33)},)),
)

_REQUESTS: _Rows = (
    (
        "draft tokens count",
        (
            {"lens": lens, "draft": draft, "page": page}
            for draft, page, lens in (
                (1, 16, (17, 33, 1)),
                (4, 1, (4, 9, 5)),
                (4, 16, (4, 18, 35, 16)),
                (20, 4, (20, 25, 41)),
            )
        ),
    ),
    ("draft tokens of the window pool", ({"draft": 4, "swa": True},)),
    ("dtypes of requests", ({"indices": rows, "draft": 4} for rows in _WIDTHS)),
    ("far req_to_token", ({"far": "req_to_token", "slots": slots} for slots in _WIDTHS)),
)


def _calls(call: Any, *tables: Any) -> Iterable[tuple[str, list[Any]]]:
    for about, rows in chain(*tables):
        yield about, [replace(call, **fields) for fields in rows]


_BOTH = tuple((about, tuple(rows)) for about, rows in _SHARED)

CASES = (
    *edges("ragged_kv_indices_to_page_table", _calls(Ragged(_LENS), _BOTH, _RAGGED)),
    *edges("req_to_token_to_page_table", _calls(Requests(_LENS), _BOTH, _REQUESTS)),
)
