# SPDX-License-Identifier: Apache-2.0
"""Ranks compare what they run: real processes over gloo on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

import archkey
from archkey.integrations.distributed import assert_agree, differences
from archkey.ops.rmsnorm import RmsNormProblem

PROBLEM = RmsNormProblem("bfloat16", "bfloat16", "bfloat16", 512)


def rank(index: int, folder: str, override: dict[int, dict[str, str]]) -> None:
    """One rank: prepare, compare, and write down what came of it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=3)
    session = archkey.open("cuda_sm90", override=override.get(index, {}))
    session.prepare([PROBLEM])
    try:
        assert_agree(session)
        said = "agree"
    except archkey.ArchkeyError as error:
        said = str(error)
    Path(folder, f"rank{index}").write_text(said)
    dist.destroy_process_group()


def meeting(folder: Path, override: dict[int, dict[str, str]]) -> list[str]:
    mp.spawn(rank, (str(folder), override), nprocs=3)
    return [(folder / f"rank{index}").read_text() for index in range(3)]


def test_ranks_that_agree(tmp_path: Path) -> None:
    assert meeting(tmp_path, {}) == ["agree"] * 3


def test_the_rank_that_differs_is_named_on_all(tmp_path: Path) -> None:
    said = meeting(tmp_path, {1: {"rmsnorm": "torch"}})
    assert len(set(said)) == 1
    assert "rank 1 has cpu:torch for RmsNormProblem(" in said[0]
    assert "rank 0 has cuda_sm90:triton" in said[0]
    assert "rank 2" not in said[0]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"target": "cuda_sm90", "version of triton": "3.7.0"}, "rank 1 has 3.7.0 for version of"),
        ({"target": "cuda_sm90"}, "rank 1 has nothing for version of triton, rank 0 has 3.6.0"),
    ],
)
def test_each_difference_is_a_line(other: dict[str, str], line: str) -> None:
    first = {"target": "cuda_sm90", "version of triton": "3.6.0"}
    (found,) = differences([first, other])
    assert found.startswith(line)
