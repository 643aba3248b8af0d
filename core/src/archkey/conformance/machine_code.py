# SPDX-License-Identifier: Apache-2.0
"""What a compiled program really is: architecture, registers, spills, shared memory, instructions.

`read` turns what the compiler gave into a `MachineCode`, and `judge_code` says what is wrong with
it. Neither needs a device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from archkey.conformance.elf import nv_info, target_of
from archkey.conformance.instructions import INSTRUCTIONS, disassemble, instructions_in
from archkey.errors import ArchkeyError
from archkey.kernel import Kernel
from archkey.launch import Compiled
from archkey.session import Session
from archkey.target import Target

__all__ = ["Expectations", "MachineCode", "expectations", "judge_code", "lost_in", "read"]


@dataclass(frozen=True)
class MachineCode:
    """One program, as the compiler left it.

    name                 of the body
    target               key of the architecture in its ELF header: "cuda_sm90"
    threads              threads a block
    registers            32-bit registers a thread, by kind: {"registers"}, or on AMD {"vgprs",
                         "agprs", "sgprs"}, of which vgprs counts agprs, too
    spills               bytes of memory a thread has beside its registers: NVIDIA's stack frame,
                         AMD's private segment. Triton bodies have no arrays, so this is what did
                         not fit; a function of libdevice may have a frame of its own
    spilled              the compiler's own words: {"stack_bytes"}, or on AMD
                         {"private_segment_bytes", "vgprs", "sgprs"}. VGPRs may go to AGPRs and
                         SGPRs to lanes of VGPRs; then they take no memory and are not in `spills`
    shared_memory_bytes  shared memory or LDS a block
    instructions         name in INSTRUCTIONS -> how often it occurs
    searched             dialect of that search: "sass", "amdgcn", or "ptx" without a disassembler
    early                it may start before its predecessor ends (`launch_pdl`)
    lost                 registers that were put away and are never taken back, see `lost_in`
    """

    name: str
    target: str
    threads: int
    registers: Mapping[str, int]
    spills: int
    spilled: Mapping[str, int]
    shared_memory_bytes: int
    instructions: Mapping[str, int]
    searched: str
    early: bool = False
    lost: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in self.__dict__.items()
        }


def read(compiled: Compiled) -> MachineCode:
    """What the program is. ArchkeyError if the artefact is not one of Triton's."""
    return (_read_nvidia if compiled.kind == "cubin" else _read_amd)(compiled)


def _read_nvidia(compiled: Compiled) -> MachineCode:
    binary, texts = compiled.binary, {"ptx": str(compiled.kernel.asm["ptx"])}
    sass = disassemble(binary)
    if sass is not None:
        texts["sass"] = sass
    info = nv_info(binary)
    return MachineCode(
        name=compiled.program.body.__name__,
        target=target_of(binary),
        threads=info.threads,
        registers=MappingProxyType({"registers": info.registers}),
        spills=info.stack_bytes,
        spilled=MappingProxyType({"stack_bytes": info.stack_bytes}),
        shared_memory_bytes=compiled.shared_memory_bytes,
        instructions=MappingProxyType(instructions_in(texts)),
        searched="ptx" if sass is None else "sass",
        early=bool(compiled.program.options.get("launch_pdl", False)),
    )


def _read_amd(compiled: Compiled) -> MachineCode:
    text = str(compiled.kernel.asm["amdgcn"])
    note = _metadata(text)
    # Triton's LDS is laid out at the launch; what a program fixes itself comes on top.
    shared = compiled.shared_memory_bytes + note["group_segment_fixed_size"]
    return MachineCode(
        name=compiled.program.body.__name__,
        target=target_of(compiled.binary),
        threads=note["max_flat_workgroup_size"],
        registers=MappingProxyType(
            {f"{kind}s": note[f"{kind}_count"] for kind in ("vgpr", "agpr", "sgpr")}
        ),
        spills=note["private_segment_fixed_size"],
        spilled=MappingProxyType(
            {
                "private_segment_bytes": note["private_segment_fixed_size"],
                "vgprs": note["vgpr_spill_count"],
                "sgprs": note["sgpr_spill_count"],
            }
        ),
        shared_memory_bytes=shared,
        instructions=MappingProxyType(instructions_in({"amdgcn": text})),
        searched="amdgcn",
        lost=lost_in(text),
    )


_PUT_AWAY = re.compile(r"v_accvgpr_write_b32 a(\d+),.*Reload Reuse")
_ACCUMULATORS = re.compile(r"\ba(?:(\d+)\b|\[(\d+):(\d+)\])")


def lost_in(assembly: str) -> tuple[str, ...]:
    """Accumulators of an AMD program that hold what was spilt into them, and that nothing reads.

    LLVM of Triton 3.6.0 spilt four registers, three into memory and one into an accumulator, and
    took three back (gfx950): the fourth was whatever the accumulators' own place held.
    """
    kept = {int(n) for n in _PUT_AWAY.findall(assembly)}
    used: set[int] = set()
    for line in assembly.splitlines() if kept else ():
        _, written, rest = line.partition("v_accvgpr_write_b32 ")
        text = rest.partition(",")[2] if written else line
        for one, first, last in _ACCUMULATORS.findall(text.partition(";")[0]):
            used.update(range(int(one or first), int(one or last) + 1))
    return tuple(f"a{n}" for n in sorted(kept - used))


# Code object metadata: LLVM, "User Guide for AMDGPU Backend", code object V3 and later. An
# architecture without AGPRs does not name them.
_NOTES = (
    *("vgpr_count", "agpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count"),
    *("private_segment_fixed_size", "group_segment_fixed_size", "max_flat_workgroup_size"),
)


def _metadata(assembly: str) -> dict[str, int]:
    """The numbers of the program's metadata in the assembly: its only kernel's."""
    _, opening, rest = assembly.partition(".amdgpu_metadata")
    note, closing, _ = rest.partition(".end_amdgpu_metadata")
    if not (opening and closing):
        raise ArchkeyError("the AMD assembly has no .amdgpu_metadata; was Triton's text changed?")
    found = {name: int(n) for name, n in re.findall(r"(?m)^\s*(?:- )?\.(\w+):\s+(\d+)$", note)}
    missing = [name for name in _NOTES if name not in found and name != "agpr_count"]
    if missing:
        raise ArchkeyError(f"the AMD metadata lacks {', '.join(missing)}; is this LLVM too new?")
    return {"agpr_count": 0, **found}


@dataclass(frozen=True)
class Expectations:
    """What the programs of one problem must be.

    target               where they are to run
    shared_memory_bytes  that a block may have; None: not known
    spills               bytes a thread may have beside its registers
    present              names in INSTRUCTIONS that at least one program must contain
    absent               names that none may contain
    """

    target: Target
    shared_memory_bytes: int | None = None
    spills: int = 0
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


def expectations(kernel: Kernel, problem: Any, session: Session) -> Expectations:
    """What follows from a kernel's own data; nothing is declared for the exam alone.

    An instruction that the kernel `needs` as a capability must be there. A problem without `pdl`
    permits no early start. A tuning row says what it may spill.
    """
    needed = {need.field for need in kernel.needs if need.relation == "is" and need.value is True}
    absent: tuple[str, ...] = ()
    if not getattr(problem, "pdl", True):
        needed, absent = needed - {"pdl"}, ("pdl", "pdl_launch")
    row = kernel.tuning.lookup(problem, session.versions) if kernel.tuning else None
    return Expectations(
        target=session.device.target,
        shared_memory_bytes=session.capabilities.shared_memory_bytes,
        spills=row.spills if row else 0,
        present=tuple(name for name in INSTRUCTIONS if name in needed),
        absent=absent,
    )


def judge_code(codes: Sequence[MachineCode], expected: Expectations) -> list[str]:
    """What is wrong with the programs of one problem: found, allowed, what to do. [] if nothing."""
    said: list[str] = []
    limit = expected.shared_memory_bytes
    for code in codes:
        if code.target != expected.target.key:
            said.append(
                f"{code.name} is machine code for {code.target}, not for {expected.target.key}; "
                "compile it through `Build.compile`"
            )
        if code.spills > expected.spills:
            counts = ", ".join(f"{name} {number}" for name, number in code.spilled.items())
            said.append(
                f"{code.name} spills {code.spills} bytes a thread ({counts}), allowed are "
                f"{expected.spills}; take a smaller tile or more warps, or state what was measured "
                "to be worth it in the tuning row's `spills`"
            )
        if code.lost:
            said.append(
                f"{code.name} puts {', '.join(code.lost)} away and never takes it back: the "
                "compiler lost a register, and what it computes is wrong; take a tile that spills "
                "nothing"
            )
        if limit is not None and code.shared_memory_bytes > limit:
            said.append(
                f"{code.name} takes {code.shared_memory_bytes} bytes of shared memory, "
                f"shared_memory_bytes of {expected.target.key} is {limit}; take smaller tiles or "
                "fewer stages"
            )
        if code.early and "pdl" not in code.instructions:
            said.append(
                f"{code.name} is launched before its predecessor ends (launch_pdl) and never waits "
                "for it; wait before the first read, or leave the option out"
            )
        if code.early and "pdl" in expected.absent:
            said.append(
                f"{code.name} is launched before its predecessor ends (launch_pdl), which this "
                "problem does not permit; leave the option out"
            )
        for name in expected.absent:
            if count := code.instructions.get(name, 0):
                row = INSTRUCTIONS[name]
                said.append(
                    f"{code.name} contains {name} ({row.text}) {count} times in its "
                    f"{row.dialect(code.searched)}, allowed is none; leave it out for this problem"
                )
    for name in expected.present:
        if not any(name in code.instructions for code in codes):
            row = INSTRUCTIONS[name]
            listed = [f"{code.name} ({row.dialect(code.searched)})" for code in codes]
            where = ", ".join(listed) or "no program"
            said.append(
                f"{name} ({row.text}) is in none of: {where}; needed by the kernel "
                "or the problem, so at least one program must contain it: see what the compiler "
                "chose instead, or drop the need"
            )
    return said
