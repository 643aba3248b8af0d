# SPDX-License-Identifier: Apache-2.0
"""Functions beside a kernel: their bodies are put where they are called.

A call passes variables of .param space, each of which becomes a register here. Recursion, pointers
to functions and functions without a body are refused, but for vprintf and __assertfail. Source: PTX
ISA, Directives: .func; Control Flow Instructions: call; State Spaces: Parameter.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from archkey.conformance.emulation.faults import UnknownInstruction

__all__ = ["EXTERNAL", "Call", "Function", "call_of", "functions_of", "parameter_move"]

EXTERNAL = ("vprintf", "__assertfail")
"""Functions of the driver that the emulator has itself."""

_FUNCTION = re.compile(
    r"\.func\s+(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?\s*(?:\.\w+\s*)*([;{])"
)
_NAME = re.compile(r"([\w$]+)\s*(?:\[\d+\])?\s*$")
_CALL = re.compile(r"call(?:\.uni)?\s+(?:\(([^)]*)\)\s*,\s*)?([\w$]+)\s*(?:,\s*\(([^)]*)\))?\s*$")
_MOVE = re.compile(r"(ld|st)\.param\.[a-z](16|32|64)\s+(.*)$")
_PLACE = re.compile(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]$")


class Function(NamedTuple):
    """A body in the text: where it starts, names of results and of parameters."""

    start: int
    results: tuple[str, ...]
    parameters: tuple[str, ...]


class Call(NamedTuple):
    """The function, and the variables that results come in and arguments stand in."""

    name: str
    results: tuple[str, ...]
    arguments: tuple[str, ...]


class Move(NamedTuple):
    """ld.param or st.param of a variable: `bits` at `offset` of it, to or from another operand."""

    load: bool
    bits: int
    variable: str
    offset: int
    other: str


def _names(text: str | None) -> tuple[str, ...]:
    pieces = [piece.strip() for piece in (text or "").split(",") if piece.strip()]
    found = [_NAME.search(piece) for piece in pieces]
    if None in found:
        raise UnknownInstruction(f"unknown parameters of a function: {text}")
    return tuple(match[1] for match in found if match is not None)


def functions_of(text: str) -> dict[str, Function]:
    """All functions with a body. UnknownInstruction for what is declared and nobody has."""
    found: dict[str, Function] = {}
    declared: set[str] = set()
    for match in _FUNCTION.finditer(text):
        results, name, parameters, end = match.groups()
        if end == "{":
            found[name] = Function(match.end(), _names(results), _names(parameters))
        else:
            declared.add(name)
    if missing := declared - set(found) - set(EXTERNAL):
        raise UnknownInstruction(f"functions without a body: {', '.join(sorted(missing))}")
    return found


def call_of(statement: str) -> Call | None:
    """What a statement calls, if it is a call."""
    if not re.match(r"(?:@\S+\s+)?call\b", statement):
        return None
    found = _CALL.match(statement)
    if found is None:
        raise UnknownInstruction(f"a call that is not known: {statement}")
    split = [
        tuple(piece.strip() for piece in (text or "").split(",") if piece.strip())
        for text in (found[1], found[3])
    ]
    return Call(found[2], *split)


def parameter_move(statement: str) -> Move | None:
    """A statement that moves a variable of .param space, if it is one."""
    found = _MOVE.match(statement)
    if found is None:
        return None
    way, bits, operands = found.groups()
    first, _, second = operands.partition(",")
    place, other = (second, first) if way == "ld" else (first, second)
    where = _PLACE.match(place.strip())
    if where is None:
        return None
    return Move(way == "ld", int(bits), where[1], int(where[2] or 0), other.strip())
