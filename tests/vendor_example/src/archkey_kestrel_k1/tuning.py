# SPDX-License-Identifier: Apache-2.0
"""How many rows a tile has: as many as fit the scratchpad beside a second operand."""

from __future__ import annotations

from dataclasses import dataclass

from archkey.conditions import Condition, at_most
from archkey.tuning import Row, Table


@dataclass(frozen=True)
class Tile:
    """rows: how many go through the scratchpad at once."""

    rows: int


_COUNTED = "not measured: 64 KiB are two operands of 8192 float32"


def by_width(*fields: str) -> Table:
    """Rows of `Tile` for problems whose widths are in `fields`."""

    def narrow(most: int) -> tuple[Condition, ...]:
        return tuple(at_most(field, most) for field in fields)

    return Table(
        (
            Row(Tile(rows=32), narrow(256), measured=_COUNTED),
            Row(Tile(rows=8), narrow(1024), measured=_COUNTED),
            Row(Tile(rows=2), narrow(4096), measured=_COUNTED),
            Row(Tile(rows=1), measured=_COUNTED),
        )
    )
