# SPDX-License-Identifier: Apache-2.0
"""Launches a compiled Triton program on the emulator, with tensors that are in host memory.

The arguments are laid out as the code object's metadata says, and what the program may touch is
the storages of the tensors among them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from archkey.conformance.emulation.arguments import packed, storages
from archkey.conformance.emulation.execute import Resources, execute
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.memory import Memory, Room
from archkey.conformance.emulation.program import load
from archkey.conformance.emulation.text import Argument, Assembly
from archkey.launch import Compiled

__all__ = ["launcher"]

Grid = tuple[int, int, int]


def launcher(compiled: Compiled) -> Callable[..., None]:
    """`launch(grid, *arguments)` like that of a driver, in the order of the program's signature.

    A launch raises UnknownInstruction if the program contains what the emulator does not have,
    Fault for what the program must not do.
    """
    text = str(compiled.kernel.asm["amdgcn"])
    signature = {name: kind for name, kind in compiled.program.signature.items() if kind}
    names = list(compiled.program.signature)
    waves = int(compiled.kernel.metadata.num_warps)

    def launch(grid: Grid, *arguments: Any) -> None:
        code = load(text)
        # Triton's LDS is laid out at the launch; what a program fixes itself comes on top.
        fixed = code.assembly.directives["group_segment_fixed_size"]
        lds_bytes = compiled.shared_memory_bytes + fixed
        given = dict(zip(names, arguments, strict=True))
        present = {name: given[name] for name in signature}
        kernarg = _kernarg(code.assembly, signature, present, grid, waves)
        # ctypes' buffer is kept alive by this frame, the tensors by the caller's.
        own = Room.at("the arguments", ctypes.addressof(kernarg), len(kernarg))
        memory = Memory([own, *storages(present)])
        execute(code, grid, memory, Resources(own, waves, lds_bytes))

    return launch


def _kernarg(
    assembly: Assembly,
    signature: Mapping[str, str],
    given: Mapping[str, Any],
    grid: Grid,
    waves: int,
) -> Any:
    """The kernarg segment: the arguments, Triton's scratch pointers (null), and hidden ones."""
    explicit = [a for a in assembly.arguments if not a.kind.startswith("hidden_")]
    if len(explicit) < len(signature):
        raise UnknownInstruction(
            f"{assembly.name} takes {len(explicit)} arguments, its Program gives {len(signature)}"
        )
    segment = ctypes.create_string_buffer(assembly.directives["kernarg_size"])
    for argument, (name, kind) in zip(explicit, signature.items(), strict=False):
        _put(segment, argument, packed(kind, given[name]))
    hidden = _hidden(grid, waves)
    for argument in assembly.arguments:
        if argument.kind in hidden:
            value = hidden[argument.kind].to_bytes(argument.size, "little")
            _put(segment, argument, value)
        elif argument.kind.startswith("hidden_"):
            _put(segment, argument, b"\xff" * argument.size)
    return segment


def _hidden(grid: Sequence[int], waves: int) -> dict[str, int]:
    """Hidden arguments of code object V5 that a Triton program may read; others are poison."""
    sizes = (64 * waves, 1, 1)
    return {
        **{f"hidden_block_count_{axis}": n for axis, n in zip("xyz", grid, strict=True)},
        **{f"hidden_group_size_{axis}": n for axis, n in zip("xyz", sizes, strict=True)},
    }


def _put(segment: Any, argument: Argument, value: bytes) -> None:
    if len(value) != argument.size:
        raise UnknownInstruction(f"an argument of {argument.size} bytes got {len(value)}")
    segment[argument.offset : argument.offset + argument.size] = value
