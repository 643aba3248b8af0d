# SPDX-License-Identifier: Apache-2.0
"""Tensor maps: 128 bytes that tell TMA of a tensor in global memory, and of boxes in it.

The hardware's bits are not public, so they have a form of the emulator's own, which the host fills
or the kernel with tensormap.replace. Dimensions count from the innermost one on. Source: PTX ISA,
Tensors: Tiled mode, Swizzling modes; tensormap.replace; CUDA driver API, cuTensorMapEncodeTiled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Immediate, Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["BYTES", "HELPERS", "TABLE", "TensorMap", "described", "loaded"]

BYTES = 128

_FORM = np.dtype(
    [
        *(("global_address", "u8"), ("global_stride", "u8", 4), ("global_dim", "u4", 5)),
        *(("box_dim", "u4", 5), ("element_stride", "u4", 5), ("rank", "u1"), ("elemtype", "u1")),
        *(("interleave_layout", "u1"), ("swizzle_mode", "u1"), ("fill_mode", "u1")),
        *(("padding", "u1", 3), ("filled", "u4"), ("mark", "u4"), ("end", "u1", 12)),
    ]
)
_MARK = 0x70616D74
# Bit of `filled` for each field, and for each dimension of those that have several. Who fills a map
# begins with zeros, and the newest Triton leaves them where zero is right.
_FIELDS = {
    **{"global_address": 0, "rank": 1, "elemtype": 2, "interleave_layout": 3, "swizzle_mode": 4},
    **{"fill_mode": 5, "global_dim": 6, "box_dim": 11, "element_stride": 16, "global_stride": 21},
}
_ZERO = ("rank", "elemtype", "interleave_layout", "swizzle_mode", "fill_mode")
_MANY = {"global_dim": 5, "box_dim": 5, "element_stride": 5, "global_stride": 4}


class _Type(NamedTuple):
    """bits in global memory; a numpy kind for reductions; padded: 8 bytes of 16 in shared memory"""

    name: str
    bits: int
    kind: str
    padded: bool = False


_TYPES = {
    **{0: _Type("u8", 8, "u1"), 1: _Type("u16", 16, "u2"), 2: _Type("u32", 32, "u4")},
    **{3: _Type("s32", 32, "i4"), 4: _Type("u64", 64, "u8"), 5: _Type("s64", 64, "i8")},
    **{6: _Type("f16", 16, "f2"), 7: _Type("f32", 32, "f4"), 9: _Type("f64", 64, "f8")},
    **{10: _Type("bf16", 16, "bf16"), 13: _Type("b4x16", 4, "u1")},
    14: _Type("b4x16_p64", 4, "u1", True),
}
_NAMED = {8: "f32.ftz", 11: "tf32", 12: "tf32.ftz", 15: "b6x16_p32"}
_SWIZZLES = {0: 16, 1: 32, 2: 64, 3: 128}


class TensorMap(NamedTuple):
    """address and strides [bytes], of the dimensions after the first; shape, box and steps

    [elements]; row: bytes of the swizzle's row, 16 for none; nan: what lies outside reads as NaN.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    type: _Type
    row: int
    nan: bool


def described(
    address: int, elemtype: int, swizzle: int, nan: bool, shape: Sequence[int],
    strides: Sequence[int], box: Sequence[int],
) -> bytes:  # fmt: skip
    """The bytes of a map that the host makes. shape, strides [bytes] and box: outermost first."""
    form = np.zeros((), _FORM)
    rank = len(shape)
    form["global_address"], form["rank"] = address, rank - 1
    form["elemtype"], form["swizzle_mode"], form["fill_mode"] = elemtype, swizzle, nan
    form["global_dim"][:rank] = shape[::-1]
    form["box_dim"][:rank] = box[::-1]
    form["element_stride"][:rank] = 1
    form["global_stride"][: rank - 1] = strides[-2::-1]
    form["filled"], form["mark"] = (1 << 25) - 1, _MARK
    return form.tobytes()


@functools.lru_cache(256)
def _decoded(raw: bytes) -> TensorMap:
    form = np.frombuffer(raw, _FORM)[0]
    if form["mark"] != _MARK:
        raise Fault("there is no tensor map where TMA is told to find one")
    rank, filled = int(form["rank"]) + 1, int(form["filled"])
    if not 1 <= rank <= 5:
        raise Fault(f"a tensor map of {rank} dimensions")
    for name, bit in [(name, bit) for name, bit in _FIELDS.items() if name not in _ZERO]:
        count = min(_MANY[name], rank - (name == "global_stride")) if name in _MANY else 1
        if any(not filled >> bit + n & 1 for n in range(count)):
            raise Fault(f"a tensor map without its {name}")
    code, swizzle = int(form["elemtype"]), int(form["swizzle_mode"])
    if code not in _TYPES or form["interleave_layout"] or swizzle not in _SWIZZLES:
        raise UnknownInstruction(
            f"a tensor map of elements {_NAMED.get(code, code)}, interleave "
            f"{form['interleave_layout']}, swizzle {swizzle}"
        )
    shape, strides, box, steps = (
        tuple(int(n) for n in form[name][: rank - (name == "global_stride")])
        for name in ("global_dim", "global_stride", "box_dim", "element_stride")
    )
    address, nan = int(form["global_address"]), bool(form["fill_mode"])
    row = _SWIZZLES[swizzle]
    found = TensorMap(address, shape, strides, box, steps, _TYPES[code], row, nan)
    _check(found)
    return found


def _check(found: TensorMap) -> None:
    """Fault for what cuTensorMapEncodeTiled refuses."""
    if found.address % (32 if found.type.padded else 16):
        raise Fault(f"a tensor map of the address {found.address:#x}: no multiple of 16 bytes")
    if any(stride % 16 or not 0 < stride < 1 << 40 for stride in found.strides):
        raise Fault(
            f"a tensor map with strides of {found.strides} bytes: multiples of 16 below 2^40"
        )
    if any(not 0 < n <= 256 for n in found.box) or any(not 0 < n <= 8 for n in found.steps):
        raise Fault(f"a tensor map with boxes of {found.box}, each step {found.steps}")
    if any(n < 1 for n in found.shape):
        raise Fault(f"a tensor map of a tensor of {found.shape} elements")
    width = -(-found.box[0] // found.steps[0]) * found.type.bits // 8 << found.type.padded
    if width % 16:
        raise Fault(f"boxes of a tensor map have rows of {width} bytes: no multiple of 16")
    if found.row > 16 and width > found.row:
        raise Fault(f"rows of {width} bytes in a box, longer than a swizzle of {found.row}")
    if found.row > 16 and width < found.row:
        raise UnknownInstruction(f"rows of {width} bytes in a box, swizzled by {found.row}")
    if found.type.bits < 8 and (found.steps[0] != 1 or found.shape[0] % 2):
        raise UnknownInstruction("elements of 4 bits in steps, or an odd number of them")


def loaded(S: Any, address: int) -> TensorMap:
    """The map at an address in global or parameter memory, as TMA reads it."""
    if address % 64:
        raise Fault(f"a tensor map at {address:#x}: no multiple of 64 bytes")
    if not S.tensor_maps.get(address, True):
        raise Fault("a tensor map is used that was written without fence.proxy.tensormap since")
    words = S.memory.load(np.array([address], np.uint64), 8, BYTES // 8)
    return _decoded(words[:, 0].tobytes())


def _replace(
    S: Any, G: Any, space: str, name: str, at: Array, number: int, value: Array, mask: Any
) -> None:
    """tensormap.replace, by each thread under the mask."""
    for n in range(G.n) if mask is None else np.flatnonzero(mask):
        one = at[n : n + 1]
        if int(one[0]) % BYTES:
            raise Fault(f"tensormap.replace at {int(one[0]):#x}: no multiple of {BYTES} bytes")
        room = S.shared if space == "shared" else S.memory
        words = room.load(one, 8, BYTES // 8)[:, 0]
        form = np.frombuffer(words.tobytes(), _FORM).copy()
        if name in _MANY:
            form[0][name][number] = value[n]
        else:
            form[0][name] = value[n]
        form["filled"] |= np.uint32(1 << _FIELDS[name] + number)
        form["mark"] = _MARK
        data = form.view(np.uint64).reshape(-1, 1)
        if space == "shared":
            S.shared.store(one, data, G.tid[n : n + 1].astype(np.int64) >> 5)
        else:
            S.memory.store(one, data)
            S.tensor_maps[int(one[0])] = False


def _publish(S: Any, G: Any, to: Array, source: Array, mask: Any) -> None:
    """tensormap.cp_fenceproxy: a map out of shared memory, which the other proxy shall see."""
    chosen = G.tid if mask is None else G.tid[mask]
    if len(chosen) % 32:
        raise Fault("tensormap.cp_fenceproxy without all lanes of its warp")
    for n in np.flatnonzero(np.isin(G.tid, chosen[::32])):
        words = S.shared.load(source[n : n + 1], 8, BYTES // 8)
        S.memory.store(to[n : n + 1], words)
        S.tensor_maps[int(to[n])] = False


def _acquire(S: Any, G: Any, at: Array, mask: Any) -> None:
    for one in np.unique(at if mask is None else at[mask]).tolist():
        S.tensor_maps[one] = True


HELPERS: dict[str, Any] = {
    **{"replace_in_map": _replace, "publish_map": _publish, "acquire_map": _acquire},
}


def _size(operand: Any) -> None:
    if not isinstance(operand, Immediate) or operand.value != BYTES:
        raise UnknownInstruction(f"a tensor map that has not {BYTES} bytes")


def _replace_builder(space: str, name: str) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        where, *number, value = instruction.operands
        if len(number) != (name in _MANY) or any(not isinstance(n, Immediate) for n in number):
            raise UnknownInstruction(f"{len(instruction.operands)} operands")
        index = int(number[0].value) if isinstance((*number, None)[0], Immediate) else 0  # type: ignore[union-attr]
        if not 0 <= index < _MANY.get(name, 1):
            raise UnknownInstruction(f"dimension {index}")
        at = emitter.shared(where) if space == "shared" else emitter.address(where, wide=True)
        wide = name in ("global_address", "global_stride")
        emitter.line(
            f"replace_in_map(S, G, {space!r}, {name!r}, {at}, {index}, "
            f"{emitter.vector(value, 'u8' if wide else 'u4')}, {emitter.mask})"
        )

    return build


def _publish_builder(emitter: Emitter, instruction: Instruction) -> None:
    to, source, size = instruction.operands
    _size(size)
    where = f"{emitter.address(to, wide=True)}, {emitter.shared(source)}"
    emitter.line(f"publish_map(S, G, {where}, {emitter.mask})")


def _acquire_builder(emitter: Emitter, instruction: Instruction) -> None:
    at, size = instruction.operands
    _size(size)
    emitter.line(f"acquire_map(S, G, {emitter.address(at, wide=True)}, {emitter.mask})")


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for name in _FIELDS:
        bits = 64 if name in ("global_address", "global_stride") else 32
        for written, space in (("shared::cta", "shared"), ("global", "global")):
            key = f"tensormap.replace.tile.{name}.{written}.b1024.b{bits}"
            table[key] = _replace_builder(space, name)
    for scope in ("cta", "cluster", "gpu", "sys"):
        proxy = f"tensormap::generic.release.{scope}.sync.aligned"
        table[f"tensormap.cp_fenceproxy.global.shared::cta.{proxy}"] = _publish_builder
        table[f"fence.proxy.tensormap::generic.acquire.{scope}"] = _acquire_builder
    return table


TABLE = _table()
