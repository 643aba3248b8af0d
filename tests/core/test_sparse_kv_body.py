# SPDX-License-Identifier: Apache-2.0
"""The kernels of packed sparse-KV caches are their references, bit for bit; planted faults show.

The exam lets a few codes be neighbours of the right ones, since float64 may fall on the other side
of a tie. In float32 there is one answer, and nothing beside it is touched.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from tests.conformance._wrong import named

import archkey
from archkey import launch
from archkey.conformance.judge import judge
from archkey.formats.sparse_kv import empty_cache, packed
from archkey.kernels import sparse_kv as builders
from archkey.launch import Program, interpreting
from archkey.ops import OPERATORS
from archkey.reference import sparse_mla as reference

interpreted = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")

MODES = (
    *(("fp8_v32", mode) for mode in ("fp32", "pow2")),
    ("fp8_v32_nope", "fp32"),
    ("fp8_model1", "pow2"),
)
TARGETS = {"": "cuda_sm90", "_fnuz": "rocm_gfx942"}
"""By the suffix of the formats that their matrix units read."""
FLAVOURED = [
    (target, name + suffix, mode) for suffix, target in TARGETS.items() for name, mode in MODES
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STALE = 0x35


def values(tokens: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Rows of all magnitudes; then ties of bfloat16, zeros of either sign, and infinities."""
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, width, generator=make)
    rows *= (
        torch.exp2(torch.randint(-20, 15, (tokens, width // 64), generator=make).float())[..., None]
        .expand(-1, -1, 64)
        .reshape(tokens, width)
    )
    rows[1, ::3] = 1 + 2**-8 + 2**-7 * torch.arange(len(rows[1, ::3]))
    rows[2] = 0.0
    rows[2, ::2] = -0.0
    rows[3, 5], rows[3, 40] = torch.inf, -torch.inf
    rows[4] *= 1e-6
    rows[4, 0] = -448.0
    return rows.to(dtype)


def mapping(tokens: int, capacity: int, dtype: torch.dtype) -> torch.Tensor:
    """A slot for each token, the last slot too; four are outside the cache."""
    slots = torch.randperm(capacity, generator=torch.Generator().manual_seed(3))[:tokens]
    slots[0] = capacity - 1 if capacity - 1 not in slots else slots[0]
    slots[5:9] = torch.tensor([-1, capacity, -(2**31), 2**31 - 1])
    return slots.to(dtype)


def apart(name: str, blocks: int, page: int, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(a cache whose blocks lie apart, all the bytes it lies in); `shift` bytes off 16."""
    layout = packed(name)
    stride = layout.block_bytes(page) + layout.block_multiple
    room = torch.full((blocks * stride + 16,), STALE, dtype=torch.uint8)
    start = shift - room.data_ptr() % 16
    start += 16 * (start < 0)
    shape, strides = (blocks, page, layout.row_bytes), (stride, layout.row_bytes, 1)
    return room.as_strided(shape, strides, start), room


def same_codes(found: torch.Tensor, wanted: torch.Tensor, fnuz: bool) -> bool:
    """Bytes agree, or are both a NaN: the hardware that divides chooses its sign."""
    nans = (0x80,) if fnuz else (0x7F, 0xFF)
    both = torch.isin(found, torch.tensor(nans)) & torch.isin(wanted, torch.tensor(nans))
    return bool(((found == wanted) | both).all())


# --- bits -----------------------------------------------------------------------------------------


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities are meant
@pytest.mark.parametrize(
    ("target", "name", "mode", "dtype"),
    [
        (*row, dtype)
        for row in FLAVOURED
        for dtype in (DTYPES if row[0] == "cuda_sm90" else DTYPES[:1])
    ],
    ids=str,
)
def test_bytes_are_those_of_the_reference(
    target: str, name: str, mode: str, dtype: torch.dtype
) -> None:
    """Every byte of the memory that the cache lies in, gaps between its blocks included."""
    layout, tokens, page = packed(name), 21, 6
    for slot_dtype, shift in ((torch.int64, 0), (torch.int32, 1), (None, 2)):
        k_nope = values(tokens, layout.nope_dim, dtype, 1)
        k_rope = values(tokens, layout.rope_dim, dtype, 2) if layout.rope_dim else None
        slots = None if slot_dtype is None else mapping(tokens, 5 * page, slot_dtype)
        cache, room = apart(name, 5, page, shift)
        (wanted,) = reference.quantize_sparse_kv(k_nope, k_rope, slots, cache, name, mode)
        before = room.clone()
        archkey.open(target).quantize_sparse_kv(
            k_nope, k_rope, format=name, scale_mode=mode, out=cache, slot_mapping=slots
        )
        assert same_codes(cache, wanted, name.endswith("_fnuz")), slot_dtype
        cache.fill_(STALE)
        changed = room != before
        assert not changed.any(), "a byte between the blocks was written"


@interpreted
@pytest.mark.parametrize("out_dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(("target", "name", "mode"), FLAVOURED)
def test_rows_are_those_of_the_reference(
    target: str, name: str, mode: str, out_dtype: torch.dtype
) -> None:
    """Of bytes at random: every code, every exponent byte, numbers that out cannot hold."""
    layout, page = packed(name), 6
    make = torch.Generator().manual_seed(5)
    for slot_dtype, shift in ((torch.int64, 0), (torch.int32, 3), (None, 4)):
        cache, _ = apart(name, 5, page, shift)
        cache.copy_(torch.randint(0, 256, cache.shape, generator=make, dtype=torch.uint8))
        slots = None if slot_dtype is None else mapping(21, 5 * page, slot_dtype)
        with np.errstate(all="ignore"):  # infinities and NaN are meant
            out = torch.full((21 if slots is not None else 30, layout.head_dim), torch.nan)
            out = out.to(out_dtype)
            given = out if slots is not None else out.view(5, page, -1)
            archkey.open(target).dequantize_sparse_kv(
                cache, format=name, slot_mapping=slots, out=given
            )
        (wanted,) = reference.dequantize_sparse_kv(cache, slots, name)
        wanted = wanted.to(out_dtype)
        if out_dtype == torch.bfloat16:  # of which the interpreter knows normal numbers alone
            small = wanted.abs() < 2**-126
            assert (out[small].abs() < 2**-126).all()
            out[small] = wanted[small]
        torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)
        if slots is not None:
            assert (out[5:9] == 0).all()


@interpreted
@pytest.mark.parametrize("code", [0, 1, 126, 127, 128, 254, 255])
def test_exponent_bytes_at_their_ends(code: int) -> None:
    cache = empty_cache(packed("fp8_model1"), 1, 2)
    cache.view(-1)[: 2 * 576] = 0x7E  # 448
    cache.view(-1)[2 * 576 : 2 * 584] = code
    with np.errstate(all="ignore"):  # 448 * 2^127 is infinite
        out = archkey.open("cuda_sm90").dequantize_sparse_kv(cache, format="fp8_model1")
    (wanted,) = reference.dequantize_sparse_kv(cache, None, "fp8_model1")
    torch.testing.assert_close(out.view(2, 512), wanted.bfloat16(), rtol=0, atol=0, equal_nan=True)


@interpreted
def test_indices_at_their_ends() -> None:
    """Positions past the table, pages below zero, slots at 2^31 - 1 and past it."""
    most, least = 2**31 - 1, -(2**31)
    table = torch.tensor([[3, -1, most // 64, least, most], [0, 1, 2, 3, 4]], dtype=torch.int32)
    row = [0, 63, 64, 127, 128, 191, 192, 256, 319, 320, most, least, -1, -64]
    indices = torch.tensor([row, row], dtype=torch.int32)
    found = archkey.open("cuda_sm90").logical_to_physical_indices(indices, table, 64)
    assert found[0].tolist() == [192, 255, -1, -1, most - 63, most, *[-1] * 8]
    assert found[1].tolist() == [*row[:9], *[-1] * 5]
    (wanted,) = reference.logical_to_physical_indices(indices, table, 64)
    assert found.equal(wanted)
    huge = archkey.open("cuda_sm90").logical_to_physical_indices(
        indices, table[1:].repeat(2, 1), most
    )
    assert huge[0].tolist() == [*row[:11], *[-1] * 3][:10] + [most, -1, -1, -1]


# --- launches -------------------------------------------------------------------------------------


class Machine:
    """A Build that notes what is compiled and launched."""

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self.grids: list[tuple[int, int, int]] = []

    def compile(self, program: Program) -> Any:
        self.programs.append(program)

        def launch(grid: tuple[int, int, int], *arguments: Any) -> None:
            assert len(arguments) == len(program.signature)
            self.grids.append(grid)

        return launch


def meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(("tokens", "grids"), [(1, 1), (4, 1), (5, 2), (8192, 2048), (0, 0)])
def test_one_launch_by_shapes_alone(tokens: int, grids: int) -> None:
    """Tensors without data: reading a slot on the host would raise."""
    for operator in ("quantize_sparse_kv", "dequantize_sparse_kv"):
        for problem in OPERATORS[operator].examples.values():
            machine, name = Machine(), problem.kv_format
            run = getattr(builders, f"build_{operator}")(problem, machine)
            cache, slots = meta(9, 64, packed(name).row_bytes, dtype=torch.uint8), meta(tokens)
            if operator == "quantize_sparse_kv":
                rows = meta(tokens, 512, dtype=torch.bfloat16)
                run(rows, rows, slots, cache, name, problem.scale_mode, cache)
            else:
                run(cache, slots, name, meta(2 * tokens, 512, dtype=torch.bfloat16))
            assert len(machine.programs) == 1
            assert machine.grids == [(grids, 1, 1)] * (tokens > 0)


def test_one_launch_of_lists() -> None:
    machine = Machine()
    problem = OPERATORS["logical_to_physical_indices"].examples["DeepSeek-V3.2 page 64"]
    run = builders.build_logical_to_physical_indices(problem, machine)  # type: ignore[arg-type]
    run(meta(7, 3, 2048), meta(7, 50), 64, meta(7, 3, 2048))
    run(meta(7, 2048), meta(7, 50), 64, meta(7, 2048))
    run(meta(0, 2048), meta(0, 50), 64, meta(0, 2048))
    assert machine.grids == [(21, 4, 1), (7, 4, 1)]


@pytest.mark.parametrize("name", ["fp8_v32", "fp8_v32_nope", "fp8_model1"])
@pytest.mark.parametrize("page", [1, 2, 64])
def test_a_cache_that_formats_allocate_is_aligned(name: str, page: int) -> None:
    """A planar one, too, whose rows are 584 bytes apart in name only."""
    session, layout = archkey.open("cuda_sm90"), packed(name)
    cache = empty_cache(layout, 3, page)
    asked: list[Any] = []
    for cache_, aligned in ((cache, True), (apart(name, 3, page, 1)[0], False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                type(session), "launcher", lambda self, p: asked.append(p) or (lambda *a: None)
            )
            k_nope = torch.zeros(3, layout.nope_dim, dtype=torch.bfloat16)
            rope = torch.zeros(3, 64, dtype=torch.bfloat16) if layout.rope_dim else None
            mode = "pow2" if layout.planar else "fp32"
            session.quantize_sparse_kv(k_nope, rope, format=name, scale_mode=mode, out=cache_)
            session.dequantize_sparse_kv(cache_, format=name)
        assert [problem.aligned for problem in asked] == [aligned] * 2
        asked.clear()


# --- planted faults -------------------------------------------------------------------------------

Change = Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any]]
"""From a program's constants and its launch arguments to those of either that are wrong."""
QUANTIZE, DEQUANTIZE = "quantize_sparse_kv", "dequantize_sparse_kv"
FAULTS: tuple[tuple[str, str, str, Change], ...] = (
    (QUANTIZE, "scale rounded up", "scales between powers of two", lambda c, a: {"POW2": True}),
    (QUANTIZE, "scale as it is", "scales rounded up to powers of two",
     lambda c, a: {"POW2": False}),
    (QUANTIZE, "codes of the other flavour", "FP8 codes of the device",
     lambda c, a: {"FNUZ": not c["FNUZ"]}),
    (QUANTIZE, "slot outside written", "slots outside the cache",
     lambda c, a: {"capacity": 2 * a["capacity"]}),
    (QUANTIZE, "slot -1 written", "other slots keep their bytes",
     lambda c, a: {"slot_mapping": a["slot_mapping"].clamp(min=0)}),
    (QUANTIZE, "scales behind whole rows", "format fp8_model1",
     lambda c, a: {"SCALES": c["PAGE"] * 584}),
    (QUANTIZE, "scales seven apart", "format fp8_model1", lambda c, a: {"SCALE_PITCH": 7}),
    (QUANTIZE, "eighth scale written", "format fp8_model1", lambda c, a: {"COUNT": 8}),
    (QUANTIZE, "rope behind inline scales", "format fp8_model1",
     lambda c, a: {"ROPE_AT": c["ROPE_AT"] + 8}),
    (QUANTIZE, "blocks as if contiguous", "rows apart",
     lambda c, a: {"block_stride": c["PAGE"] * c["PITCH"] // c["BYTES"]}),
    (DEQUANTIZE, "slot outside read", "slots outside the cache",
     lambda c, a: {"capacity": 2 * a["capacity"]}),
    (DEQUANTIZE, "scales behind whole rows", "format fp8_model1",
     lambda c, a: {"SCALES": c["PAGE"] * 584}),
    (DEQUANTIZE, "codes of the other flavour", "FP8 codes of the device",
     lambda c, a: {"FNUZ": not c["FNUZ"]}),
    ("logical_to_physical_indices", "page of another size", "page 3", lambda c, a: {"PAGE": 4}),
    ("logical_to_physical_indices", "tail unwritten", "one sequence", lambda c, a: {"K": 499}),
    ("logical_to_physical_indices", "table as if wider", "three sequences",
     lambda c, a: {"pages": a["pages"] + 1}),
)  # fmt: skip


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("operator", "about", "change"),
    [pytest.param(o, about, change, id=f"{o}: {what}") for o, what, about, change in FAULTS],
)
def test_a_planted_fault_fails_by_name(
    operator: str, about: str, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = launch._interpreted

    def planted(program: Program) -> Any:
        def run(grid: tuple[int, int, int], *arguments: Any) -> None:
            constants = dict(program.constants)
            named_ = dict(zip(program.signature, arguments, strict=True))
            wrong = change(constants, named_)
            constants |= {k: v for k, v in wrong.items() if k in constants}
            faulty = right(dataclasses.replace(program, constants=constants))
            faulty(grid, *(wrong.get(name, value) for name, value in named_.items()))

        return run

    monkeypatch.setattr(launch, "_interpreted", planted)
    session = archkey.open("cuda_sm90")
    results = [judge(session, case, level="interpreted") for case in named(operator, about)]
    assert {result.kernel for result in results} == {"cuda_sm90:triton"}
    reasons = [result.reason for result in results if not result.passed]
    assert reasons, "passes every case"
    assert {reason.partition(":")[0] for reason in reasons} <= {"out", "Fault"}, reasons


# --- machine code ---------------------------------------------------------------------------------

_ACCESSES = """
import json, re
import archkey
from archkey.ops import OPERATORS
session = archkey.open("cuda_sm90")
found = {}
for name in ("quantize_sparse_kv", "dequantize_sparse_kv"):
    for label, problem in OPERATORS[name].examples.items():
        for aligned in (True, False):
            plan, = session.prepare([problem._replace(aligned=aligned, pdl=True)])
            text = plan.compiled[0].kernel.asm["ptx"]
            kinds = set(re.findall(r"(?:ld|st)\\.global[.\\w:]*|griddepcontrol\\.\\w+", text))
            found[f"{name}, {label}, {aligned}"] = sorted(kinds)
print(json.dumps(found))
"""


def test_aligned_rows_move_16_bytes_at_a_time(run_python: Callable[..., str]) -> None:
    """And others never more than their pointers allow; early launches wait."""
    found = json.loads(run_python(_ACCESSES, TRITON_INTERPRET="0"))
    assert len(found) == 10
    for where, kinds in found.items():
        wide = {kind for kind in kinds if ".v" in kind}
        if where.endswith("True"):
            assert wide >= {"ld.global.v4.b32", "st.global.v4.b32"}, where
        else:
            assert not wide, where
            stored = {kind for kind in kinds if kind.startswith("st")}
            # Bytes of the cache one by one, whose pointers may be odd; numbers of out, too.
            assert stored == {f"st.global.b{8 if where.startswith('quantize') else 16}"}, where
        assert {"griddepcontrol.wait", "griddepcontrol.launch_dependents"} <= set(kinds), where
