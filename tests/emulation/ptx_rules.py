# SPDX-License-Identifier: Apache-2.0
"""Rules of the emulator of PTX, broken one at a time: `python -m tests.emulation.ptx_rules TARGET`.

Prints a JSON line for each: the kernel of `ptx_kernels` that noticed first, or null. Names of rules
after the target restrict it to these.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import numpy as np
import torch
from tests.emulation.ptx_kernels import Machine, kernels_of
from tests.emulation.ptx_tma_rules import ROWS_OF_FOUR, WRONG

from archkey.conformance.emulation import numbers
from archkey.conformance.emulation.ptx import (
    descriptors,
    fragments,
    program,
    tcgen05,
    tcgen05_copies,
    tcgen05_moves,
)


class Rule(NamedTuple):
    """Instead of `owner.name`, what is wrong; and where it is used."""

    owner: Any
    name: str
    wrong: Any
    targets: tuple[str, ...] = ("cuda_sm90", "cuda_sm100")


def _other_layout(**changes: Callable[[Any], Any]) -> Callable[..., Any]:
    right = descriptors.addresses

    def wrong(layout: Any, *rest: Any) -> Any:
        given = {name: change(layout) for name, change in changes.items()}
        return right(layout._replace(**given), *rest)

    return wrong


def _not_turned(layout: Any, rows: int, columns: int, bits: int, turned: bool) -> Any:
    found = _ADDRESSES(layout, rows, columns, bits, False)
    if not turned:
        return found
    return found.reshape(columns, -1)


def _swapped(right: Any, axis: int) -> Callable[..., Any]:
    return lambda *given: np.ascontiguousarray(np.flip(right(*given), axis))


_ADDRESSES = descriptors.addresses
_LEFT, _RIGHT, _WHOLE, _SPREAD = (
    *(fragments.left, fragments.right, fragments.whole, fragments.spread),
)
_SCALES, _LANES, _PATTERN, _PADDED = (
    *(tcgen05._scales, tcgen05._lanes, tcgen05_moves._pattern, tcgen05._padded),
)
_PACKED, _COPIED = fragments.packed, tcgen05_copies._move
_MEMBERS = tcgen05._members
_SM90, _SM100 = ("cuda_sm90",), ("cuda_sm100",)


def _rows_swapped(registers: list[Any], kind: str) -> Any:
    pairs = [
        registers[n ^ 1] if len(registers) > 1 else registers[n] for n in range(len(registers))
    ]
    return _LEFT(pairs, kind)


def _columns_swapped(matrices: Any) -> Any:
    found = _SPREAD(matrices)
    return found.reshape(-1, 2, found.shape[1])[:, ::-1].reshape(found.shape)


def _next_scale(S: Any, address: int, rows: int, kind: Any, number: int, power: bool) -> Any:
    count = kind.columns // kind.block
    return _SCALES(S, address, rows, kind, (number + count) % 4, power)


def _half_split(name: str, count: int, split: int, packed: bool) -> Any:
    return _PATTERN(name, count, 0, packed)


def _other_lanes(rows: int, lane: int) -> Any:
    return np.roll(_LANES(rows, lane), 8)


def _upside_down(data: Any, form: str) -> Any:
    """The halves of a byte the other way round."""
    return _PADDED(data << 4 | data >> 4, form)


def _helper(name: str, wrong: Any, targets: tuple[str, ...] = ("cuda_sm90", "cuda_sm100")) -> Rule:
    """A rule that the source of blocks calls by name."""
    return Rule(program.HELPERS, name, wrong, targets)


_HELP = dict(program.HELPERS)


def _turned_tiles(S: Any, G: Any, at: Any, count: int, turned: bool) -> Any:
    return _HELP["load_matrix"](S, G, at, count, not turned)


def _shuffled_tiles(S: Any, G: Any, at: Any, registers: list[Any], turned: bool) -> None:
    _HELP["store_matrix"](S, G, at, registers[::-1], turned)


def _always_adds(*given: Any) -> None:
    *first, keep, mask = given
    _HELP["tcgen05_mma"](*first, np.zeros_like(keep), mask)


def _never_keeps(
    S: Any, G: Any, kinds: Any, n: int, c: Any, a: Any, b: Any, keep: Any, *rest: Any
) -> Any:
    return _HELP["wgmma"](S, G, kinds, n, c, a, b, np.zeros_like(keep), *rest)


def _turned_pairs(accumulators: Any) -> Any:
    found = _PACKED(accumulators)
    return found << 16 | found >> 16 if accumulators.dtype == np.float16 else found


def _other_tile(name: str, count: int, split: int, packed: bool) -> Any:
    """Threads of the shapes of 16 lanes the other way round."""
    rows, columns = _PATTERN(name, count, split, packed)
    return (rows[:, ::-1], columns) if name in ("16x64b", "16x128b", "16x256b") else (rows, columns)


def _other_halves(name: str, count: int, split: int, packed: bool) -> Any:
    rows, columns = _PATTERN(name, count, split, packed)
    return rows, columns ^ 1 if packed else columns


def _first_rows(S: Any, shape: Any, column: int, descriptor: int) -> None:
    turned = shape._replace(quarters=shape.quarters[::-1])
    _COPIED(S, turned, column, descriptor)


RULES: dict[str, Rule] = {
    "swizzle": Rule(descriptors, "swizzled", lambda at, row: at),
    "stride offset": Rule(
        descriptors, "addresses", _other_layout(stride=lambda layout: layout.stride // 2)
    ),
    "leading offset": Rule(
        descriptors, "addresses", _other_layout(leading=lambda layout: layout.leading + 16)
    ),
    "transpose bits": Rule(descriptors, "addresses", _not_turned),
    "rows of A's fragment": Rule(fragments, "left", _rows_swapped),
    "rows of the accumulator": Rule(fragments, "spread", _columns_swapped, _SM90),
    "columns of B's fragment": Rule(fragments, "right", _swapped(_RIGHT, 1)),
    "the accumulator's order": Rule(fragments, "whole", _swapped(_WHOLE, 1)),
    "lanes of an accumulator": Rule(tcgen05, "_lanes", _other_lanes, _SM100),
    "half split of tcgen05.ld": Rule(tcgen05_moves, "_pattern", _half_split, _SM100),
    "order of a pair of workgroups": Rule(
        tcgen05, "_members", lambda S, pair: _MEMBERS(S, pair)[::-1], _SM100
    ),
    "pairs of float16": Rule(fragments, "packed", _turned_pairs, _SM90),
    "pairs of float16 in tensor memory": Rule(tcgen05_moves, "_pattern", _other_halves, _SM100),
    "lanes of other shapes": Rule(tcgen05_moves, "_pattern", _other_tile, _SM100),
    "quarters of tcgen05.cp": Rule(tcgen05_copies, "_move", _first_rows, _SM100),
    "scale id": Rule(tcgen05, "_scales", _next_scale, _SM100),
    # Of two operands of E2M1 the same mistake would cancel: only here one of them has it.
    "order of E2M1": Rule(tcgen05, "_padded", _upside_down, _SM100),
    "scale of E8M0": Rule(tcgen05, "e8m0", lambda codes: numbers.e8m0(codes) * 2, _SM100),
    "turned tiles of ldmatrix": _helper("load_matrix", _turned_tiles),
    "order of stmatrix": _helper("store_matrix", _shuffled_tiles, _SM90),
    "shuffles": _helper("butterfly", lambda G, value, distance: value),
    "the accumulator is kept, tcgen05": _helper("tcgen05_mma", _always_adds, _SM100),
    "the accumulator is kept, wgmma": _helper("wgmma", _never_keeps, _SM90),
    "halves of a pair": _helper("bf16_pair", lambda high, low: _HELP["bf16_pair"](low, high)),
    "FP8 codes": _helper("e4m3_pair", lambda high, low: _HELP["e4m3_pair"](low, high)),
    "bytes of prmt": _helper("permute", lambda a, b, selector: _HELP["permute"](b, a, selector)),
    "the upper half of a product": _helper("high", lambda a, b: a * b),
    **{name: Rule(*rule) for name, rule in WRONG.items()},
    **{name: Rule(*rule, _SM100) for name, rule in ROWS_OF_FOUR.items()},
}
"""Each changes what at least one kernel computes, or stops it."""


@contextmanager
def _broken(rule: Rule) -> Iterator[None]:
    """Within it, the rule is wrong, and kernels are read anew."""
    table = isinstance(rule.owner, dict)
    right = rule.owner[rule.name] if table else getattr(rule.owner, rule.name)

    def put(value: Any) -> None:
        program.load.cache_clear()
        descriptors._offsets.cache_clear()
        if table:
            rule.owner[rule.name] = value
        else:
            setattr(rule.owner, rule.name, value)

    put(rule.wrong)
    try:
        yield
    finally:
        put(right)


def _wrong(on: Machine, name: str) -> bool:
    """Whether the kernel fails, once and in one order."""
    torch.manual_seed(0)
    try:
        found = kernels_of(on.target)[name](on)
    except Exception:
        return True
    wide, want = found.out.double(), found.want.double()
    return not bool((wide - want).abs().max() <= found.allowed * want.abs().max())


def rules(on: Machine, *names: str) -> None:
    for name, rule in RULES.items():
        if on.target not in rule.targets or (names and name not in names):
            continue
        with _broken(rule):
            noticed = next((kernel for kernel in kernels_of(on.target) if _wrong(on, kernel)), None)
        sys.stdout.write(json.dumps({"rule": name, "noticed by": noticed}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rules(Machine(sys.argv[1]), *sys.argv[2:])
