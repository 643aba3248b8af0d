# SPDX-License-Identifier: Apache-2.0
"""Builders of fused_recurrent_kda and kda_packed_decode: one launch of the shared Triton body.

Packed decode is the recurrence of one token, whose q, k and v lie in one row. Grids follow from
shapes alone, so a call can be captured; lengths and slots are read on the device. A sequence's bits
follow from it alone. Any architecture with a Triton backend can list them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.kernels.attention_programs import unit_of
from archkey.kernels.kda_arguments import POINTERS, state_steps
from archkey.kernels.kda_decode_body import kda_decode_body
from archkey.kernels.kda_decode_tunings import KdaDecodeTuning
from archkey.launch import Build, Program
from archkey.ops._kda_contract import FusedRecurrentKdaProblem

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops._kda_contract import KdaPackedDecodeProblem

__all__ = ["build_fused_recurrent_kda", "build_kda_packed_decode"]

_TOKENS = ("q", "k", "v", "g", "beta", "out")


def build_fused_recurrent_kda(problem: FusedRecurrentKdaProblem, build: Build) -> Run:
    """`run(q, k, v, .., final_state)`, in the order of the operator's inputs and outputs."""
    tuning: KdaDecodeTuning = build.tuning(problem)
    launch = build.compile(_program(problem, tuning))
    programs = problem.value_heads * _blocks(problem, tuning)
    unit, g_unit, out_unit, state_unit, final_unit = _units(problem)

    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        A_log: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        initial_state: torch.Tensor | None,
        state_indices: torch.Tensor | None,
        num_accepted_tokens: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        scale: float,
        lower_bound: float | None,
        use_qk_l2norm_in_kernel: bool,
        use_gate_in_kernel: bool,
        use_beta_sigmoid_in_kernel: bool,
        allow_neg_eigval: bool,
        state_v_first: bool,
        inplace_final_state: bool,
        out: torch.Tensor,
        final_state: torch.Tensor | None,
    ) -> None:
        batch, tokens = q.shape[:2]
        # With lengths, one sequence more: the rows that belong to nobody.
        sequences, extra = (batch, 0) if cu_seqlens is None else (cu_seqlens.shape[0] - 1, 1)
        if not sequences + extra:
            return
        launch(
            ((sequences + extra) * programs, 1, 1), q, k, v, g, beta, A_log, dt_bias, initial_state,
            state_indices, num_accepted_tokens, cu_seqlens, out, final_state, sequences, tokens,
            scale, lower_bound or 0.0, 0 if state_indices is None else state_indices.stride(0),
            *(step // unit for x in (q, k, v) for step in x.stride()[:3]),
            *(step // g_unit for step in g.stride()[:3]), *beta.stride()[:3],
            *(step // out_unit for step in out.stride()[:3]),
            *state_steps(initial_state, state_unit), *state_steps(final_state, final_unit),
        )  # fmt: skip

    return run


def build_kda_packed_decode(problem: KdaPackedDecodeProblem, build: Build) -> Run:
    """`run(mixed_qkv, a, b, .., use_qk_l2norm_in_kernel, out, pool)`."""
    tuning: KdaDecodeTuning = build.tuning(problem)
    alike = _recurrence_of(problem)
    width, width_v = problem.head_dim, problem.head_dim_v
    k_from = problem.heads * width
    launch = build.compile(_program(alike, tuning, k_from, 2 * k_from))
    programs = problem.value_heads * _blocks(alike, tuning)
    unit, g_unit, out_unit, state_unit, _ = _units(alike)
    q_head, v_head, g_head = width // unit, width_v // unit, width // g_unit

    def run(
        mixed_qkv: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        A_log: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        initial_state: torch.Tensor,
        ssm_state_indices: torch.Tensor,
        scale: float,
        lower_bound: float | None,
        use_qk_l2norm_in_kernel: bool,
        out: torch.Tensor,
        pool: torch.Tensor,
    ) -> None:
        sequences = out.shape[0]
        row = mixed_qkv.stride(0) // unit
        b_row, b_head = b.stride()
        steps = state_steps(pool, state_unit)
        launch(
            (sequences * programs, 1, 1), mixed_qkv, mixed_qkv, mixed_qkv, a, b, A_log, dt_bias,
            pool, ssm_state_indices, None, None, out, pool, sequences, 1, scale, lower_bound or 0.0,
            ssm_state_indices.stride(0), row, 0, q_head, row, 0, q_head, row, 0, v_head,
            a.stride(0) // g_unit, 0, g_head, b_row, 0, b_head,
            *(step // out_unit for step in out.stride()[:3]), *steps, *steps,
        )  # fmt: skip

    return run


def _recurrence_of(problem: KdaPackedDecodeProblem) -> FusedRecurrentKdaProblem:
    """The same as a recurrence; its heads are aligned if their widths are, too."""
    widths = problem.head_dim | problem.head_dim_v
    most = max(unit_of(name, aligned=True) for name in (problem.dtype, problem.a_dtype))
    return FusedRecurrentKdaProblem(
        problem.dtype,
        problem.a_dtype,
        problem.b_dtype,
        problem.heads,
        problem.value_heads,
        problem.head_dim,
        problem.head_dim_v,
        problem.gate,
        problem.A_log,
        problem.dt_bias,
        problem.bounded,
        beta="sigmoid",
        l2norm=problem.l2norm,
        state_dtype=problem.state_dtype,
        state_v_first=True,
        out_dtype=problem.out_dtype,
        state_indices=problem.state_indices,
        final_dtype=problem.state_dtype,
        in_place=True,
        aligned=problem.aligned and widths % most == 0,
    )


def _width(number: int) -> int:
    """`number` as a power of two, 16 at least."""
    return max(16, 1 << (number - 1).bit_length())


def _columns(problem: FusedRecurrentKdaProblem, tuning: KdaDecodeTuning) -> int:
    return min(tuning.columns, _width(problem.head_dim_v))


def _blocks(problem: FusedRecurrentKdaProblem, tuning: KdaDecodeTuning) -> int:
    """Programs of a state."""
    return -(-problem.head_dim_v // _columns(problem, tuning))


def _units(problem: FusedRecurrentKdaProblem) -> tuple[int, ...]:
    """Elements in which strides count: of q, k and v; g; out; first and last states."""
    dtypes = problem.dtype, problem.g_dtype, problem.out_dtype
    states = (
        "float32" if name == "none" else name for name in (problem.state_dtype, problem.final_dtype)
    )
    return tuple(unit_of(name, problem.aligned) for name in (*dtypes, *states))


def _program(
    problem: FusedRecurrentKdaProblem, tuning: KdaDecodeTuning, k_from: int = 0, v_from: int = 0
) -> Program:
    """The body for `problem`; *_from as in the body."""
    unit, g_unit, out_unit, state_unit, final_unit = _units(problem)
    strides = [f"{x}_{of}" for x in _TOKENS for of in ("batch", "stride", "head")]
    strides += [f"{x}_{of}" for x in ("state", "final") for of in ("stride", "head", "row")]
    states = {"initial_state": problem.state_dtype, "final_state": problem.final_dtype}
    in_line = [name for name, dtype in states.items() if dtype != "none"]
    signature: dict[str, Any] = {
        **dict.fromkeys(("q", "k", "v"), POINTERS[problem.dtype]),
        "g": POINTERS[problem.g_dtype],
        "beta": POINTERS[problem.beta_dtype],
        "A_log": POINTERS[problem.A_log],
        "dt_bias": POINTERS[problem.dt_bias],
        "initial_state": POINTERS[problem.state_dtype],
        "state_indices": POINTERS[problem.state_indices],
        "accepted": POINTERS[problem.accepted],
        "cu_seqlens": POINTERS[problem.cu_seqlens],
        "out": POINTERS[problem.out_dtype],
        "final_state": POINTERS[problem.final_dtype],
        **dict.fromkeys(("sequences", "tokens"), "i32"),
        **dict.fromkeys(("scale", "lower_bound"), "fp32"),
        **dict.fromkeys(("index_stride", *strides), "i64"),
    }
    return Program(
        kda_decode_body,
        signature=signature,
        constants={
            "HV": problem.value_heads,
            "GROUP": problem.value_heads // problem.heads,
            "K": problem.head_dim,
            "V": problem.head_dim_v,
            "KP": _width(problem.head_dim),
            "BV": _columns(problem, tuning),
            "BLOCKS": _blocks(problem, tuning),
            "K_FROM": k_from,
            "V_FROM": v_from,
            "UNIT": unit,
            "G_UNIT": g_unit,
            "OUT_UNIT": out_unit,
            "STATE_UNIT": state_unit,
            "FINAL_UNIT": final_unit,
            "GATE": problem.gate,
            "BETA": problem.beta,
            "L2NORM": problem.l2norm,
            "AXIS": int(problem.state_v_first),
            "IN_PLACE": problem.in_place,
            "PER_TOKEN": problem.per_token,
        },
        aligned=frozenset(("q", "k", "v", "g", "out", *in_line) if problem.aligned else ()),
        options={"num_warps": tuning.num_warps},
    )
