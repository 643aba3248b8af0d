# SPDX-License-Identifier: Apache-2.0
"""Builders of sparse MLA on the warp groups' body: the shared one's launches with another body."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from archkey.kernels.sparse_mla import run_of
from archkey.kernels.sparse_mla_programs import attention_program
from archkey.kernels.sparse_mla_tunings import SparseMlaTuning
from archkey_cuda_sm90.kernels.sparse_mla_body import sparse_mla_body

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.launch import Build
    from archkey.ops.sparse_mla import SparseMlaDecodeProblem, SparseMlaPrefillProblem

__all__ = ["build_sparse_mla"]


def build_sparse_mla(
    problem: SparseMlaPrefillProblem | SparseMlaDecodeProblem, build: Build
) -> Run:
    """`run(q, kv, .., lse)`, in the order of either operator's inputs and outputs."""
    tuning: SparseMlaTuning = build.tuning(problem)
    program = attention_program(problem, tuning)
    taken = set(sparse_mla_body.arg_names)
    constants = {name: value for name, value in program.constants.items() if name in taken}
    program = replace(program, body=sparse_mla_body, constants=constants)
    return run_of(problem, build, tuning, program)
