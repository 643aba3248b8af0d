# SPDX-License-Identifier: Apache-2.0
"""How MLA decode cuts keys, which body takes a Problem, and what a Problem computes of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

import archkey
from archkey._admission import check_kernels
from archkey.conditions import at_least
from archkey.errors import UnknownName
from archkey.kernels.mla_decode import split_of
from archkey.ops import OPERATORS
from archkey.ops.mla import MlaDecodeProblem

H200 = 132


@pytest.mark.parametrize("keys", [0, 1, 63, 64, 127])
def test_few_keys_are_not_cut(keys: int) -> None:
    assert split_of(H200, 1, keys) == 1


@pytest.mark.parametrize("tiles", [H200, 2 * H200, 10_000])
def test_a_full_device_is_not_cut_for_more(tiles: int) -> None:
    assert split_of(H200, tiles, 8192) == 1


@pytest.mark.parametrize(("tiles", "keys"), [(1, 32768), (2, 8192), (16, 8192), (32, 8192)])
def test_segments_fill_the_device_in_one_wave(tiles: int, keys: int) -> None:
    split = split_of(H200, tiles, keys)
    assert H200 / 2 < tiles * split <= H200
    assert keys // split >= 64


def test_it_is_never_more_than_there_are_steps() -> None:
    assert all(split_of(H200, 1, keys) <= max(1, keys // 64) for keys in range(0, 5000, 37))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "wgmma"),
        ({"heads": 16, "q_len": 2, "causal": True}, "wgmma"),
        ({"heads": 16}, "triton"),
        ({"ragged": True}, "triton"),
        ({"head_dim_v": 448}, "triton"),
        ({"kv_dtype": "float8_e4m3fn"}, "triton"),
        ({"aligned": False}, "triton"),
        ({"q_len": 0, "batch_invariant": True}, "triton"),
    ],
)
def test_which_body_of_hopper_takes_it(fields: dict[str, object], name: str) -> None:
    problem = MlaDecodeProblem("bfloat16", "bfloat16", "bfloat16", 128)._replace(**fields)  # type: ignore[arg-type]
    chosen = archkey.open("cuda_sm90").decide(problem).chosen
    assert chosen is not None and chosen.id == f"cuda_sm90:{name}"


def test_interpreted_the_shared_body_takes_all() -> None:
    problem = MlaDecodeProblem("bfloat16", "bfloat16", "bfloat16", 128)
    decision = archkey.open("cuda_sm90").plan(problem).decision
    assert decision.chosen is not None and decision.chosen.id == "cuda_sm90:triton"
    reasons = {found.kernel: found.found for found in decision.rejected}
    assert "Gluon, which Triton does not interpret" in reasons["cuda_sm90:wgmma"]


def test_rows_are_heads_of_all_queries() -> None:
    problem = MlaDecodeProblem("bfloat16", "bfloat16", "bfloat16", 16)
    assert problem.rows == 16
    assert problem._replace(q_len=4).rows == 64
    assert problem._replace(q_len=0).rows == 16, "of any number, those of one"


def test_conditions_may_name_what_a_problem_computes() -> None:
    """And nothing that it has not."""
    shared = archkey.open("cuda_sm90").kernels("mla_decode")[1]
    check_kernels((replace(shared, accepts=(at_least("rows", 8),)),), dict(OPERATORS), set())
    with pytest.raises(UnknownName, match="lines"):
        check_kernels((replace(shared, accepts=(at_least("lines", 8),)),), dict(OPERATORS), set())
