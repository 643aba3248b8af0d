# SPDX-License-Identifier: Apache-2.0
"""Problems and operators of Kimi Delta Attention."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

from archkey.ops import kda_gate
from archkey.ops._contract import Operator

__all__ = ["OPERATORS", "ChunkKdaProblem", "FusedRecurrentKdaProblem", "KdaPackedDecodeProblem"]


class ChunkKdaProblem(NamedTuple):
    """Kimi Delta Attention by chunks of tokens, for prefill.

    gate           "given", "softplus" or "sigmoid" (with a lower bound)
    beta           "given", "sigmoid" or "2sigmoid"
    A_log, dt_bias, cu_seqlens, state_indices   their dtype, or "none"
    bounded        no gate is below -5: 16 tokens stay within float32's exponent
    state_dtype    dtype of initial_state, or "none"; final_dtype likewise
    track, intermediate   whether snapshots are taken: one a sequence, one a chunk
    small_grid     at most 256 (chunk, value head) pairs: too few to fill a GPU
    batch_invariant  a sequence's bits follow from it alone
    aligned        q, k, v, g, o and states: pointers and strides are multiples of 16 bytes
    """

    dtype: str
    g_dtype: str
    beta_dtype: str
    heads: int
    value_heads: int
    head_dim: int
    head_dim_v: int
    gate: str = "given"
    A_log: str = "none"
    dt_bias: str = "none"
    bounded: bool = False
    beta: str = "given"
    l2norm: bool = False
    cu_seqlens: str = "none"
    state_dtype: str = "none"
    state_v_first: bool = False
    out_dtype: str = "bfloat16"
    state_indices: str = "none"
    final_dtype: str = "none"
    chunk_size: int = 64
    track: bool = False
    intermediate: bool = False
    small_grid: bool = False
    aligned: bool = True
    batch_invariant: bool = False
    operator: str = "chunk_kda"


class FusedRecurrentKdaProblem(NamedTuple):
    """Kimi Delta Attention token by token, for decode and verification.

    gate to final_dtype, aligned   as in chunk_kda
    per_token      every token leaves its state in a slot of its own
    accepted       dtype of num_accepted_tokens, or "none"
    in_place       states go back to the pool; otherwise to final_state, one a sequence
    """

    dtype: str
    g_dtype: str
    beta_dtype: str
    heads: int
    value_heads: int
    head_dim: int
    head_dim_v: int
    gate: str = "given"
    A_log: str = "none"
    dt_bias: str = "none"
    bounded: bool = False
    beta: str = "given"
    l2norm: bool = False
    cu_seqlens: str = "none"
    state_dtype: str = "none"
    state_v_first: bool = False
    out_dtype: str = "bfloat16"
    state_indices: str = "none"
    final_dtype: str = "none"
    per_token: bool = False
    accepted: str = "none"
    in_place: bool = False
    aligned: bool = True
    operator: str = "fused_recurrent_kda"


class KdaPackedDecodeProblem(NamedTuple):
    """Kimi Delta Attention for one token a sequence, straight from the projections.

    gate           "softplus" or "sigmoid" (with a lower bound)
    A_log, dt_bias  their dtype, or "none"
    aligned        mixed_qkv, a, pool and out: pointers and strides are multiples of 16 bytes
    """

    dtype: str
    a_dtype: str
    b_dtype: str
    heads: int
    value_heads: int
    head_dim: int
    head_dim_v: int
    gate: str = "softplus"
    A_log: str = "float32"
    dt_bias: str = "float32"
    bounded: bool = False
    l2norm: bool = True
    state_dtype: str = "float32"
    state_indices: str = "int32"
    out_dtype: str = "bfloat16"
    aligned: bool = True
    operator: str = "kda_packed_decode"


# state_indices come as given, `[N]` or `[N, columns]`: stride 0 steps from sequence to sequence.
_TOKENS = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "initial_state", "state_indices")
_FLAGS = (
    "scale",
    "lower_bound",
    "use_qk_l2norm_in_kernel",
    "use_gate_in_kernel",
    "use_beta_sigmoid_in_kernel",
    "allow_neg_eigval",
    "state_v_first",
)
# What SGLang asks for: raw gate and beta, normalised q and k, a float32 pool of [V, K] states.
_SERVING: dict[str, Any] = {
    "A_log": "float32",
    "dt_bias": "float32",
    "beta": "sigmoid",
    "l2norm": True,
    "cu_seqlens": "int32",
    "state_dtype": "float32",
    "state_v_first": True,
    "state_indices": "int32",
    "final_dtype": "float32",
}
_LINEAR = ("bfloat16", "bfloat16", "bfloat16")


def _kimi(problem: Any, heads: int, gate: str = "softplus", **more: Any) -> Any:
    return problem(
        *_LINEAR, heads, heads, 128, 128,
        **_SERVING | {"gate": gate, "bounded": gate == "sigmoid"} | more,
    )  # fmt: skip


OPERATORS = (
    Operator(
        name="chunk_kda",
        family="kda",
        problem=ChunkKdaProblem,
        inputs=(
            *_TOKENS,
            "cu_seqlens",
            "chunk_indices",
            "chunk_offsets",
            "track_state",
            "track_chunk_idx",
            *_FLAGS,
            "chunk_size",
            "return_intermediate_states",
        ),
        outputs=("o", "final_state", "h", "track_state"),
        reference="archkey.reference.kda:chunk_kda",
        function="archkey.ops.kda:chunk_kda",
        cases="archkey.conformance.cases.kda",
        workloads="archkey.bench.workloads.kda",
        examples=MappingProxyType(
            {
                "Kimi-Linear TP4": _kimi(ChunkKdaProblem, 8),
                "Kimi-Linear TP8, short": _kimi(ChunkKdaProblem, 4, small_grid=True),
                "Kimi-Linear TP8, prefix cache": _kimi(
                    ChunkKdaProblem, 4, track=True, intermediate=True
                ),
                "GVA, finished gate": ChunkKdaProblem(
                    "bfloat16", "float32", "float32", 2, 6, 64, 64, state_dtype="float32",
                    final_dtype="float32",
                ),
                "Kimi-Linear TP8, batch invariant": _kimi(
                    ChunkKdaProblem, 4, batch_invariant=True
                ),
                "Kimi-K3 TP8, bf16 state": _kimi(
                    ChunkKdaProblem, 12, "sigmoid", state_dtype="bfloat16", final_dtype="bfloat16"
                ),
            }
        ),
    ),
    Operator(
        name="fused_recurrent_kda",
        family="kda",
        problem=FusedRecurrentKdaProblem,
        inputs=(*_TOKENS, "num_accepted_tokens", "cu_seqlens", *_FLAGS, "inplace_final_state"),
        outputs=("o", "final_state"),
        reference="archkey.reference.kda:fused_recurrent_kda",
        function="archkey.ops.kda:fused_recurrent_kda",
        cases="archkey.conformance.cases.kda",
        workloads="archkey.bench.workloads.kda",
        examples=MappingProxyType(
            {
                "Kimi-Linear TP4 decode": _kimi(FusedRecurrentKdaProblem, 8, in_place=True),
                "Kimi-Linear TP8 decode, bf16 state": _kimi(
                    FusedRecurrentKdaProblem, 4, in_place=True,
                    state_dtype="bfloat16", final_dtype="bfloat16",
                ),
                "GVA, finished gate": FusedRecurrentKdaProblem(
                    "bfloat16", "float32", "float32", 2, 6, 64, 64, state_dtype="float32",
                    final_dtype="float32",
                ),
                "Kimi-K3 TP8 verify": _kimi(
                    FusedRecurrentKdaProblem, 12, "sigmoid",
                    in_place=True, per_token=True, accepted="int32",
                ),
            }
        ),
    ),
    Operator(
        name="kda_packed_decode",
        family="kda",
        problem=KdaPackedDecodeProblem,
        inputs=(
            "mixed_qkv",
            "a",
            "b",
            "A_log",
            "dt_bias",
            "initial_state",
            "ssm_state_indices",
            "scale",
            "lower_bound",
            "use_qk_l2norm_in_kernel",
        ),
        outputs=("out", "initial_state"),
        reference="archkey.reference.kda:kda_packed_decode",
        function="archkey.ops.kda:kda_packed_decode",
        cases="archkey.conformance.cases.kda",
        workloads="archkey.bench.workloads.kda",
        examples=MappingProxyType(
            {
                "Kimi-Linear TP4": KdaPackedDecodeProblem(*_LINEAR, 8, 8, 128, 128),
                "Kimi-K3 TP8": KdaPackedDecodeProblem(
                    *_LINEAR, 12, 12, 128, 128, "sigmoid", bounded=True
                ),
            }
        ),
    ),
    *kda_gate.OPERATORS,
)  # fmt: skip
