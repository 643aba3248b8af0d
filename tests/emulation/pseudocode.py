# SPDX-License-Identifier: Apache-2.0
"""Interprets the pseudocode of AMD's ISA reference, as the package `tinygrad` ships it, for a lane.

Only what instructions of our tables need. It shares nothing with the emulator: numbers are Python's
integers and floats, memory is a dictionary of bytes, and functions are written down here once more,
in `isa_numbers`. The language is that of `isa_parser`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from tests.emulation.isa_numbers import FUNCTIONS, N, typed
from tests.emulation.isa_parser import Parser
from tests.emulation.isa_steps import Env, Node
from tinygrad.runtime.autogen.amd.cdna.str_pcode import PCODE

__all__ = ["TEXTS", "run"]

TEXTS: dict[str, str] = {}
"""Mnemonic without its encoding -> pseudocode."""
for _key, _text in PCODE.items():
    TEXTS.setdefault(re.sub(r"_E(32|64)$", "", _key.name).lower(), _text)


@functools.cache
def _program(name: str) -> Node:
    text = TEXTS[name].replace("VGPR[laneId][VDST.u32]", "D0")
    text = re.sub(r"\bD\.", "D0.", text)
    text = text.replace("WAVE_MODE.IEEE", "1'1U")  # as Triton's kernels set it
    # The truth table stands in bits of the encoding: it is given.
    text = re.sub(r"TTBL = [^;]*;", "", text)
    return Parser(text).block()


CONSTANTS = {
    "INF": N(math.inf, "f", 64),
    "NAN": N(math.nan, "f", 64),
    "ROUND_MODE": N(0, "u", 2),
    "ROUND_NEAREST_EVEN": N(0, "u", 2),
}


def run(name: str, given: dict[str, Any]) -> Env:
    """Execute the pseudocode of `name`; all variables afterwards. given: before."""
    env: Env = {**CONSTANTS, "D0": N(0, "b", 64), **given}
    with np.errstate(all="ignore"):
        _program(name)(env)
    return env


def _nested(name: str) -> Callable[..., N]:
    """An instruction that another one's pseudocode calls."""

    def apply(*given: N) -> N:
        kind, width = (given[0].kind, given[0].width or 32)
        sources = {f"S{n}": N(one.bits, "b", width) for n, one in enumerate(given)}
        return typed(run(name, sources)["D0"], kind, width)

    return apply


FUNCTIONS.update(
    {
        f"v_{name}{count}_{kind}": _nested(f"v_{name}{count}_{kind}")
        for name in ("max", "min")
        for count in ("", "3")
        for kind in ("f32", "f16", "i32", "u32")
    }
)
