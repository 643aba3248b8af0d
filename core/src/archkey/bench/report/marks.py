# SPDX-License-Identifier: Apache-2.0
"""Symbols and colours of entrants, the same in plots and in text.

Colours are names of CSS variables, whose values differ between light and dark. Archkey has the
accent and the circle to itself; peers take from colours that people with any colour vision can
tell apart (Paul Tol's "muted" scheme, without its blues), and a shape each, so that colour is
never the only difference.
"""

from __future__ import annotations

import math

__all__ = ["Outline", "colour", "points", "reach", "shape"]

Outline = tuple[tuple[float, float], ...]

PEER_COLOURS = 8
"""The style sheet has this many: --p1 to --p8."""


def colour(mark: int) -> str:
    """The CSS variable of an entrant's colour; mark 0 is archkey."""
    return f"p{(mark - 1) % PEER_COLOURS + 1}" if mark else "accent"


def shape(mark: int) -> Outline:
    """The outline of an entrant's symbol, y upwards: all cover the area of a circle of radius 1."""
    return SHAPES[(mark - 1) % (len(SHAPES) - 1) + 1] if mark else SHAPES[0]


def reach(mark: int) -> float:
    """How far the symbol goes from its centre, along either axis."""
    return max(abs(at) for point in shape(mark) for at in point)


def points(mark: int) -> str:
    """`shape` as the points of an SVG polygon, y downwards."""
    return " ".join(f"{x:.2f},{-y:.2f}" for x, y in shape(mark))


def _regular(corners: int, turn: float, inner: float = 1.0) -> Outline:
    """A polygon of `corners`, turned by `turn` of a full turn; a star if every other is inside."""
    # Its area is corners/2 * sin(2 pi / corners) * outer radius * inner radius.
    outer = math.sqrt(2 * math.pi / (corners * math.sin(2 * math.pi / corners) * inner))
    return tuple(
        (radius * math.cos(angle), radius * math.sin(angle))
        for corner in range(corners)
        for radius in [outer * (inner if corner % 2 else 1)]
        for angle in [2 * math.pi * (corner / corners + turn)]
    )


SHAPES: tuple[Outline, ...] = (
    _regular(32, 0),  # a circle
    _regular(4, 1 / 8),  # a square
    _regular(3, 1 / 4),  # triangles: up, down, left, right
    _regular(3, 3 / 4),
    _regular(4, 0),  # a diamond
    _regular(10, 1 / 4, 0.5),  # a star
    _regular(5, 1 / 4),  # a pentagon
    _regular(3, 1 / 2),
    _regular(3, 0),
    _regular(8, 1 / 8, 0.4),  # a cross of four points
    _regular(6, 1 / 4),  # a hexagon
)
