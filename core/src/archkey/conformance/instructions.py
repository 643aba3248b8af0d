# SPDX-License-Identifier: Apache-2.0
"""Instructions that tell whether a program uses what its target has, and how to find them.

The real machine code is searched: NVIDIA's SASS where a disassembler can read the cubin, AMD's
assembly. What SASS does not tell (the operands of a UTCHMMA stand in a descriptor), and all of it
without a disassembler, is read from the PTX that the machine code was made of.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = ["INSTRUCTIONS", "Instruction", "disassemble", "instructions_in"]


@dataclass(frozen=True)
class Instruction:
    """A regular expression a dialect, matched at the start of a mnemonic; "" where none tells."""

    text: str
    source: str
    sass: str = ""
    ptx: str = ""
    amdgcn: str = ""

    def dialect(self, searched: str) -> str:
        """Where it is looked for if `searched` is the most real text at hand."""
        return "ptx" if searched == "sass" and not self.sass else searched


_SASS = "CUDA binary utilities, instruction set reference"
_CDNA = "AMD Instinct CDNA4 ISA reference, matrix arithmetic instructions"
_WGMMA = r"wgmma\.mma_async"
_MMA = r"mma\.sync"
_TCGEN05 = r"tcgen05\.mma"
_MFMA = r"v_(?:mfma|smfmac|wmma|swmmac)_\w*"

INSTRUCTIONS: Mapping[str, Instruction] = MappingProxyType(
    {
        "wgmma": Instruction(
            "warpgroup matrix product",
            f"PTX ISA, wgmma.mma_async; {_SASS}, Hopper",
            sass=r"[HQIB]GMMA\b",
            ptx=_WGMMA,
        ),
        "tcgen05": Instruction(
            "matrix product in tensor memory",
            f"PTX ISA, tcgen05.mma; {_SASS}, Blackwell",
            sass=r"UTC[HQIO]MMA\b",
            ptx=_TCGEN05,
        ),
        "mma": Instruction(
            "matrix product of one warp",
            f"PTX ISA, mma.sync; {_SASS}",
            sass=r"[HIQODB]MMA\b",
            ptx=_MMA,
        ),
        "mfma": Instruction("matrix product of CDNA", _CDNA, amdgcn=r"v_s?mfma"),
        "scaled_mfma": Instruction("MFMA with block scales", _CDNA, amdgcn=r"v_mfma_scale_"),
        "wmma": Instruction(
            "matrix product of RDNA",
            'AMD "RDNA3" ISA reference, wave matrix multiply accumulate',
            amdgcn=r"v_s?wmma",
        ),
        "bf16": Instruction(
            "matrix product of bfloat16, or of tcgen05's kind::f16",
            f"PTX ISA, matrix instructions; {_CDNA}",
            ptx=rf"(?:{_WGMMA}|{_MMA})\S*\.bf16\.bf16|{_TCGEN05}\S*kind::f16\b",
            amdgcn=rf"{_MFMA}_bf16",
        ),
        "tf32": Instruction(
            "matrix product of TF32 or XF32",
            "PTX ISA, matrix instructions; AMD Instinct MI300 (CDNA3) ISA reference",
            ptx=rf"(?:{_WGMMA}|{_MMA})\S*\.tf32\.tf32|{_TCGEN05}\S*kind::tf32\b",
            amdgcn=rf"{_MFMA}_xf32",
        ),
        "fp8": Instruction(
            "matrix product of 8-bit floats",
            f"PTX ISA, matrix instructions; {_CDNA}",
            sass=r"(?:QGMMA|UTCQMMA|QMMA)\b",
            ptx=rf"(?:{_WGMMA}|{_MMA})\S*\.e[45]m[32]\.e[45]m[32]|{_TCGEN05}\S*kind::\w*f8f6f4",
            amdgcn=rf"{_MFMA}_(?:[bf]+8_[bf]+8|f8f6f4|fp8_\w+|bf8_\w+)",
        ),
        "block_scaled": Instruction(
            "matrix product with a scale for each block of operands",
            f"PTX ISA, block scaling of mma and tcgen05.mma; {_CDNA}",
            ptx=rf"(?:{_MMA}|{_TCGEN05})\S*block_scale",
            amdgcn=r"v_(?:mfma|wmma)_scale",
        ),
        "tma": Instruction(
            "bulk tensor copy",
            f"PTX ISA, cp.async.bulk.tensor; {_SASS}, Hopper; LLVM, AMDGPU gfx1250",
            sass=r"UTMA(?:LDG|STG|REDG)",
            ptx=r"cp\.(?:reduce\.)?async\.bulk\.tensor",
            amdgcn=r"tensor_(?:load_to_lds|store_from_lds)",
        ),
        "cluster": Instruction(
            "more than one block a cluster",
            "PTX ISA, .reqnctapercluster, barrier.cluster, mapa",
            ptx=r"\.reqnctapercluster|barrier\.cluster|mapa\b",
        ),
        "pdl": Instruction(
            "wait for the kernel before",
            f"PTX ISA, griddepcontrol.wait; {_SASS}",
            sass=r"ACQBULK",
            ptx=r"griddepcontrol\.wait",
        ),
        "pdl_launch": Instruction(
            "let the next kernel start",
            f"PTX ISA, griddepcontrol.launch_dependents; {_SASS}",
            sass=r"PREEXIT",
            ptx=r"griddepcontrol\.launch_dependents",
        ),
        "lds_transpose": Instruction(
            "transposing read from LDS",
            "AMD Instinct CDNA4 ISA reference, LDS instructions",
            amdgcn=r"ds_(?:read_b\d+_tr_|load_tr)",
        ),
    }
)
"""Where a name is one of the capabilities', it stands for the same thing."""

# Where mnemonics stand in each dialect, after a predicate such as @P0, @!UP1, @%p2. PTX: directives
# too. The order is that of trust: what the machine runs before what it was made of.
_MNEMONICS = {
    "sass": re.compile(r"\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)"),
    "amdgcn": re.compile(r"(?m)^\s+([a-z]\w+)"),
    "ptx": re.compile(r"(?m)(?:^|[;{])\s*(?:@\S+\s+)?([.a-z][\w.:]*)"),
}


def instructions_in(texts: Mapping[str, str]) -> dict[str, int]:
    """How often each of INSTRUCTIONS occurs; those that do not are left out.

    texts  dialect ("sass", "ptx", "amdgcn") -> the program in it. An instruction is looked for in
           the first of sass, amdgcn, ptx that is there and tells.
    """
    listed = {
        dialect: Counter(pattern.findall(texts[dialect]))
        for dialect, pattern in _MNEMONICS.items()
        if dialect in texts
    }
    found: dict[str, int] = {}
    for name, instruction in INSTRUCTIONS.items():
        for dialect, mnemonics in listed.items():
            if pattern := getattr(instruction, dialect):
                wanted = re.compile(pattern)
                if count := sum(n for m, n in mnemonics.items() if wanted.match(m)):
                    found[name] = count
                break
    return found


def disassemble(cubin: bytes) -> str | None:
    """The SASS of a cubin; None if no disassembler at hand can read it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        for tool in _disassemblers():
            # One that is older than the architecture fails; the next may know it.
            done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout
    return None


def _disassemblers() -> Iterator[str]:
    """`nvdisasm` of the installed Triton, and that of a CUDA toolkit."""
    spec = importlib.util.find_spec("triton")
    for root in (spec.submodule_search_locations if spec else None) or ():
        bundled = Path(root, "backends", "nvidia", "bin", "nvdisasm")
        if bundled.is_file():
            yield str(bundled)
    if found := shutil.which("nvdisasm"):
        yield found
