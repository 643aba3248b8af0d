# SPDX-License-Identifier: Apache-2.0
"""Rules of bulk copies, each of them wrong: see `ptx_rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from archkey.conformance.emulation.ptx import boxes, program, tensor_maps
from archkey.conformance.emulation.ptx.mbarriers import Mbarriers

__all__ = ["ROWS_OF_FOUR", "WRONG"]

_CUT, _ROW, _TOLD, _APPLIED = boxes.cut, boxes._row, Mbarriers.transferred, boxes._applied
_DESCRIBED, _FETCHED = tensor_maps.described, boxes.fetched
_HELP = dict(program.HELPERS)


def _map_with(**changes: Callable[[Any], Any]) -> Any:
    def wrong(tensor: Any, place: Any, rows: bool) -> Any:
        given = {name: change(tensor) for name, change in changes.items()}
        return _CUT(tensor._replace(**given), place, rows)

    return wrong


def _all_rows(tensor: Any, place: Any, rows: bool) -> Any:
    found = _CUT(tensor, place, rows)
    return found._replace(inside=np.broadcast_to(found.inside.any(0), found.inside.shape))


def _all_columns(tensor: Any, first: int) -> Any:
    offset, _, unit = _ROW(tensor, first)
    return offset, np.ones(offset.shape, np.bool_), unit


def _turned_place(tensor: Any, place: Any, rows: bool) -> Any:
    return _CUT(tensor, place if rows else place[::-1], rows)


def _turned_rows(S: Any, G: Any, rows: bool, to: Any, table: Any, place: Any, *rest: Any) -> None:
    place = (place[0], *place[:0:-1]) if rows else place
    _HELP["load_box"](S, G, rows, to, table, place, *rest)


def _next_row(S: Any, G: Any, space: str, name: str, at: Any, number: int, *rest: Any) -> None:
    """Dimensions counted from the outermost one."""
    other = 1 - number if name in ("global_dim", "box_dim") and number < 2 else number
    _HELP["replace_in_map"](S, G, space, name, at, other, *rest)


def _box_of_host(*given: Any) -> bytes:
    *first, box = given
    return _DESCRIBED(*first, box[::-1])


WRONG: dict[str, tuple[Any, str, Any]] = {
    "swizzle of boxes": (boxes, "swizzled", lambda at, row: at),
    "order of coordinates": (boxes, "cut", _turned_place),
    "strides of a tensor map": (boxes, "cut", _map_with(strides=lambda t: t.strides[::-1])),
    "size of a box": (boxes, "cut", _map_with(box=lambda t: (t.box[0], *t.box[:0:-1]))),
    "rows outside of a tensor": (boxes, "cut", _all_rows),
    "columns outside of a tensor": (boxes, "_row", _all_columns),
    "NaN outside of a tensor": (
        boxes,
        "fetched",
        lambda S, box: _FETCHED(S, box._replace(map=box.map._replace(nan=False))),
    ),
    "bytes that an mbarrier is told": (
        Mbarriers,
        "transferred",
        lambda self, at, count: _TOLD(self, at, count // 2),
    ),
    "reductions keep what was there": (boxes, "_applied", lambda name, kind, old, new: new),
    "dimensions of tensormap.replace": (program.HELPERS, "replace_in_map", _next_row),
    "boxes of the host's maps": (tensor_maps, "described", _box_of_host),
}
"""owner, name, what stands there instead."""
ROWS_OF_FOUR: dict[str, tuple[Any, str, Any]] = {
    "rows of gather4": (program.HELPERS, "load_box", _turned_rows)
}
"""On sm_100 alone. Wrong in gather4 and scatter4 alike it would cancel."""
