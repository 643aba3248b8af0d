# SPDX-License-Identifier: Apache-2.0
"""Instructions that compute a register of a thread from registers of the same thread.

A row of the table is a mnemonic with all its modifiers: what it does is an expression of numpy, in
which {0}, {1}, {2} are the operands as the kinds that stand beside it. Source: PTX ISA, chapters
Integer Arithmetic, Floating-Point, Half Precision, Comparison, Logic and Shift Instructions.
"""

from __future__ import annotations

from typing import NamedTuple

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Immediate, Instruction

__all__ = ["TABLE", "Alu", "built"]


class Alu(NamedTuple):
    """expression of operands of `kinds`, a value of kind `result`."""

    result: str
    kinds: tuple[str, ...]
    expression: str


def built(row: Alu) -> Builder:
    """The builder that emits `row`."""

    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, *sources = instruction.operands
        if len(sources) != len(row.kinds):
            raise UnknownInstruction(f"{len(sources)} operands, {len(row.kinds)} are expected")
        constant = all(isinstance(source, Immediate) for source in sources)
        read = emitter.vector if constant else emitter.read
        values = [read(s, kind) for s, kind in zip(sources, row.kinds, strict=True)]
        emitter.write(target, row.result, row.expression.format(*values))

    return build


def _integers() -> dict[str, Alu]:
    rows: dict[str, Alu] = {}
    for bits in (16, 32, 64):
        n = bits // 8
        for sign in "su":
            kind = f"{'i' if sign == 's' else 'u'}{n}"
            name, two, three = f"{sign}{bits}", (kind,) * 2, (kind,) * 3
            rows |= {
                f"add.{name}": Alu(kind, two, "{0} + {1}"),
                f"sub.{name}": Alu(kind, two, "{0} - {1}"),
                f"mul.lo.{name}": Alu(kind, two, "{0} * {1}"),
                f"mad.lo.{name}": Alu(kind, three, "{0} * {1} + {2}"),
                f"div.{name}": Alu(kind, two, "divide({0}, {1})"),
                f"rem.{name}": Alu(kind, two, "remainder({0}, {1})"),
                f"min.{name}": Alu(kind, two, "np.minimum({0}, {1})"),
                f"max.{name}": Alu(kind, two, "np.maximum({0}, {1})"),
                f"shr.{name}": Alu(kind, (kind, "u4"), "right({0}, {1})"),
            }
            if bits < 64:
                wide = f"{kind[0]}{2 * n}"
                product = f"{{0}}.astype({wide}) * {{1}}.astype({wide})"
                rows[f"mul.wide.{name}"] = Alu(wide, two, product)
                rows[f"mad.wide.{name}"] = Alu(wide, (*two, wide), product + " + {2}")
            if sign == "s":
                rows[f"neg.{name}"] = Alu(kind, (kind,), "-{0}")
                rows[f"abs.{name}"] = Alu(kind, (kind,), "np.abs({0})")
        one, both, shift = (f"u{n}",), (f"u{n}",) * 2, (f"u{n}", "u4")
        rows |= {
            f"and.b{bits}": Alu(f"u{n}", both, "{0} & {1}"),
            f"or.b{bits}": Alu(f"u{n}", both, "{0} | {1}"),
            f"xor.b{bits}": Alu(f"u{n}", both, "{0} ^ {1}"),
            f"not.b{bits}": Alu(f"u{n}", one, "~{0}"),
            f"shl.b{bits}": Alu(f"u{n}", shift, "left({0}, {1})"),
            f"shr.b{bits}": Alu(f"u{n}", shift, "right({0}, {1})"),
        }
        if bits > 16:
            rows[f"popc.b{bits}"] = Alu("u4", one, "ones({0})")
            rows[f"clz.b{bits}"] = Alu("u4", one, "leading({0})")
    return rows


def _floats() -> dict[str, Alu]:
    rows: dict[str, Alu] = {}
    one, two, three = ("f4",), ("f4",) * 2, ("f4",) * 3
    plain = {
        **{name: (two, f"{{0}} {sign} {{1}}") for name, sign in _SIGNS.items()},
        "fma.rn": (three, "fma({0}, {1}, {2})"),
        "neg": (one, "-{0}"),
        "abs": (one, "np.abs({0})"),
        "min": (two, "smaller({0}, {1})"),
        "max": (two, "larger({0}, {1})"),
        "min.NaN": (two, "np.minimum({0}, {1})"),
        "max.NaN": (two, "np.maximum({0}, {1})"),
        "div.full": (two, "{0} / {1}"),
        "div.approx": (two, "{0} / {1}"),
        "div.rn": (two, "{0} / {1}"),
        "rcp.rn": (one, "f4(1) / {0}"),
        "rcp.approx": (one, "f4(1) / {0}"),
        "sqrt.rn": (one, "np.sqrt({0})"),
        "sqrt.approx": (one, "np.sqrt({0})"),
        "rsqrt.approx": (one, "root({0})"),
        "ex2.approx": (one, "np.exp2({0})"),
        "lg2.approx": (one, "np.log2({0})"),
        "sin.approx": (one, "np.sin({0})"),
        "cos.approx": (one, "np.cos({0})"),
    }
    for name, (kinds, expression) in plain.items():
        rows[f"{name}.f32"] = Alu("f4", kinds, expression)
        flushed = expression.format(*(f"flush({{{n}}})" for n in range(len(kinds))))
        rows[f"{name}.ftz.f32"] = Alu("f4", kinds, f"flush({flushed})")
    rows["tanh.approx.f32"] = Alu("f4", one, "np.tanh({0})")
    rows["min.NaN.xorsign.abs.f32"] = Alu("f4", two, "xorsign_min({0}, {1})")
    rows["copysign.f32"] = Alu("f4", two, "np.copysign({1}, {0})")
    rows |= _doubles()
    for name, count in {"add": 2, "sub": 2, "mul": 2, "fma": 3}.items():
        calls = ", ".join(f"{{{n}}}" for n in range(count))
        for mode in ("", ".rn") if name != "fma" else (".rn",):
            rows[f"{name}{mode}.f32x2"] = Alu("u8", ("u8",) * count, f"pair_{name}({calls})")
            for kind, helper in (("f16", "half"), ("bf16", "brain")):
                row = Alu("u2", ("u2",) * count, f"{helper}_{name}({calls})")
                rows[f"{name}{mode}.{kind}"] = row
                packed = Alu("u4", ("u4",) * count, f"{helper}2_{name}({calls})")
                rows[f"{name}{mode}.{kind}x2"] = packed
    for kind, helper in (("f16", "half"), ("bf16", "brain")):
        for name in ("min", "max"):
            rows[f"{name}.{kind}"] = Alu("u2", ("u2",) * 2, f"{helper}_{name}({{0}}, {{1}})")
            rows[f"{name}.{kind}x2"] = Alu("u4", ("u4",) * 2, f"{helper}2_{name}({{0}}, {{1}})")
        rows[f"neg.{kind}"] = Alu("u2", ("u2",), "{0} ^ u2(0x8000)")
        rows[f"neg.{kind}x2"] = Alu("u4", ("u4",), "{0} ^ u4(0x80008000)")
        rows[f"abs.{kind}"] = Alu("u2", ("u2",), "{0} & u2(0x7FFF)")
        rows[f"abs.{kind}x2"] = Alu("u4", ("u4",), "{0} & u4(0x7FFF7FFF)")
    return rows


def _doubles() -> dict[str, Alu]:
    one, two, three = ("f8",), ("f8",) * 2, ("f8",) * 3
    plain = {
        **{name: (two, f"{{0}} {sign} {{1}}") for name, sign in _SIGNS.items()},
        "fma.rn": (three, "fma_double({0}, {1}, {2})"),
        "neg": (one, "-{0}"),
        "abs": (one, "np.abs({0})"),
        "min": (two, "smaller({0}, {1})"),
        "max": (two, "larger({0}, {1})"),
        "div.rn": (two, "{0} / {1}"),
        "rcp.rn": (one, "f8(1) / {0}"),
        "rcp.approx.ftz": (one, "f8(1) / {0}"),
        "sqrt.rn": (one, "np.sqrt({0})"),
        "rsqrt.approx": (one, "f8(1) / np.sqrt({0})"),
        "rsqrt.approx.ftz": (one, "f8(1) / np.sqrt({0})"),
    }
    rows = {f"{name}.f64": Alu("f8", kinds, text) for name, (kinds, text) in plain.items()}
    rows["copysign.f64"] = Alu("f8", two, "np.copysign({1}, {0})")
    return rows


_SIGNS = {
    **{"add": "+", "sub": "-", "mul": "*"},
    **{"add.rn": "+", "sub.rn": "-", "mul.rn": "*"},
}


def _comparisons() -> dict[str, Alu]:
    signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    unsigned = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
    rows: dict[str, Alu] = {}
    for bits in (16, 32, 64):
        n = bits // 8
        for name, sign in signs.items():
            text = f"{{0}} {sign} {{1}}"
            rows[f"setp.{name}.s{bits}"] = Alu("pred", (f"i{n}",) * 2, text)
            rows[f"setp.{name}.u{bits}"] = Alu("pred", (f"u{n}",) * 2, text)
            if name in ("eq", "ne"):
                rows[f"setp.{name}.b{bits}"] = Alu("pred", (f"u{n}",) * 2, text)
        for name, sign in unsigned.items():
            rows[f"setp.{name}.u{bits}"] = Alu("pred", (f"u{n}",) * 2, f"{{0}} {sign} {{1}}")
    opposite = {"eq": "!=", "lt": ">=", "le": ">", "gt": "<=", "ge": "<"}
    for type_, kind in (("f16", "f2"), ("f32", "f4"), ("f64", "f8"), ("bf16", "u2")):
        a, b = (f"bf16_values({{{n}}})" if type_ == "bf16" else f"{{{n}}}" for n in (0, 1))
        texts = {name: f"{a} {sign} {b}" for name, sign in signs.items()}
        texts["ne"] = f"({a} < {b}) | ({a} > {b})"  # an ordered comparison: false with a NaN
        texts |= {f"{name}u": f"~({a} {sign} {b})" for name, sign in opposite.items()}
        texts |= {"neu": f"{a} != {b}", "nan": f"np.isnan({a}) | np.isnan({b})"}
        texts["num"] = f"~(np.isnan({a}) | np.isnan({b}))"
        for name, text in texts.items():
            rows[f"setp.{name}.{type_}"] = Alu("pred", (kind,) * 2, text)
    return rows


def _selections() -> dict[str, Alu]:
    rows: dict[str, Alu] = {}
    for bits in (16, 32, 64):
        n = bits // 8
        for letter in "bsu" + ("f" if bits > 16 else ""):
            kind = f"{'f' if letter == 'f' else 'u'}{n}"
            text = "where({2}, {0}, {1})"
            rows[f"selp.{letter}{bits}"] = Alu(kind, (kind, kind, "pred"), text)
            rows[f"mov.{letter}{bits}"] = Alu(kind, (kind,), "{0}")
    logic = {"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}"}
    rows |= {f"{name}.pred": Alu("pred", ("pred",) * 2, text) for name, text in logic.items()}
    rows["not.pred"] = Alu("pred", ("pred",), "~{0}")
    rows["mov.pred"] = Alu("pred", ("pred",), "{0}")
    return rows


_ROWS: dict[str, Alu] = {
    **_integers(),
    **_floats(),
    **_comparisons(),
    **_selections(),
    "add.s16x2": Alu("u4", ("u4",) * 2, "add_halves({0}, {1})"),
    # The narrow operand is widened, which is exact.
    "add.rn.f32.bf16": Alu("f4", ("u2", "f4"), "bf16_values({0}) + {1}"),
    "mul.hi.s16": Alu("i2", ("i2",) * 2, "high({0}, {1})"),
    "mul.hi.u16": Alu("u2", ("u2",) * 2, "high({0}, {1})"),
    "mul.hi.s32": Alu("i4", ("i4",) * 2, "high({0}, {1})"),
    "mul.hi.u32": Alu("u4", ("u4",) * 2, "high({0}, {1})"),
    "mul.hi.s64": Alu("u8", ("i8",) * 2, "high64_signed({0}, {1})"),
    "mul.hi.u64": Alu("u8", ("u8",) * 2, "high64({0}, {1})"),
    "min.relu.s32": Alu("i4", ("i4",) * 2, "np.maximum(np.minimum({0}, {1}), i4(0))"),
    "max.relu.s32": Alu("i4", ("i4",) * 2, "np.maximum(np.maximum({0}, {1}), i4(0))"),
    "bfi.b32": Alu("u4", ("u4",) * 4, "insert({0}, {1}, {2}, {3})"),
    "brev.b32": Alu("u4", ("u4",), "reversed_bits({0})"),
    "prmt.b32": Alu("u4", ("u4",) * 3, "permute({0}, {1}, {2})"),
    **{
        f"shf.{side}.{mode}.b32": Alu(
            "u4", ("u4",) * 3, f"funnel_{side}_{mode}({{0}}, {{1}}, {{2}})"
        )
        for side in "lr"
        for mode in ("wrap", "clamp")
    },
}


def _shift(name: str, kind: str, sign: str) -> Builder:
    """A shift by a constant below the width needs no clamp."""
    general = built(_ROWS[name])

    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, value, by = instruction.operands
        if not isinstance(by, Immediate) or not 0 <= by.value < 8 * int(kind[1]):
            general(emitter, instruction)
            return
        source = emitter.vector(value, kind)
        emitter.write(target, kind, f"{source} {sign} {kind}({int(by.value)})")

    return build


def _field(name: str, kind: str) -> Builder:
    """Bit fields, mostly at constant places."""
    general = built(Alu(kind, (kind, "u4", "u4"), "extract({0}, {1}, {2})"))

    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, value, at, size = instruction.operands
        fixed = isinstance(at, Immediate) and isinstance(size, Immediate)
        if not fixed or not 0 < int(at.value) + int(size.value) <= 32 or not size.value:  # type: ignore[union-attr]
            general(emitter, instruction)
            return
        source = emitter.vector(value, kind)
        which = "extract_u" if kind == "u4" else "extract_s"
        call = f"{which}({source}, {int(at.value)}, {int(size.value)})"  # type: ignore[union-attr]
        emitter.write(target, kind, call)

    return build


def _lop3(emitter: Emitter, instruction: Instruction) -> None:
    target, a, b, c, table = instruction.operands
    if not isinstance(table, Immediate):
        raise UnknownInstruction("lop3 with a table that is no constant")
    values = ", ".join(emitter.vector(x, "u4") for x in (a, b, c))
    emitter.write(target, "u4", f"lop3({values}, {int(table.value)})")


def _extreme(name: str, call: str) -> Builder:
    """min and max, of three on Blackwell."""
    two = built(_ROWS[name])
    three = built(Alu("f4", ("f4",) * 3, f"{call}({call}({{0}}, {{1}}), {{2}})"))

    def build(emitter: Emitter, instruction: Instruction) -> None:
        many = len(instruction.operands) == 4 and emitter.module.target == "sm_100a"
        (three if many else two)(emitter, instruction)

    return build


_SHIFTS = [
    *((f"shl.b{8 * n}", f"u{n}", "<<") for n in (2, 4, 8)),
    *(
        (f"shr.{c}{8 * n}", f"{'i' if c == 's' else 'u'}{n}", ">>")
        for n in (2, 4, 8)
        for c in "sub"
    ),
]

TABLE: dict[str, Builder] = {
    **{name: built(row) for name, row in _ROWS.items()},
    **{name: _shift(name, kind, sign) for name, kind, sign in _SHIFTS},
    "min.f32": _extreme("min.f32", "smaller"),
    "max.f32": _extreme("max.f32", "larger"),
    "min.NaN.f32": _extreme("min.NaN.f32", "np.minimum"),
    "max.NaN.f32": _extreme("max.NaN.f32", "np.maximum"),
    "bfe.u32": _field("bfe.u32", "u4"),
    "bfe.s32": _field("bfe.s32", "i4"),
    "bfe.u64": built(Alu("u8", ("u8", "u4", "u4"), "extract({0}, {1}, {2})")),
    "lop3.b32": _lop3,
}
