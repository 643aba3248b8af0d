# SPDX-License-Identifier: Apache-2.0
"""Builder of mla_decode on the warp groups' body: the shared one's launches with another body."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from archkey.kernels.mla_decode import run_of
from archkey.kernels.mla_decode_programs import decode_program
from archkey.kernels.mla_decode_tunings import MlaDecodeTuning
from archkey_cuda_sm90.kernels.mla_decode_body import mla_decode_body

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.launch import Build
    from archkey.ops.mla import MlaDecodeProblem

__all__ = ["build_mla_decode"]


def build_mla_decode(problem: MlaDecodeProblem, build: Build) -> Run:
    """`run(q, kv_cache, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: MlaDecodeTuning = build.tuning(problem)
    program = decode_program(problem, tuning)
    taken = set(mla_decode_body.arg_names)
    constants = {name: value for name, value in program.constants.items() if name in taken}
    return run_of(
        problem, build, tuning, replace(program, body=mla_decode_body, constants=constants)
    )
