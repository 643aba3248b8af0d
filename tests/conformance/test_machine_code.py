# SPDX-License-Identifier: Apache-2.0
"""What is read from machine code, against what the vendors' own tools say of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from tests.core import _fakes
from tests.core._fakes import card, kernel

from archkey.conditions import at_least, is_
from archkey.conformance.elf import target_of
from archkey.conformance.instructions import INSTRUCTIONS, instructions_in
from archkey.conformance.machine_code import (
    Expectations,
    MachineCode,
    expectations,
    judge_code,
    lost_in,
)
from archkey.errors import ArchkeyError
from archkey.requirements import Requirement
from archkey.target import Target
from archkey.tuning import Row, Table

TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")
SM90 = Target.parse("cuda_sm90")

# ---- compiled for real

_READ = """
import json, sys
import archkey
from archkey.conformance.machine_code import read
from tests.conformance._bodies import compiled
found = {}
for target in sys.argv[1:]:
    device = archkey.open(target).device
    for spilling in (False, True):
        found[f"{target} {spilling}"] = read(compiled(device, spilling)).to_json()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def codes(run_python: Callable[..., str]) -> dict[str, Any]:
    """MachineCode as JSON, by target and whether the body must spill."""
    code = _READ.replace("sys.argv[1:]", repr(TARGETS))
    return json.loads(run_python(code, TRITON_INTERPRET="0"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", TARGETS)
def test_a_small_body_spills_nothing(target: str, codes: dict[str, Any]) -> None:
    code = codes[f"{target} False"]
    assert code["target"] == target
    assert code["name"] == "hungry"
    assert code["threads"] == (64 if target.startswith("rocm") else 32)
    assert code["spills"] == 0
    assert set(code["spilled"].values()) == {0}
    assert all(0 <= n < 64 for n in code["registers"].values())
    assert code["instructions"] == {}


@pytest.mark.parametrize("target", TARGETS)
def test_a_body_that_holds_too_much_is_seen_to_spill(target: str, codes: dict[str, Any]) -> None:
    """256 live values a thread: what registers do not hold is in memory."""
    code = codes[f"{target} True"]
    held = code["registers"]["vgprs" if target.startswith("rocm") else "registers"]
    assert held < 256
    assert code["spills"] + 4 * held >= 4 * 256
    assert max(code["spilled"].values()) == code["spills"]


_AGREE = """
import json, re, subprocess, tempfile
from pathlib import Path
import triton
import archkey
from archkey.conformance.elf import nv_info
from tests.conformance._bodies import compiled
tools = Path(triton.__file__).parent / "backends/nvidia/bin"
said = []
for target in ("cuda_sm90", "cuda_sm100"):
    for spilling in (False, True):
        made = compiled(archkey.open(target).device, spilling)
        with tempfile.TemporaryDirectory() as folder:
            kept, again = Path(folder, "kept.cubin"), Path(folder, "again.cubin")
            kept.write_bytes(made.binary)
            usage = subprocess.run([tools / "cuobjdump", "-res-usage", kept], capture_output=True,
                                   text=True, check=True).stdout
            info = nv_info(made.binary)
            theirs = re.search("REG:(\\\\d+) STACK:(\\\\d+)", usage).groups()
            said.append([[info.registers, info.stack_bytes], [int(n) for n in theirs]])
            ptx = Path(folder, "body.ptx")
            ptx.write_text(made.kernel.asm["ptx"])
            for name in ("ptxas-blackwell", "ptxas"):  # a wheel may bring one that is too old
                command = [tools / name, "-v", f"-arch=sm_{target[7:]}a", ptx, "-o", again]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode == 0:
                    break
            info = nv_info(again.read_bytes())
            words = "(\\\\d+) bytes stack frame, (\\\\d+) bytes spill stores", "Used (\\\\d+) reg"
            stack, spilt = (int(n) for n in re.search(words[0], done.stderr).groups())
            used = int(re.search(words[1], done.stderr)[1])
            said.append([[info.registers, info.stack_bytes, info.stack_bytes > 0],
                         [used, stack, spilt > 0]])
print(json.dumps(said))
"""


def test_cuobjdump_and_ptxas_agree(run_python: Callable[..., str]) -> None:
    said = json.loads(run_python(_AGREE, TRITON_INTERPRET="0"))
    assert len(said) == 8
    for ours, theirs in said:
        assert ours == theirs
    assert len({tuple(ours) for ours, _ in said}) >= 4, "four different programs"


_PDL = """
import json
import archkey
from archkey.conformance import machine_code
from archkey.conformance.machine_code import read
from tests.conformance._bodies import compiled
made = compiled(archkey.open("cuda_sm90").device, False, pdl=True)
codes = [read(made)]
machine_code.disassemble = lambda cubin: None
codes.append(read(made))
print(json.dumps([[code.searched, dict(code.instructions)] for code in codes]))
"""


def test_dependent_launches_are_found_in_sass_and_in_ptx(run_python: Callable[..., str]) -> None:
    """Without a disassembler, or with one older than the architecture, PTX is searched."""
    expected = {"pdl": 1, "pdl_launch": 1}
    out = json.loads(run_python(_PDL, TRITON_INTERPRET="0"))
    assert out == [["sass", expected], ["ptx", expected]]


# ---- the table of instructions, on lines as the tools print them

LINES = {
    "sass": {
        "        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8] ;": {"wgmma"},
        "        /*0070*/              @P0  QGMMA.64x128x32.F32.E4M3.E4M3 R24 ;": {"wgmma", "fp8"},
        "        /*0070*/                   UTCHMMA gdesc[UR4], tmem[UR8] ;": {"tcgen05"},
        "        /*0070*/             @!UP1 UTCQMMA gdesc[UR4], gdesc[UR6] ;": {"tcgen05", "fp8"},
        "        /*0070*/                   OMMA.SF.16864.F32.E2M1.E2M1.E8 R4 ;": {"mma"},
        "        /*0070*/                   HFMA2.MMA R4, -RZ, RZ, 0, 0 ;": set(),
        "        /*0070*/                   UTMALDG.2D [UR4], [UR6] ;": {"tma"},
        "        /*0070*/                   UTMACMDFLUSH ;": set(),
        "        /*0070*/                   ACQBULK ;": {"pdl"},
        "        /*0070*/                   PREEXIT ;": {"pdl_launch"},
    },
    "ptx": {
        "\twgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r1}": {"wgmma", "bf16"},
        "\twgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {%r1}": {"wgmma", "tf32"},
        "\twgmma.fence.sync.aligned;": set(),
        "\t@%p2 tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ]": {"tcgen05", "bf16"},
        "\t@%p2 tcgen05.mma.cta_group::1.kind::tf32 [ %r1 + 0 ]": {"tcgen05", "tf32"},
        "\t@%p2 tcgen05.mma.cta_group::1.kind::f8f6f4 [ %r1 ]": {"tcgen05", "fp8"},
        "\t@$1 tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32 [ %r1 ]": {
            "tcgen05",
            "block_scaled",
        },
        "\tmma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.f32": {
            "mma",
            "block_scaled",
        },
        "\ttcgen05.ld.sync.aligned.32x32b.x64.b32 {%r1}": set(),
        "\tcp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1]": {"tma"},
        "\tcp.async.bulk.commit_group;": set(),
        ".reqnctapercluster 2": {"cluster"},
        "{ .reg .pred p; barrier.cluster.arrive.aligned; }": {"cluster"},
        "\tgriddepcontrol.wait;": {"pdl"},
        "\tgriddepcontrol.launch_dependents;": {"pdl_launch"},
    },
    "amdgcn": {
        "\tv_mfma_f32_32x32x8_bf16 v[0:15], v[2:3]": {"mfma", "bf16"},
        "\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3]": {"mfma", "bf16"},
        "\tv_mfma_f32_32x32x4_xf32 v[0:15], v[2:3]": {"mfma", "tf32"},
        "\tv_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[2:3]": {"mfma", "fp8"},
        "\tv_mfma_f32_32x32x64_f8f6f4 v[0:15], v[2:9]": {"mfma", "fp8"},
        "\tv_mfma_f32_32x32x8_f16 v[0:15], v[2:3]": {"mfma"},
        "\tv_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[2:9]": {
            *("mfma", "scaled_mfma", "block_scaled", "fp8"),
        },
        "\tv_wmma_f32_16x16x16_bf16 v[0:7], v[8:11]": {"wmma", "bf16"},
        "\tds_read_b64_tr_b16 v[2:3], v4": {"lds_transpose"},
        "\tds_read_b64 v[2:3], v4": set(),
    },
}


@pytest.mark.parametrize(
    ("dialect", "line", "names"),
    [(d, line, names) for d, lines in LINES.items() for line, names in lines.items()],
    ids=lambda value: value.split(";")[0].split()[-1] if isinstance(value, str) else "",
)
def test_a_line_is_known(dialect: str, line: str, names: set[str]) -> None:
    assert instructions_in({dialect: f"{line}\n{line}\n"}) == dict.fromkeys(names, 2)


def test_sass_goes_before_the_ptx_it_was_made_of() -> None:
    """ptxas may drop what PTX says; what SASS cannot tell is read from PTX."""
    ptx = "\tgriddepcontrol.wait;\n\t@%p2 tcgen05.mma.cta_group::1.kind::f16 [%r1]\n"
    sass = "        /*0070*/    UTCHMMA gdesc[UR4] ;"
    assert instructions_in({"ptx": ptx, "sass": sass}) == {"tcgen05": 1, "bf16": 1}


def test_every_row_of_the_table_has_a_line_above() -> None:
    assert {n for lines in LINES.values() for names in lines.values() for n in names} == set(
        INSTRUCTIONS
    )


@pytest.mark.parametrize("binary", [b"", b"\x7fELF\x01" + bytes(80), b"\x7fELF\x02" + bytes(80)])
def test_what_is_no_gpu_program_is_refused(binary: bytes) -> None:
    with pytest.raises(ArchkeyError, match="64-bit ELF file, found|e_machine 0 is of no GPU"):
        target_of(binary)


# ---- judging


def code(**changes: Any) -> MachineCode:
    fields = {
        "name": "body",
        "target": "cuda_sm90",
        "threads": 128,
        "registers": MappingProxyType({"registers": 64}),
        "spills": 0,
        "spilled": MappingProxyType({"stack_bytes": 0}),
        "shared_memory_bytes": 1024,
        "instructions": MappingProxyType({}),
        "searched": "sass",
    }
    return MachineCode(**{**fields, **changes})  # type: ignore[arg-type]


def test_nothing_is_wrong_with_good_code() -> None:
    expected = Expectations(SM90, 1024, 0, ("wgmma",), ("pdl",))
    assert judge_code([code(), code(instructions={"wgmma": 4})], expected) == []


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (
            code(spills=948, spilled={"private_segment_bytes": 948, "vgprs": 684}),
            Expectations(SM90, spills=947),
            "body spills 948 bytes a thread (private_segment_bytes 948, vgprs 684), allowed are "
            "947; take a smaller tile",
        ),
        (
            code(shared_memory_bytes=1025),
            Expectations(SM90, 1024),
            "body takes 1025 bytes of shared memory, shared_memory_bytes of cuda_sm90 is 1024; ",
        ),
        (
            code(target="cuda_sm100"),
            Expectations(SM90),
            "body is machine code for cuda_sm100, not for cuda_sm90; compile it through",
        ),
        (
            code(),
            Expectations(SM90, present=("wgmma",)),
            "wgmma (warpgroup matrix product) is in none of: body (sass); needed by the kernel",
        ),
        (
            code(instructions={"pdl_launch": 2}),
            Expectations(SM90, absent=("pdl", "pdl_launch")),
            "body contains pdl_launch (let the next kernel start) 2 times in its sass, allowed is ",
        ),
        (
            code(early=True),
            Expectations(SM90),
            "body is launched before its predecessor ends (launch_pdl) and never waits for it",
        ),
        (
            code(early=True, instructions={"pdl": 1}),
            Expectations(SM90, absent=("pdl",)),
            "body is launched before its predecessor ends (launch_pdl), which this problem does",
        ),
    ],
    ids=["spills", "shared memory", "target", "missing", "unwanted", "no wait", "not permitted"],
)
def test_a_complaint(found: MachineCode, expected: Expectations, said: str) -> None:
    complaint = judge_code([found], expected)[0]
    assert complaint.startswith(said)


def test_no_program_contains_nothing() -> None:
    (complaint,) = judge_code([], Expectations(SM90, present=("tma",)))
    assert "in none of: no program" in complaint


class Depending(NamedTuple):
    """A problem that knows of dependent launches."""

    pdl: bool
    operator: str = "toy_op"


def expected(problem: Any, **data: Any) -> Expectations:
    given = kernel("fast", "toy_op", **data)
    return expectations(given, problem, _fakes.session(given, device=card()))


def test_expectations_are_the_kernels_own_data() -> None:
    needs = (
        is_("wgmma", True),
        is_("tcgen05", False),
        is_("pdl", True),
        at_least("l2_bytes", 1),
    )
    found = expected(_fakes.Toy(), needs=needs)
    assert (found.target, found.spills) == (SM90, 0)
    assert (found.present, found.absent) == (("wgmma", "pdl"), ())


@pytest.mark.parametrize("needs", [(), (is_("pdl", True),)], ids=["may", "needs"])
def test_the_problem_says_whether_a_program_may_start_early(needs: tuple[Any, ...]) -> None:
    assert expected(Depending(True), needs=needs).present == (("pdl",) if needs else ())
    found = expected(Depending(False), needs=needs)
    assert (found.present, found.absent) == ((), ("pdl", "pdl_launch"))


def test_the_row_that_is_used_says_what_it_may_spill() -> None:
    fence = Requirement("packaging", "<1")
    table = Table((Row(1, requires=(fence,), spills=8), Row(2, spills=64)))
    assert expected(_fakes.Toy(), tuning=table).spills == 64


def test_shared_memory_is_what_the_card_has() -> None:
    given = kernel("fast", "toy_op")
    session = _fakes.session(given, device=card(shared_memory_bytes=99_000))
    assert expectations(given, _fakes.Toy(), session).shared_memory_bytes == 99_000


# ---- a register that the compiler loses

_PUT = "\tv_accvgpr_write_b32 a209, v43           ;  Reload Reuse\n"
_MEMORY = "\tscratch_store_dwordx3 off, v[40:42], off offset:4 ; 12-byte Folded Spill\n"


@pytest.mark.parametrize(
    ("taken", "lost"),
    [
        ("\tv_accvgpr_mov_b32 a11, a209\n", ()),
        ("\tv_accvgpr_write_b32 a11, a209\n", ()),
        ("\tv_mfma_f32_16x16x32_bf16 a[0:3], v[58:61], a[208:211], a[0:3]\n", ()),
        ("\tscratch_load_dwordx3 a[8:10], off, off offset:4 ; 12-byte Folded Reload\n", ("a209",)),
        ("\tv_accvgpr_write_b32 a209, v7\n", ("a209",)),  # the next value is not this one
        ("\tv_accvgpr_read_b32 v43, a20 ; not a209\n", ("a209",)),
    ],
)
def test_what_was_spilt_is_taken_back(taken: str, lost: tuple[str, ...]) -> None:
    assert lost_in(_PUT + _MEMORY + taken) == lost


def test_a_lost_register_is_a_fault() -> None:
    gfx950 = Target.parse("rocm_gfx950")
    code = MachineCode(
        "body", "rocm_gfx950", 256, {"vgprs": 256}, 24, {}, 0, {}, "amdgcn", lost=("a209",)
    )
    (said,) = judge_code([code], Expectations(gfx950, spills=64))
    assert "a209" in said and "the compiler lost a register" in said
    assert not judge_code([replace(code, lost=())], Expectations(gfx950, spills=64))
