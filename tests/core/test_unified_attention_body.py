# SPDX-License-Identifier: Apache-2.0
"""The builder of unified_attention: which tiles a call launches, and what it allocates.

What comes out is judged in tests/plugins/test_interpreted.py, and by the exam.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core._attention import call_inputs

import archkey
from archkey.kernels.attention import _parts, _split, _tiles_for
from archkey.kernels.attention_tunings import AttentionTile, AttentionTuning
from archkey.launch import Build
from archkey.ops.attention import UnifiedAttentionProblem

TUNING = AttentionTuning(((16, 16, 32, 4, 2, 2), (64, 64, 32, 4, 2, 2), (0, 128, 32, 4, 2)))
BF16 = torch.bfloat16


def problem(group: int = 8, **fields: Any) -> UnifiedAttentionProblem:
    return UnifiedAttentionProblem(*("bfloat16",) * 3, 2 * group, 2, 64, 64, **fields)


@pytest.mark.parametrize(
    ("group", "queries", "found"),
    [
        (8, "decode", [(0, 16)]),
        (16, "decode", [(0, 16)]),
        (17, "decode", [(0, 64)]),  # a query does not fit the first tile
        (128, "decode", [(0, 0)]),
        (1, "verify", [(0, 16)]),  # 16 queries of one head
        (4, "verify", [(0, 16), (16, 64)]),
        (8, "verify", [(0, 16), (16, 64), (64, 0)]),
        (8, "prefill", [(0, 16), (16, 64), (64, 0)]),
        (40, "prefill", [(0, 64), (64, 0)]),
    ],
)
def test_tiles_that_a_problem_can_come_to(
    group: int, queries: str, found: list[tuple[int, int]]
) -> None:
    """Each with the rows that go to the one before; no other is compiled."""
    tiles = list(_tiles_for(problem(group, queries=queries), TUNING))
    assert [(above, tile.most) for above, tile in tiles] == found


def test_one_tile_serves_all_that_must_not_depend_on_the_batch() -> None:
    alike = problem(queries="any", batch_invariant=True)
    assert list(_tiles_for(alike, TUNING)) == [(0, TUNING.tiles[-1])]


def test_keys_are_split_where_programs_are_few() -> None:
    tile = AttentionTile(16, 16, 32, 4, 2, fill=2)
    assert _split(tile, 132, 8, 32768, -1, 1) == 33
    assert _split(tile, 132, 264, 32768, -1, 1) == 1  # programs enough
    assert _split(tile, 132, 8, 1024, -1, 1) == 4  # 256 keys each
    assert _split(tile, 132, 8, 100, -1, 1) == 1
    assert _split(tile, 132, 8, 32768, 1023, 1) == 4  # a window holds no more


class Counted:
    """The launches of a session's calls, by the name of the body."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        compiled = Build.compile

        def compile(build: Build, program: Any) -> Any:
            launch = compiled(build, program)

            def counted(*arguments: Any) -> None:
                self.names.append(program.body.__name__)
                launch(*arguments)

            return counted

        monkeypatch.setattr(Build, "compile", compile)
        self.session = archkey.open("cuda_sm90")

    def call(self, **changes: Any) -> list[str]:
        self.names.clear()
        self.session.unified_attention(**call_inputs(**changes))
        return [name.removeprefix("unified_attention_") for name in self.names]


def test_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    assert counted.call() == ["body"]
    assert counted.call(max_seqlen_q=17) == ["body", "body"]  # few rows, and many
    assert counted.call(max_seqlen_q=17, batch_invariant=True) == ["body"]
    table = torch.zeros(2, 128, dtype=torch.int32)
    assert counted.call(max_seqlen_k=2048, block_table=table) == ["body", "segments_body"]


def test_the_callers_workspace_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is captured then allocates nothing."""
    counted = Counted(monkeypatch)
    room = {
        "softmax_segm_output": torch.full((4, 4, 3, 32), torch.nan),
        "softmax_segm_max": torch.full((4, 4, 3), torch.nan),
        "softmax_segm_expsum": torch.full((4, 4, 3), torch.nan),
    }
    assert counted.call(**room) == ["body", "segments_body"]
    assert not any(tensor.isnan().any() for tensor in room.values())
    q = torch.zeros(4, 4, 32)
    given = tuple(room.values())
    assert _parts(q, q, 4, 4, 3, 2, given) == (given, (384, 96, 32, 12, 3, 12, 3), 0)
    own = _parts(q, q, 6, 4, 3, 2, None)
    assert [tuple(tensor.shape) for tensor in own.tensors] == [(6, 4, 3, 32), *[(6, 4, 3)] * 2]
    assert own.each == 2


def test_numbers_that_make_no_sense() -> None:
    any_rows = (0, 16, 32, 4, 2)
    for tiles, said in (
        ((), "for any"),
        (((16, 16, 32, 4, 2),), "for any"),
        (((32, 32, 32, 4, 2), (16, 16, 32, 4, 2), any_rows), "more and more"),
        (((0, 24, 32, 4, 2),), "rows must be a power of two"),
        (((0, 16, 8, 4, 2),), "keys must be a power of two from 16"),
        (((0, 16, 32, 3, 2),), "num_warps"),
        (((0, 16, 32, 4, 0),), "stages"),
        (((32, 16, 32, 4, 2), any_rows), "32 rows do not fit"),
        (((0, 16, 32, 4, 2, 2),), "not split"),
    ):
        with pytest.raises(ValueError, match=said):
            AttentionTuning(tiles)
