# SPDX-License-Identifier: Apache-2.0
"""The languages that can be executed: what a census, and whoever launches, asks of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from archkey.conformance.emulation import launcher, program, text
from archkey.conformance.emulation.ptx import launcher as ptx_launcher
from archkey.conformance.emulation.ptx import program as ptx_program
from archkey.conformance.emulation.ptx.parser import parse as parse_ptx

__all__ = ["DIALECTS", "Dialect", "dialect_of"]


class Dialect(NamedTuple):
    """A language.

    key        under which Triton keeps the text
    mnemonics  (name, whether it can be executed) of each instruction of a text
    check      raises UnknownInstruction for a text that cannot be executed as a whole
    launcher   `launch(grid, *arguments)` of a compiled program
    """

    key: str
    mnemonics: Callable[[str], Iterator[tuple[str, bool]]]
    check: Callable[[str], None]
    launcher: Callable[[Any], Callable[..., None]]


def _amdgcn(source: str) -> Iterator[tuple[str, bool]]:
    assembly = text.parse(source)
    known = program.families(assembly.target)
    return ((i.name, i.name in known) for i in assembly.instructions)


def _ptx(source: str) -> Iterator[tuple[str, bool]]:
    module = parse_ptx(source)
    known = ptx_program.families(module.target)
    return ((i.name, i.name in known) for i in module.instructions)


def _check_amdgcn(source: str) -> None:
    program.load(source)


def _check_ptx(source: str) -> None:
    ptx_program.load(source).check()


DIALECTS: Mapping[str, Dialect] = {
    "rocm": Dialect("amdgcn", _amdgcn, _check_amdgcn, launcher.launcher),
    "cuda": Dialect("ptx", _ptx, _check_ptx, ptx_launcher.launcher),
}
"""By the platform of a target."""


def dialect_of(target: str) -> Dialect:
    """Of a target's key."""
    return DIALECTS[target.partition("_")[0]]
