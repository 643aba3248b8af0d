# SPDX-License-Identifier: Apache-2.0
"""What the parts of a pseudocode's expressions and assignments do: see `pseudocode`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tests.emulation.isa_numbers import FUNCTIONS, N, power, typed, wrapped

Env = dict[str, Any]
Node = Callable[[Env], Any]
TYPE = re.compile(r"(bf|fp|u|i|f|b)(\d+)$")


class Stop(Exception):
    """break, and return with a value."""


def leave(env: Env) -> None:
    raise Stop


def returned(value: N) -> None:
    raise Stop(value)


def called(env: Env, name: str, given: list[N]) -> N:
    found: Callable[..., N] = env[name] if name in env else FUNCTIONS[name]
    return found(*given)


def literal(word: str) -> N:
    if "'" in word:
        width, _, rest = word.partition("'")
        rest = rest.rstrip("UIFB") if not rest.startswith("0x") else rest
        if "." in rest:
            return N(float(rest), "f", int(width))
        return N(int(rest, 0), "u", int(width))
    if "." in word:
        return N(float(word.rstrip("F")), "f", 32 if word.endswith("F") else 64)
    plain = word.rstrip("UL")
    suffix = word[len(plain) :]
    width = 64 if "L" in suffix else 32 if "U" in suffix else None
    return N(int(plain, 0), "u" if "U" in suffix else "i", width)


def access(value: Node, kind: str, width: int, env: Env) -> N:
    found = value(env)
    if isinstance(found, _Place):
        found = found.load(width)
    return typed(found, "b" if kind == "fp" else kind, width)


def part(value: Node, high: Node, low: Node, env: Env) -> N:
    found, first, last = _plain(value(env)), low(env).value, high(env).value
    if first > last:  # the other way round
        size = first - last + 1
        raw = f"{found.bits >> last & (1 << size) - 1:0{size}b}"
        return N(int(raw[::-1], 2), "b", size)
    return N(found.bits >> first & (1 << (last - first + 1)) - 1, "b", last - first + 1)


def element(value: Node, at: Node, env: Env) -> Any:
    found, number = value(env), at(env).value
    if isinstance(found, dict):
        return _Place(found, number)
    if isinstance(found, list):
        return found[number]
    return N(_plain(found).bits >> number & 1, "u", 1)


class _Place(NamedTuple):
    """MEM[address]."""

    memory: dict[int, int]
    address: int

    def load(self, width: int) -> N:
        raw = bytes(self.memory[self.address + n] for n in range(width // 8))
        return N(int.from_bytes(raw, "little"), "b", width)


def _plain(found: Any) -> N:
    """Without a type MEM[address] has 32 bits."""
    return found.load(32) if isinstance(found, _Place) else found


def cast(inside: Node, kind: str, width: int, env: Env) -> N:
    found = _plain(inside(env))
    if kind == "f":
        if found.kind in ("f", "bf"):
            return N(found.value, "f", width, found.loud)
        return typed(N(found.bits, "b", width), "f", width)
    if found.kind in ("i", "u") and found.width is not None:
        return wrapped(found.value, kind, width)
    return typed(found, kind, width)


def joined(parts: list[N]) -> N:
    raw = total = 0
    for part in parts:
        assert part.width is not None
        raw, total = raw << part.width | part.bits, total + part.width
    return N(raw, "b", total)


def negated(sign: str, a: N) -> N:
    if sign == "!":
        return N(int(not a.value), "u", 1)
    if sign == "+":
        return a
    if a.kind in ("f", "bf"):
        return N(-a.value, a.kind, a.width)
    return wrapped(-a.value if sign == "-" else ~a.value, a.kind, a.width)


def applied(sign: str, left: Node, right: Node, env: Env) -> N:
    if sign in ("&&", "||"):
        first = bool(_plain(left(env)).value)
        if first == (sign == "||"):
            return N(int(first), "u", 1)
        return N(int(bool(_plain(right(env)).value)), "u", 1)
    return binary(sign, _plain(left(env)), _plain(right(env)))


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<>": lambda a, b: a < b or a > b,  # of floats: neither equal nor unordered
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def binary(sign: str, a: N, b: N) -> N:
    if sign in _COMPARE:
        return N(int(_COMPARE[sign](a.value, b.value)), "u", 1)
    if sign == "**":
        return power(a, b)
    widths = [n.width for n in (a, b) if n.width is not None]
    width = max(widths, default=None)
    if a.kind in ("f", "bf") or b.kind in ("f", "bf"):
        with np.errstate(all="ignore"):
            x, y = np.float64(a.value), np.float64(b.value)
            result = {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[sign]
        return N(float(result), "bf" if a.kind == "bf" else "f", width)
    kind = a.kind if a.width is not None else b.kind
    if sign in ("<<", ">>"):
        moved = a.value << b.value if sign == "<<" else a.value >> b.value
        return wrapped(moved, a.kind, a.width)
    apply: dict[str, Callable[[int, int], int]] = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "/": lambda x, y: x // y,
        "%": lambda x, y: x % y,
        "&": lambda x, y: x & y,
        "|": lambda x, y: x | y,
        "^": lambda x, y: x ^ y,
    }
    return wrapped(apply[sign](a.value, b.value), kind, width)


_REGISTERS = ("D0", "SCC", "VCC", "EXEC", "VDATA", "RETURN_DATA", "SDATA", "S0")


def assign(name: str, steps: list[tuple[str, Any, Any]], env: Env, value: N) -> None:
    """Assign to a variable, a part of one, or memory."""
    value = _plain(value)
    first, width, kind = 0, 0, ""
    for what, one, two in steps:
        if isinstance(env.get(name), dict) and what == "index":
            address = one(env).value
        elif isinstance(env.get(name), list) and what == "index":
            env[name] = [*env[name]]
            env[name][one(env).value] = typed(value, "b", env[name][0].width)
            return
        elif what == "index":
            first, width = first + one(env).value, 1
        elif what == "slice":
            low = two(env).value
            first, width = first + low, one(env).value - low + 1
        else:
            kind, width = one, width or two
    if kind in ("f", "bf") and value.kind in ("f", "bf"):
        value = typed(value, kind, width)
    if isinstance(env.get(name), dict):
        width = width or value.width or 32
        for n, byte in enumerate((value.bits & (1 << width) - 1).to_bytes(width // 8, "little")):
            env[name][address + n] = byte
        return
    if not steps and name not in _REGISTERS:
        env[name] = value
        return
    before = env[name].bits if name in env else 0
    width = width or env[name].width
    mask = (1 << width) - 1
    whole = before & ~(mask << first) | (value.bits & mask) << first
    known = env[name].width if name in env else None
    env[name] = N(whole, "b", max(known or 0, first + width))
