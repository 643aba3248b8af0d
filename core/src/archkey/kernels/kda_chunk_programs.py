# SPDX-License-Identifier: Apache-2.0
"""The Programs of chunk_kda: from a Problem and a tuning, all that decides machine code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.kernels.attention_programs import unit_of
from archkey.kernels.kda_arguments import POINTERS
from archkey.kernels.kda_chunk_body import kda_chunk_body
from archkey.kernels.kda_chunk_tunings import KdaChunkTuning
from archkey.kernels.kda_state_body import kda_join_body, kda_maps_body, kda_walk_body
from archkey.launch import Program, interpreting

if TYPE_CHECKING:
    from archkey.ops._kda_contract import ChunkKdaProblem

__all__ = [
    "chunk_program",
    "columns_of",
    "join_program",
    "maps_program",
    "sizes_of",
    "state_units",
    "walk_program",
]

_WHOLE = 64
"""K from which on maps are multiplied in quarters."""


def sizes_of(problem: ChunkKdaProblem) -> tuple[int, int]:
    """K and V as powers of two."""
    k_pad, v_pad = (
        max(16, 1 << (width - 1).bit_length()) for width in (problem.head_dim, problem.head_dim_v)
    )
    return k_pad, v_pad


def columns_of(problem: ChunkKdaProblem, columns: int) -> int:
    """Columns to walk with. Maps have K + V columns, and no program has some of both."""
    return min(columns, *sizes_of(problem))


def state_units(problem: ChunkKdaProblem) -> tuple[int, int]:
    """Elements in which strides of first and of last states count."""
    first, last = (
        unit_of("float32" if name == "none" else name, problem.aligned)
        for name in (problem.state_dtype, problem.final_dtype)
    )
    return first, last


def _code(problem: ChunkKdaProblem) -> str:
    """What is multiplied."""
    return "float16" if problem.dtype == "float16" else "bfloat16"


def _walked(problem: ChunkKdaProblem, columns: int) -> dict[str, Any]:
    """First constants of the bodies that walk."""
    k_pad, v_pad = sizes_of(problem)
    return {
        "HV": problem.value_heads,
        "K": problem.head_dim,
        "V": problem.head_dim_v,
        "KP": k_pad,
        "VP": v_pad,
        "BV": columns,
        "C": problem.chunk_size,
    }


def _own(problem: ChunkKdaProblem, *names: str) -> dict[str, str]:
    """Of the workspaces: what a chunk needs from its own tokens."""
    return {name: "*fp32" if name == "decay" else POINTERS[_code(problem)] for name in names}


def _strides(*names: str) -> dict[str, str | None]:
    return dict.fromkeys(names, "i64")


def _triton_type(problem: ChunkKdaProblem) -> Any:
    import triton.language as tl

    return getattr(tl, _code(problem))


def chunk_program(problem: ChunkKdaProblem, tuning: KdaChunkTuning) -> Program:
    """Every chunk by itself."""
    k_pad, v_pad = sizes_of(problem)
    return Program(
        kda_chunk_body,
        signature={
            **dict.fromkeys(("q", "k", "v"), POINTERS[problem.dtype]),
            "g": POINTERS[problem.g_dtype],
            "beta": POINTERS[problem.beta_dtype],
            "A_log": POINTERS[problem.A_log],
            "dt_bias": POINTERS[problem.dt_bias],
            "state_indices": POINTERS[problem.state_indices],
            "cu_seqlens": POINTERS[problem.cu_seqlens],
            **_own(problem, "w", "u", "qg", "kg", "within", "decay"),
            "out": POINTERS[problem.out_dtype],
            **dict.fromkeys(("sequences", "tokens"), "i32"),
            **dict.fromkeys(("scale", "lower_bound"), "fp32"),
            **_strides("index_stride"),
            **_strides(
                *(
                    f"{x}_{of}"
                    for x in ("q", "k", "v", "g", "beta", "out")
                    for of in ("batch", "stride", "head")
                )
            ),
        },
        constants={
            "HV": problem.value_heads,
            "GROUP": problem.value_heads // problem.heads,
            "K": problem.head_dim,
            "V": problem.head_dim_v,
            "KP": k_pad,
            "VP": v_pad,
            "BK": min(k_pad, tuning.block),
            "BV": min(v_pad, tuning.block),
            "C": problem.chunk_size,
            "LEVELS": problem.chunk_size.bit_length() - 1,
            "UNIT": unit_of(problem.dtype, problem.aligned),
            "G_UNIT": unit_of(problem.g_dtype, problem.aligned),
            "OUT_UNIT": unit_of(problem.out_dtype, problem.aligned),
            "GATE": problem.gate,
            "BETA": problem.beta,
            "L2NORM": problem.l2norm,
            "CODE": _triton_type(problem),
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(
            (*_WORKSPACES, *(("q", "k", "v", "g", "out") if problem.aligned else ()))
        ),
        options={"num_warps": tuning.chunk_warps},
    )


_WORKSPACES = ("w", "u", "qg", "kg", "within", "decay")


def maps_program(problem: ChunkKdaProblem, tuning: KdaChunkTuning) -> Program:
    """What every segment does to a state."""
    state_unit, _ = state_units(problem)
    return Program(
        kda_maps_body,
        signature={
            **_own(problem, "w", "u", "kg", "decay"),
            "initial_state": POINTERS[problem.state_dtype],
            "state_indices": POINTERS[problem.state_indices],
            "cu_seqlens": POINTERS[problem.cu_seqlens],
            "maps": "*fp32",
            **dict.fromkeys(("sequences", "tokens", "chunks"), "i32"),
            **_strides("index_stride", "state_stride", "state_head", "state_row"),
        },
        constants={
            **_walked(problem, columns_of(problem, tuning.columns)),
            "STATE_UNIT": state_unit,
            "V_FIRST": problem.state_v_first,
            "CODE": _triton_type(problem),
            "STAGES": tuning.map_stages,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(
            ("w", "u", "kg", "decay", "maps", *(("initial_state",) if problem.aligned else ()))
        ),
        options={"num_warps": tuning.walk_warps},
    )


def join_program(problem: ChunkKdaProblem, tuning: KdaChunkTuning) -> Program:
    """What segments start from, of what each does to a state."""
    k_pad, v_pad = sizes_of(problem)
    return Program(
        kda_join_body,
        signature={
            "maps": "*fp32",
            "state_indices": POINTERS[problem.state_indices],
            "cu_seqlens": POINTERS[problem.cu_seqlens],
            **dict.fromkeys(("tokens", "chunks"), "i32"),
            **_strides("index_stride"),
        },
        constants={
            "HV": problem.value_heads,
            "KP": k_pad,
            "VP": v_pad,
            "BV": columns_of(problem, tuning.few),
            "PARTS": 1 if k_pad < _WHOLE else 2,
            "C": problem.chunk_size,
            "STAGES": tuning.map_stages,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(("maps",)),
        options={"num_warps": tuning.walk_warps},
    )


def walk_program(
    problem: ChunkKdaProblem, tuning: KdaChunkTuning, columns: int, segmented: bool
) -> Program:
    """The walk of the states over the chunks, for the outputs."""
    state_unit, final_unit = state_units(problem)
    states = {
        "out": POINTERS[problem.out_dtype],
        "final_state": POINTERS[problem.final_dtype],
        "h": POINTERS[problem.dtype] if problem.intermediate else None,
        "track_state": "*fp32" if problem.track else None,
    }
    aligned = ("initial_state", "final_state", "out") if problem.aligned else ()
    chunked = problem.intermediate and problem.cu_seqlens != "none"
    return Program(
        kda_walk_body,
        signature={
            **_own(problem, *_WORKSPACES),
            "maps": "*fp32" if segmented else None,
            "initial_state": POINTERS[problem.state_dtype],
            "state_indices": POINTERS[problem.state_indices],
            "cu_seqlens": POINTERS[problem.cu_seqlens],
            "chunk_offsets": "*i32" if chunked else None,
            "track_chunk_idx": "*i32" if problem.track else None,
            **states,
            **dict.fromkeys(("sequences", "tokens", "chunks"), "i32"),
            **_strides("index_stride", "out_batch", "out_stride", "out_head"),
            **_strides("state_stride", "state_head", "state_row"),
            **_strides("final_stride", "final_head", "final_row", "h_chunks"),
            **_strides("track_stride", "track_head", "track_row"),
        },
        constants={
            **_walked(problem, columns),
            "OUT_UNIT": unit_of(problem.out_dtype, problem.aligned),
            "STATE_UNIT": state_unit,
            "FINAL_UNIT": final_unit,
            "V_FIRST": problem.state_v_first,
            "JOINED": tuning.join,
            "CODE": _triton_type(problem),
            "STAGES": tuning.stages,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset((*_WORKSPACES, *(("maps",) if segmented else ()), *aligned)),
        options={"num_warps": tuning.walk_warps},
    )
