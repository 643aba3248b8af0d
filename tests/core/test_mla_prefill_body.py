# SPDX-License-Identifier: Apache-2.0
"""mla_prefill and merge_attn_states beyond the exam's cases: launches, orders, bits, wide rows.

The public functions check and the builders launch, as on a card; the interpreter runs the bodies.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import archkey
from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.inputs import Merge, Prefill
from archkey.kernel import resolve
from archkey.kernels.mla_prefill_tunings import MlaPrefillTuning
from archkey.launch import Build, interpreting, products_in_order
from archkey.ops import OPERATORS
from archkey.session import Session

interpreted = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
TUNING = MlaPrefillTuning(((16, 16, 16, 4, 1), (0, 32, 16, 4, 1)))
NAMES = ("tokens", "sequences", "tail", "together")


class Counted:
    """A session whose calls of mla_prefill take `TUNING`, and what they launch.

    grids    programs of each launch
    numbers  the run-time numbers in NAMES of each launch
    rows     of the tile of each launch
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tuning: MlaPrefillTuning = TUNING) -> None:
        self.grids: list[int] = []
        self.numbers: list[dict[str, int]] = []
        self.rows: list[int] = []
        compiled = Build.compile

        def compile(build: Build, program: Any) -> Any:
            launch = compiled(build, program)
            names = list(program.signature)

            def counted(grid: tuple[int, int, int], *arguments: Any) -> None:
                given = dict(zip(names, arguments, strict=True))
                self.grids.append(grid[0])
                self.numbers.append({name: given[name] for name in NAMES if name in given})
                self.rows.append(program.constants["ROWS"])
                launch(grid, *arguments)

            return counted

        monkeypatch.setattr(Build, "compile", compile)
        monkeypatch.setattr(Build, "tuning", lambda build, problem: tuning)
        self.session: Session = archkey.open("cuda_sm90")

    def call(self, call: Prefill, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {**call(Maker("cpu", seed=3)), **changes}
        return self.session.mla_prefill(**inputs)  # type: ignore[return-value]


@interpreted
def test_the_longest_sequence_decides_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows, which are queries with the heads of a group; one launch a call."""
    counted = Counted(monkeypatch)
    short = Prefill(2, (3, 16), (20, 30))
    counted.call(short)
    counted.call(short, max_seqlen_q=17)
    counted.call(replace(short, heads=4, kv_heads=2))  # 32 rows
    counted.call(short, batch_invariant=True)
    assert counted.rows == [16, 32, 32, 32]


@interpreted
def test_a_grid_follows_from_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from lengths, which a replayed graph reads anew."""
    counted = Counted(monkeypatch)
    call = Prefill(3, (40, 0, 9), (50, 20, 9))
    want = counted.call(call)
    again = counted.call(call, max_seqlen_q=1000)
    assert counted.grids[0] == counted.grids[1]
    room = 49 // 32 + 3
    tail = -(-49 // 32)
    assert counted.grids[0] == 3 * (room + tail)
    assert all(map(torch.equal, want, again))


@interpreted
@pytest.mark.parametrize("together", [1, 2, 3, 5])
def test_heads_that_are_worked_through_together(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the cache holds, at least one; the last ones may be fewer."""
    call = Prefill(5, (33, 4), (40, 20), spare=3)
    key_bytes = (192 + 128) * 2
    want = Counted(monkeypatch).call(call)
    monkeypatch.undo()
    counted = Counted(monkeypatch, replace(TUNING, cache=1))
    found = counted.call(call, max_seqlen_k=(1 << 20) // (key_bytes * together))
    assert counted.numbers[0]["together"] == together
    assert all(map(torch.equal, found, want))


@interpreted
@pytest.mark.parametrize("call", [
    Prefill(3, (37, 0, 5), (61, 9, 5)),
    Prefill(6, (20, 33), (20, 33), (128, 128), kv_heads=2, dtype="fp16"),
    Prefill(2, (19, 1), (35, 16), dtype="fp8", out="fp16", v_descale=0.25),
], ids=["192/128", "GQA", "FP8"])  # fmt: skip
def test_the_same_bits_however_a_prompt_is_cut(
    call: Prefill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float32 of lse would show another order of sums where 16 bits hide it."""
    session = Counted(monkeypatch).session
    inputs = {**call(Maker("cpu", seed=5)), "batch_invariant": True}
    inputs.pop("out", None)
    with products_in_order():
        out, lse = session.mla_prefill(**inputs)
        for b, (n, keys) in enumerate(zip(call.q_lens, call.k_lens, strict=True)):
            q, k = (inputs[f"cu_seqlens_{x}"][b].item() for x in "qk")
            for cuts in ((0, n), sorted({0, min(1, n), min(18, n), n}), range(n + 1)):
                for begin, end in pairwise(cuts):
                    seen = keys - n + end
                    part = {
                        "q": inputs["q"][q + begin : q + end],
                        "k": inputs["k"][k : k + seen],
                        "v": inputs["v"][k : k + seen],
                        "cu_seqlens_q": torch.tensor([0, end - begin], dtype=torch.int32),
                        "cu_seqlens_k": torch.tensor([0, seen], dtype=torch.int32),
                        "max_seqlen_q": end - begin,
                        "max_seqlen_k": seen,
                    }
                    some, some_lse = session.mla_prefill(**{**inputs, **part})
                    rows = slice(q + begin, q + end)
                    assert torch.equal(some, out[rows]), (b, begin, end)
                    assert torch.equal(some_lse, lse[rows]), (b, begin, end)


@interpreted
@pytest.mark.parametrize("width", [1, 15, 2049, 5000])
@pytest.mark.parametrize("in_place", ["", "ab"])
def test_parts_of_any_width_are_merged(width: int, in_place: str) -> None:
    """Up to one column, and wider than what a program holds at once."""
    pairs = ((0.0, 1.0), (-inf, 0.0), (0.0, inf), (-inf, -inf))
    call = Merge(3, 2, width, pairs, dtype="fp32", in_place=in_place)(Maker("cpu", seed=1))
    want = resolve(OPERATORS["merge_attn_states"].reference)(
        *(call[name].clone() for name in ("out_a", "lse_a", "out_b", "lse_b")),
        compute_dtype=torch.float64,
    )
    session = archkey.open("cuda_sm90")
    found = session.merge_attn_states(**call)
    for mine, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-6)


@interpreted
def test_an_lse_of_nan_is_not_hidden() -> None:
    out, lse = torch.ones(1, 2, 8), torch.zeros(1, 2)
    found, found_lse = archkey.open("cuda_sm90").merge_attn_states(
        out, torch.tensor([[torch.nan, 0.0]]), out, lse
    )
    assert found[0, 0].isnan().all() and found_lse[0, 0].isnan()
    assert found[0, 1].eq(1).all()


def test_numbers_that_make_no_sense() -> None:
    for tiles, cache, said in (
        ((), 32, "for any"),
        (((0, 24, 32, 4, 2),), 32, "rows must be a power of two"),
        (((32, 16, 32, 4, 2), (0, 16, 32, 4, 2)), 32, "32 rows do not fit"),
        (((0, 16, 32, 4, 2),), 0, "at least 1 MiB"),
    ):
        with pytest.raises(ValueError, match=said):
            MlaPrefillTuning(tiles, cache)
