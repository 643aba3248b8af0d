# SPDX-License-Identifier: Apache-2.0
"""The page-table kernels beyond the exam's cases: launches, replays, numbers at their limits.

The public function checks and the builder launches, as on a card; the interpreter runs the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from archkey.conformance.case import Maker
from archkey.conformance.cases.attention.table_inputs import Ragged, Requests
from archkey.kernel import resolve
from archkey.kernels import page_table as builders
from archkey.launch import Program, interpreting
from archkey.ops import OPERATORS

interpreted = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
BOTH = pytest.mark.parametrize("kind", [Ragged, Requests])
TABLES = ("page_table", "swa_page_table")
STALE = 77
DTYPES = tuple(product(("int32", "int64"), repeat=3))
Call = dict[str, Any]


class Machine:
    """A session and its Build in one, which count what is compiled and launched.

    runs  whether to launch at all
    """

    validate = False

    def __init__(self, runs: bool = True) -> None:
        self.problems: dict[Any, Any] = {}
        self.programs: list[Program] = []
        self.launches: list[Callable[[], None]] = []
        self.grids: list[tuple[int, int, int]] = []
        self._runs = runs
        self._bound: dict[Any, Any] = {}

    def launcher(self, problem: Any) -> Any:
        if problem not in self._bound:
            self._bound[problem] = getattr(builders, f"build_{problem.operator}")(problem, self)
        return self._bound[problem]

    def compile(self, program: Program) -> Any:
        self.programs.append(program)

        def launch(grid: tuple[int, int, int], *arguments: Any) -> None:
            self.grids.append(grid)
            if self._runs:
                assert len(arguments) == len(program.signature)
                self.launches.append(lambda: program.body[grid](*arguments, **program.constants))
                self.launches[-1]()

        return launch


def operator_of(call: Mapping[str, Any]) -> Any:
    ragged = "kv_indptr" in call
    return OPERATORS[f"{'ragged_kv_indices' if ragged else 'req_to_token'}_to_page_table"]


def filled(call: Call, machine: Machine | None = None) -> tuple[Any, Any]:
    """Both tables, filled in place by the kernel."""
    function = resolve(operator_of(call).function).__wrapped__
    return function(machine or Machine(), **call)  # type: ignore[no-any-return]


def wanted(call: Call) -> tuple[Any, Any]:
    return resolve(operator_of(call).reference)(**call)  # type: ignore[no-any-return]


def check(call: Call, machine: Machine | None = None) -> None:
    for want, got in zip(wanted(call), filled(call, machine), strict=True):
        assert (want is got is None) or torch.equal(got, want)


def one_sequence(
    slots: torch.Tensor, tokens: int, page: int, columns: int, ragged: bool, **more: Any
) -> Call:
    """A sequence of `tokens` tokens at the start of `slots`."""
    call = {"page_size": page, "page_table": torch.full((1, columns), STALE, dtype=torch.int32)}
    if ragged:
        return {**call, "kv_indices": slots, "kv_indptr": torch.tensor([0, tokens]), **more}
    rows = {"req_to_token": slots[None], "req_pool_indices": torch.tensor([0])}
    return {**call, **rows, "seq_lens": torch.tensor([tokens]), **more}


# --- launches -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("swa", [False, True], ids=["full", "full and swa"])
@pytest.mark.parametrize("columns", [1, 512, 513, 3000])
def test_one_launch_by_shapes_alone(kind: Any, swa: bool, columns: int) -> None:
    """Tensors without data: reading a length on the host would raise."""
    call = kind((9, 30, 2), page=16, swa=swa)(Maker())
    for name in TABLES[: 1 + swa]:
        call[name] = torch.empty(5, columns, dtype=torch.int32)
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    machine = Machine(runs=False)
    filled(meta, machine)
    assert machine.grids == [(3, -(-columns // 512), 1)]
    assert len(machine.programs) == 1


@BOTH
def test_nothing_to_fill_is_not_launched(kind: Any) -> None:
    machine = Machine(runs=False)
    filled(kind((), swa=True)(Maker()), machine)
    filled(kind((0, 0), columns=0)(Maker()), machine)
    if kind is Ragged:
        filled(kind((9,))(Maker()) | {"kv_indptr": torch.tensor([]).int()}, machine)
    assert not machine.grids


@interpreted
@BOTH
@pytest.mark.parametrize("fill_tail", [True, False], ids=["fill", "keep"])
def test_a_replay_follows_lengths_and_slots(kind: Any, fill_tail: bool) -> None:
    """The very same launch, as in a graph, on tensors whose contents changed."""
    more = {"page": 4, "swa": True, "fill_tail": fill_tail}
    machine = Machine()
    call = kind((37, 5, 16, 0), **more)(Maker(seed=0))
    check(call, machine)
    after = kind((0, 16, 5, 37), evicted=2, negative=-1, **more)(Maker(seed=1))
    for name, value in after.items():
        if isinstance(value, torch.Tensor) and name not in TABLES:
            call[name].copy_(value)
    want = wanted(call)
    machine.launches[0]()
    assert torch.equal(call["page_table"], want[0])
    assert torch.equal(call["swa_page_table"], want[1])


@interpreted
def test_draft_tokens_are_no_part_of_the_program() -> None:
    machine = Machine()
    for drafts in (0, 1, 3, 16, 17):
        check(Requests((40, 17, 33), page=4, draft=drafts)(Maker()), machine)
    assert len(machine.programs) == 1 and len(machine.grids) == 5


# --- numbers at their limits ----------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
def test_dtypes_of_requests_mix(dtypes: tuple[str, str, str]) -> None:
    slots, indices, lengths = dtypes
    call = Requests((37, 5, 16), 4, True, slots=slots, indices=indices, lengths=lengths, draft=3)
    check(dict(call(Maker())))


@interpreted
@BOTH
@pytest.mark.parametrize("page", [1, 16])
def test_slots_and_map_entries_far_below_zero(kind: Any, page: int) -> None:
    least = torch.iinfo(torch.int64).min
    first = torch.tensor([5, -(2**31), 3, -(2**32) + 5, least, 7])
    slots = torch.where(first < 0, first, first * page).repeat_interleave(page)
    mapped = torch.arange(8 * page) + 2 * page
    mapped[3 * page], mapped[7 * page] = least, -(2**32) + 4 * page
    call = one_sequence(slots, len(slots), page, 8, kind is Ragged, full_to_swa=mapped)
    call["swa_page_table"] = torch.full_like(call["page_table"], STALE)
    table, swa = filled(call)
    assert table.tolist() == [[5, 0, 3, 0, 0, 7, 0, 0]]
    assert swa.tolist() == [[7, 0, 0, 0, 0, 0, 0, 0]]


@interpreted
@BOTH
@pytest.mark.parametrize("fill_tail", [True, False], ids=["fill", "keep"])
def test_a_sequence_longer_than_its_row_stays_in_it(kind: Any, fill_tail: bool) -> None:
    call = kind((100, 70, 33), page=4, swa=True, fill_tail=fill_tail)(Maker())
    rooms = torch.full((2, 4, 600), STALE, dtype=torch.int32)
    wide = dict(zip(TABLES, rooms.clone(), strict=True))
    narrow = {name: room[:, 100:105] for name, room in zip(TABLES, rooms, strict=True)}
    want = wanted({**call, **wide})
    filled({**call, **narrow})
    for room, each in zip(rooms, want, strict=True):
        assert torch.equal(room[:, 100:105], each[:, :5])
        assert (room[:, :100] == STALE).all() and (room[:, 105:] == STALE).all()


@interpreted
def test_lengths_with_drafts_pass_2_31() -> None:
    call = one_sequence(torch.arange(64, 96), 0, 4, 8, ragged=False, num_draft_tokens=4)
    call["seq_lens"] = torch.tensor([2**31 - 2], dtype=torch.int32)
    assert filled(call)[0].tolist() == [list(range(16, 24))]


@interpreted
@BOTH
def test_tokens_of_columns_pass_2_32(kind: Any) -> None:
    """Column 4096 of pages of 2^20: in 32 bits it is token 0 again."""
    slots = torch.arange(3 * 2**20, 3 * 2**20 + 8)
    check(one_sequence(slots, 8, 2**20, 4100, kind is Ragged))


@interpreted
def test_a_list_and_a_map_are_read_past_entry_2_31() -> None:
    # Address space only: what lies before is never touched.
    start = 2**31 + 6
    indices = torch.empty(start + 8, dtype=torch.int32)
    indices[start:] = torch.tensor([12, 13, 14, 15, -1, -1, -1, -1])
    call = one_sequence(indices, 0, 4, 3, ragged=True)
    assert filled(call | {"kv_indptr": torch.tensor([start, start + 7])})[0].tolist() == [[3, 0, 0]]
    mapped = torch.empty(start + 8, dtype=torch.int64)
    mapped[start:] = torch.arange(40, 48)
    call = one_sequence(torch.arange(start, start + 8), 8, 2, 5, ragged=True, full_to_swa=mapped)
    call["swa_page_table"] = torch.full_like(call["page_table"], STALE)
    assert filled(call)[1].tolist() == [[20, 21, 22, 23, 0]]


# --- memory that ends -----------------------------------------------------------------------------

_ENDS = """
import ctypes, mmap
import torch
import archkey
from archkey.reference import attention as reference

SIZE = mmap.PAGESIZE
KEPT = []

def alone(values):
    "The same tensor; after its last byte, and before the first of SIZE bytes, is no memory."
    room = mmap.mmap(-1, 3 * SIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for gap in (0, 2 * SIZE):
        assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + gap), SIZE, 0)
    KEPT.append(room)
    place = {"count": values.numel(), "offset": 2 * SIZE - values.nbytes}
    return torch.frombuffer(room, dtype=values.dtype, **place).view(values.shape).copy_(values)

def check(name, *given, **options):
    tables = [alone(torch.full((3, 90), 7, dtype=torch.int32)) for _ in range(2)]
    call = (*given, tables[0])
    options |= {"page_size": 16, "swa_page_table": tables[1], "full_to_swa": mapped}
    want = getattr(reference, name)(*call, **options)
    for table, one in zip(getattr(session, name)(*call, **options), want, strict=True):
        assert torch.equal(table, one), (name, table, one)

session = archkey.open("cuda_sm90")
entries, slots = SIZE // 4, SIZE // 8  # of int32 and of int64
mapped = alone(torch.arange(slots).roll(64))
indices = torch.arange(entries, dtype=torch.int32) % slots
indices[32::64] = -1
for lens in ((1000, entries - 1021, 21), (1000, entries - 1001, 1)):
    starts = torch.tensor([0, *lens]).cumsum(0)
    check("ragged_kv_indices_to_page_table", alone(indices), alone(starts))
lens = alone(torch.tensor([entries // 2 - 7, 1, 0]))
for drafts in (5, 7):
    requests = (alone(indices.view(2, -1)), alone(torch.tensor([1, 0, 1])), lens)
    check("req_to_token_to_page_table", *requests, num_draft_tokens=drafts)
print("ended", session.degraded)
"""


def test_no_entry_past_a_sequence_is_read(run_python: Callable[..., str]) -> None:
    """Nor the map's entry of a padding slot, which would be before its first."""
    assert run_python(_ENDS, TRITON_INTERPRET="1") == "ended Counter()\n"
