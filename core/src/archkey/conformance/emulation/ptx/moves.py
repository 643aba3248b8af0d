# SPDX-License-Identifier: Apache-2.0
"""Loads, stores and atomics of threads, in global and shared memory.

Modifiers for caches and scopes change no value here, as everything is ordered. Source: PTX ISA,
Data Movement and Conversion Instructions: ld, st, atom, red.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.numbers import bf16_bits, bf16_values
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import (
    Address,
    Immediate,
    Instruction,
    Operand,
    Symbol,
    Vector,
)
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE", "elements_of", "kinds_of_registers"]


def _aligned(at: Array, span: int) -> None:
    if span > 1 and len(at) and (at & at.dtype.type(span - 1)).any():
        raise Fault(f"global memory is accessed at no multiple of {span} bytes")


def _load_global(S: Any, at: Array, size: int, count: int, mask: Any) -> Array:
    if mask is None or mask.all():
        _aligned(at, size * count)
        S.counters.loaded += size * count * len(at)
        return S.memory.load(at, size, count)
    result = np.zeros((count, len(at)), f"u{size}")
    if mask.any():
        chosen = at[mask]
        _aligned(chosen, size * count)
        S.counters.loaded += size * count * len(chosen)
        result[:, mask] = S.memory.load(chosen, size, count)
    return result


def _store_global(S: Any, at: Array, values: list[Array], mask: Any) -> None:
    data = np.stack(values) if len(values) > 1 else values[0][None]
    if mask is not None and not mask.all():
        if not mask.any():
            return
        at, data = at[mask], data[:, mask]
    _aligned(at, data.dtype.itemsize * len(data))
    S.counters.stored += data.dtype.itemsize * data.size
    S.memory.store(at, data)


def _load_shared(S: Any, G: Any, at: Array, size: int, count: int, mask: Any) -> Array:
    homes = S.homes(G)
    if mask is None or mask.all():
        return S.shared.load(at, size, count, homes)
    result = np.zeros((count, len(at)), f"u{size}")
    if mask.any():
        result[:, mask] = S.shared.load(at[mask], size, count, homes[mask])
    return result


def _store_shared(S: Any, G: Any, at: Array, values: list[Array], mask: Any) -> None:
    data = np.stack(values) if len(values) > 1 else values[0][None]
    warps, homes = G.tid.astype(np.int64) >> 5, S.homes(G)
    if mask is not None and not mask.all():
        if not mask.any():
            return
        at, data, warps, homes = at[mask], data[:, mask], warps[mask], homes[mask]
    S.shared.store(at, data, warps, homes)


def _added(kind: str) -> Callable[[Any, Any], Any]:
    """The sum of float16 or bfloat16, or of two of them in 32 bits."""

    def apply(a: Any, b: Any) -> Any:
        parts = [np.array([one]).view("u2") for one in (a, b)]
        if kind == "bf16":
            x, y = (bf16_values(part) for part in parts)
            return bf16_bits((x + y).astype(np.float32)).view(a.dtype)[0]
        x, y = (part.view(np.float16) for part in parts)
        return (x + y).view(a.dtype)[0]

    return apply


_ATOMS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "exch": lambda a, b: b,
    **{f"add.noftz.{kind}": _added(kind) for kind in ("f16", "bf16")},
}


def _atomic(
    S: Any, G: Any, space: str, name: str, kind: str, at: Array, values: list[Array], mask: Any
) -> Array:
    """One thread after the other; the old values."""
    size = np.dtype(kind).itemsize
    old = np.zeros(len(at), kind)
    chosen = range(len(at)) if mask is None else np.flatnonzero(mask)
    for n in chosen:
        one = at[n : n + 1]
        if space == "shared":
            before = S.shared.load(one, size, 1, S.homes(G)[n : n + 1])[0].view(kind)[0]
        else:
            _aligned(one, size)
            before = S.memory.load(one, size, 1)[0].view(kind)[0]
        old[n] = before
        if name == "cas":
            after = values[1][n] if before == values[0][n] else before
        elif name == "inc":
            after = 0 if before >= values[0][n] else before + 1
        else:
            after = _ATOMS[name](before, values[0][n])
        new = np.array([[after]], kind).view(f"u{size}")
        if space == "shared":
            S.shared.store(one, new, G.tid[n : n + 1].astype(np.int64) >> 5)
        else:
            S.memory.store(one, new)
    return old


HELPERS: dict[str, Any] = {
    **{"load_global": _load_global, "store_global": _store_global, "atomic": _atomic},
    **{"load_shared": _load_shared, "store_shared": _store_shared, "aligned": _aligned},
}


def elements_of(operand: Operand) -> list[Operand]:
    """The registers of a vector, or the one operand."""
    return list(operand.elements) if isinstance(operand, Vector) else [operand]


def _load(space: str, kind: str, count: int) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, source, *policy = instruction.operands
        targets = elements_of(target)
        if len(targets) != count or len(policy) > 1:
            raise UnknownInstruction(f"{len(targets)} results, {count} are expected")
        at = emitter.address(source, space == "global")
        size = int(kind[1])
        who = "S, " if space == "global" else "S, G, "
        call = f"load_{space}({who}{at}, {size}, {count}, {emitter.mask})"
        view = "" if kind[0] == "u" else f".view({kind})"
        emitter.results(targets, kind, call + view)

    return build


def _store(space: str, kind: str, count: int) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, source, *policy = instruction.operands
        sources = elements_of(source)
        if len(sources) != count or len(policy) > 1:
            raise UnknownInstruction(f"{len(sources)} values, {count} are expected")
        at = emitter.address(target, space == "global")
        values = ", ".join(emitter.vector(s, kind) for s in sources)
        who = "S, " if space == "global" else "S, G, "
        emitter.line(f"store_{space}({who}{at}, [{values}], {emitter.mask})")

    return build


def _parameter(kind: str) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, source = instruction.operands
        if not isinstance(source, Address) or not isinstance(source.base, Symbol) or source.offset:
            raise UnknownInstruction("a parameter that is not read as a whole")
        name, size = source.base.name, 8 * int(kind[1])
        if emitter.module.parameters.get(name, 0) != size:
            raise UnknownInstruction(f"{size} bits of the parameter {name}")
        value = f"full(G.n, u{kind[1]}(S.parameters[{name!r}]))"
        emitter.write(target, kind, f"{value}.view({kind})" if kind[0] != "u" else value)

    return build


def _atom(space: str, name: str, kind: str, result: bool) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        operands = list(instruction.operands)
        target = operands.pop(0) if result else None
        where, *sources = operands
        if len(sources) != (2 if name == "cas" else 1):
            raise UnknownInstruction(f"{len(sources)} operands of an atomic {name}")
        at = emitter.address(where, space == "global")
        values = ", ".join(emitter.vector(s, kind) for s in sources)
        call = f"atomic(S, G, {space!r}, {name!r}, {kind!r}, {at}, [{values}], {emitter.mask})"
        emitter.write(target, kind, call)

    return build


def _atoms(name: str, kind: str, count: int, result: bool) -> Builder:
    """Of neighbours in global memory, each by itself."""
    size = int(kind[1])

    def build(emitter: Emitter, instruction: Instruction) -> None:
        *target, where, source = instruction.operands
        targets = elements_of(target[0]) if result else [None] * count
        sources = elements_of(source)
        if len(sources) != count or len(targets) != count or len(target) != result:
            raise UnknownInstruction(f"{len(sources)} values, {count} are expected")
        at = emitter.fresh()
        emitter.line(f"{at} = {emitter.address(where, wide=True)}")
        emitter.line(
            f"aligned({at} if {emitter.mask} is None else {at}[{emitter.mask}], {size * count})"
        )
        for n, (one, to) in enumerate(zip(sources, targets, strict=True)):
            given = f"{at} + u8({n * size}), [{emitter.vector(one, kind)}], {emitter.mask}"
            call = f"atomic(S, G, 'global', {name!r}, {kind!r}, {given})"
            emitter.write(to, kind, call)

    return build


def _same_address(emitter: Emitter, instruction: Instruction) -> None:
    """cvta: addresses in global memory are generic ones."""
    target, source = instruction.operands
    if isinstance(source, Immediate):
        raise UnknownInstruction("the address of a constant")
    emitter.write(target, "u8", emitter.vector(source, "u8"))


def _parameter_address(emitter: Emitter, instruction: Instruction) -> None:
    """cvta.param: parameters have a space of their own."""
    target, source = instruction.operands
    emitter.write(target, "u8", f"({emitter.vector(source, 'u8')} + u8(S.origin))")


def kinds_of_registers() -> list[tuple[str, str]]:
    """(type of an instruction, numpy's kind)."""
    return [
        *((f"{c}{8 * n}", f"{'i' if c == 's' else 'u'}{n}") for c in "bus" for n in (1, 2, 4, 8)),
        *((f"f{8 * n}", f"f{n}") for n in (4, 8)),
    ]


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    kinds = kinds_of_registers()
    caches = (
        *("", ".L1::evict_last", ".L1::evict_first", ".L1::no_allocate", ".L1::evict_normal"),
        *(".L1::evict_last.L2::cache_hint", ".L1::evict_first.L2::cache_hint"),
        ".L2::cache_hint",
    )
    orders = (
        "",
        ".nc",
        ".volatile",
        ".relaxed.gpu",
        ".acquire.gpu",
        ".relaxed.sys",
        ".acquire.sys",
    )
    writes = ("", ".volatile", ".relaxed.gpu", ".release.gpu", ".wt", ".cs", ".cg")
    for (name, kind), count in itertools.product(kinds, (1, 2, 4)):
        if int(kind[1]) * count > 16:
            continue
        many = f".v{count}" if count > 1 else ""
        for space in ("shared", "shared::cta"):
            table[f"ld.{space}{many}.{name}"] = _load("shared", kind, count)
            table[f"st.{space}{many}.{name}"] = _store("shared", kind, count)
            table[f"ld.volatile.{space}{many}.{name}"] = _load("shared", kind, count)
        for order, cache in itertools.product(orders, caches):
            load = _load("global", kind, count)
            table[f"ld{order}.global{cache}{many}.{name}"] = load
            table[f"ld.global{order}{cache}{many}.{name}"] = load
        for order, cache in itertools.product(writes, caches):
            store = _store("global", kind, count)
            table[f"st{order}.global{cache}{many}.{name}"] = store
            table[f"st.global{order}{cache}{many}.{name}"] = store
        if count == 1:
            table[f"ld.param.{name}"] = _parameter(kind)
    scopes = [
        "",
        *(
            f".{o}.{s}"
            for o in ("relaxed", "acquire", "release", "acq_rel")
            for s in ("cta", "gpu", "sys")
        ),
    ]
    operations = [
        *(
            (o, t, k)
            for o in ("add", "min", "max")
            for t, k in kinds
            if t in ("u32", "s32", "u64", "s64")
        ),
        *(("add", t, t[0] + str(int(t[1:]) // 8)) for t in ("f32", "f64")),
        *(
            (o, t, k)
            for o in ("and", "or", "xor", "exch", "cas")
            for t, k in kinds
            if t in ("b32", "b64") or (o, t) == ("cas", "b16")
        ),
    ]
    small = [(f"add.noftz.{t}", t, "u2") for t in ("f16", "bf16")]
    small += [(f"add.noftz.{t}", f"{t}x2", "u4") for t in ("f16", "bf16")]
    for (operation, name, kind), order, space in itertools.product(
        [*operations, *small], scopes, ("global", "shared", "shared::cta")
    ):
        room = space.partition(":")[0]
        said = f"{operation.rpartition('.')[0] if '.' in operation else operation}.{name}"
        forms = [f"{order}.{space}", f".{space}{order}"]
        if order.count(".") == 2:  # newer syntax puts the scope before the order
            _, how, scope = order.split(".")
            forms.append(f".{space}.{scope}.{how}")
        for form in forms:
            table[f"atom{form}.{said}"] = _atom(room, operation, kind, True)
            table[f"red{form}.{said}"] = _atom(room, operation, kind, False)
    vectors = [("add.f32", "add", "f4", n) for n in (2, 4)]
    for t in ("f16", "bf16"):
        vectors += [(f"add.noftz.{t}", f"add.noftz.{t}", "u2", n) for n in (2, 4, 8)]
        vectors += [(f"add.noftz.{t}x2", f"add.noftz.{t}", "u4", n) for n in (2, 4)]
    for (said, operation, kind, count), order in itertools.product(vectors, scopes):
        head, _, name = said.rpartition(".")
        _, *parts = order.split(".")
        for form in {".".join(parts), ".".join(parts[::-1])}:
            key = f".global{'.' if form else ''}{form}.{head}.v{count}.{name}"
            table[f"atom{key}"] = _atoms(operation, kind, count, True)
            table[f"red{key}"] = _atoms(operation, kind, count, False)
    for space in ("to.global", "global"):
        table[f"cvta.{space}.u64"] = _same_address
    table["cvta.param.u64"] = _parameter_address
    return table


TABLE = _table()
