# SPDX-License-Identifier: Apache-2.0
"""The kinds of quantisation that rmsnorm_quant knows: their rules, and the layouts of scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from archkey.errors import nearest
from archkey.ops._checks import bad_value, unsupported

if TYPE_CHECKING:
    from archkey.session import Session

OP = "rmsnorm_quant"


class Kind(NamedTuple):
    """One way to quantise a row of N columns.

    capability   what a device must have for it
    given        whether the call gives a scale; otherwise scales are made from the numbers
    scale_dtype  of the scales that are written, "none" where none is
    block        columns that share a written scale, where the format fixes it
    multiple     N is a multiple of it
    modes        how a scale may be rounded, the default first
    layouts      how the written scales may lie in memory
    """

    capability: str
    given: bool = False
    scale_dtype: str = "none"
    block: int = 0
    multiple: int = 1
    modes: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ("row",)

    @property
    def packed(self) -> bool:
        """Two 4-bit codes to a byte of uint8; otherwise a code is an FP8 number."""
        return self.capability != "fp8"


_FP8_MODES = ("fp32", "pow2")

KINDS = {
    "fp8_tensor": Kind("fp8", given=True),
    "fp8_token": Kind("fp8", scale_dtype="float32", modes=_FP8_MODES),
    "fp8_group": Kind("fp8", scale_dtype="float32", modes=_FP8_MODES, layouts=("row", "col")),
    "mxfp4": Kind(
        "mxfp4",
        scale_dtype="uint8",
        block=32,
        multiple=2,
        modes=("rceil", "even", "floor", "ceil"),
        layouts=("row", "shuffled_gfx950"),
    ),
    "nvfp4": Kind(
        "nvfp4",
        given=True,
        scale_dtype="float8_e4m3fn",
        block=16,
        multiple=16,
        layouts=("row", "swizzled_128x4"),
    ),
}

TILES = {"shuffled_gfx950": (256, 8), "swizzled_128x4": (128, 4)}
"""Rows and columns of scales that a two-dimensional layout is padded to a multiple of."""


def kind_of(session: Session, quant: str, scale_layout: str, dims: int) -> Kind:
    """The kind called `quant`, which the device has, with scales in `scale_layout`."""
    kind = KINDS.get(quant) if isinstance(quant, str) else None
    if kind is None:
        _unknown("quant", "a kind that it knows", quant, KINDS)
    fact = session.capabilities[kind.capability]
    # Where nobody describes the device, or it is the CPU, torch computes: any kind will do.
    if fact.value == "none" and session.fp8 != "any":
        why = f"Its capability {fact.name} is none ({fact.source}): {fact.reason}."
        unsupported(OP, "quant", "a kind that this device has", repr(quant), why)
    if scale_layout not in kind.layouts:
        _unknown("scale_layout", f"a layout of {quant}", scale_layout, kind.layouts)
    if scale_layout in TILES and dims != 2:
        hint = f"The layout {scale_layout} is two-dimensional; reshape x to [T * h, N]."
        bad_value(OP, "x", "of shape [T, N]", f"{dims} dimensions", hint)
    return kind


def mode_of(session: Session, quant: str, kind: Kind, scale_mode: str | None) -> str:
    """How scales are rounded; "none" where there is nothing to choose."""
    if scale_mode is None:
        if quant == "mxfp4" and session.device.target.vendor == "amd":
            return "even"  # the rule of Quark and of aiter's Triton kernels
        return kind.modes[0] if kind.modes else "none"
    if not kind.modes:
        bad_value(OP, "scale_mode", f"None with {quant}, which has one rule", repr(scale_mode))
    if scale_mode not in kind.modes:
        _unknown("scale_mode", f"a rule of {quant}", scale_mode, kind.modes)
    return scale_mode


def group_of(quant: str, kind: Kind, group_size: int, width: int) -> int:
    """Columns that share a written scale, 0 where none is written; N fits the kind."""
    if quant == "fp8_group":
        if not isinstance(group_size, int) or group_size < 1 or width % group_size:
            bad_value(OP, "group_size", f"a divisor of x's {width} columns", group_size)
        return group_size
    if group_size != 128:  # the default, which stands for "not asked"
        hint = f"Its blocks have {kind.block} columns." if kind.block else ""
        bad_value(OP, "group_size", f"left alone with {quant}", group_size, hint)
    if width % kind.multiple:
        bad_value(OP, "x", f"of a multiple of {kind.multiple} columns with {quant}", width)
    return width if quant == "fp8_token" else kind.block


def scale_shape(shape: Sequence[int], group: int, scale_layout: str) -> list[int]:
    """The shape of the scales of rows of `shape`, padding included."""
    *lead, width = shape
    scales = [*lead, -(-width // group)]
    if scale_layout in TILES:
        return [-(-n // tile) * tile for n, tile in zip(scales, TILES[scale_layout], strict=True)]
    return scales


def _unknown(name: str, expected: str, found: object, known: Iterable[str]) -> NoReturn:
    bad_value(OP, name, expected, f"{found!r}; {nearest(str(found), known)}")
