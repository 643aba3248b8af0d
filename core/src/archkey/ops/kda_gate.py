# SPDX-License-Identifier: Apache-2.0
"""The log gate of Kimi Delta Attention, alone and summed inside chunks.

    g = -exp(A_log) softplus(x + dt_bias)                     softplus(x) = x above 20
    g = lower_bound sigmoid(exp(A_log) (x + dt_bias))         with a lower bound

Units are natural-log unless `unit="log2"` is asked for.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from archkey.ops import _kda_checks as check
from archkey.ops._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_no_grad,
    check_tensor,
    shape_text,
)
from archkey.ops._contract import Operator, public
from archkey.ops._memo import metadata, remember
from archkey.ops._operand import aligned, check_operand, layouts

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = ["OPERATORS", "chunk_layout", "kda_gate", "kda_gate_chunk_cumsum"]

CHUNK_SIZES = (32, 64)
UNITS = ("ln", "log2")


class KdaGateProblem(NamedTuple):
    """The log gate of each channel.

    gate           "softplus" or "sigmoid" (with a lower bound)
    A_log, dt_bias  their dtype, or "none"
    aligned        g and out: pointers and strides are multiples of 16 bytes
    """

    dtype: str
    out_dtype: str
    value_heads: int
    head_dim: int
    gate: str = "softplus"
    A_log: str = "float32"
    dt_bias: str = "float32"
    aligned: bool = True
    operator: str = "kda_gate"


class KdaGateChunkCumsumProblem(NamedTuple):
    """Running sums of the log gate inside each chunk.

    gate           "softplus" or "sigmoid" (with a lower bound)
    A_log, dt_bias, cu_seqlens  their dtype, or "none"
    unit           "ln", or "log2" for kernels that work with exp2
    aligned        g and out: pointers and strides are multiples of 16 bytes
    """

    dtype: str
    out_dtype: str
    value_heads: int
    head_dim: int
    gate: str = "softplus"
    A_log: str = "float32"
    dt_bias: str = "float32"
    cu_seqlens: str = "none"
    chunk_size: int = 64
    unit: str = "ln"
    aligned: bool = True
    operator: str = "kda_gate_chunk_cumsum"


@public
def kda_gate(
    session: Session,
    /,
    g: torch.Tensor,
    A_log: torch.Tensor | None,
    dt_bias: torch.Tensor | None = None,
    lower_bound: float | None = None,
    output_dtype: torch.dtype | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The log gate of raw g.

    g             `[..., HV, K]`; bfloat16, float16 or float32; last stride 1
    A_log         `[HV]` in any shape; None stands for 0, and needs lower_bound
    dt_bias       `[HV, K]` or `[HV * K]`
    lower_bound   below 0: the bounded gate
    output_dtype  None is float32

    Returns `[..., HV, K]`, natural-log units.
    """
    op = "kda_gate"
    facts = layouts(A_log, dt_bias, lower_bound)
    key = (op, metadata(g, out), facts, lower_bound, output_dtype)
    problem = session.problems.get(key)
    if problem is None:
        check_tensor(op, "g", g)
        if g.dim() < 2:
            bad_value(op, "g", "of shape [..., HV, K]", shape_text(g))
        fields = _fields(op, g, A_log, dt_bias, lower_bound, output_dtype, out)
        problem = remember(session.problems, key, KdaGateProblem(**fields))
    if torch.is_grad_enabled():
        check_no_grad(op, g, A_log, dt_bias)
    if out is None:
        out = torch.empty(g.shape, dtype=output_dtype or torch.float32, device=g.device)
    run = session.launcher(problem)
    if g.numel():
        run(g, A_log, dt_bias, lower_bound, out)
    return out


@public
def kda_gate_chunk_cumsum(
    session: Session,
    /,
    g: torch.Tensor,
    A_log: torch.Tensor | None,
    chunk_size: int = 64,
    *,
    dt_bias: torch.Tensor | None = None,
    lower_bound: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
    unit: str = "ln",
    output_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`G_i = sum of gates from its chunk's first token to token i`.

    g              `[B, T, HV, K]`, raw; B = 1 with cu_seqlens
    chunk_size     32 or 64; chunks start anew with each sequence
    cu_seqlens     `[N + 1]` int32 or int64; rows past its last entry become 0
    chunk_indices  `[NT, 2]` (sequence, chunk) pairs as chunk_layout makes them; made if missing
    unit           "ln", or "log2": divided by ln 2
    others         as in kda_gate

    Returns `[B, T, HV, K]`.
    """
    op = "kda_gate_chunk_cumsum"
    facts = layouts(A_log, dt_bias, lower_bound, cu_seqlens, chunk_indices)
    key = (op, metadata(g, out), facts, lower_bound, output_dtype, chunk_size, unit)
    problem = session.problems.get(key)
    if problem is None:
        check_operand(op, "g", g, FLOATS, 4, g)
        problem = KdaGateChunkCumsumProblem(
            **_fields(op, g, A_log, dt_bias, lower_bound, output_dtype, out),
            cu_seqlens=_check_chunks(op, g, cu_seqlens, chunk_indices, chunk_size, unit),
            chunk_size=chunk_size,
            unit=unit,
        )
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, g, A_log, dt_bias)
    if session.validate and cu_seqlens is not None:
        check.validate_cu_seqlens(op, cu_seqlens, None, g.shape[1])
    if cu_seqlens is not None and chunk_indices is None:
        chunk_indices, _ = chunk_layout(cu_seqlens, g.shape[1], chunk_size)
    if out is None:
        out = torch.empty(g.shape, dtype=output_dtype or torch.float32, device=g.device)
    run = session.launcher(problem)
    if g.numel():
        run(g, A_log, dt_bias, cu_seqlens, chunk_indices, lower_bound, chunk_size, unit, out)
    return out


def chunk_layout(
    cu_seqlens: torch.Tensor, tokens: int, chunk_size: int = 64, rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which chunks the sequences of a packed batch fall into; no host synchronisation.

    Returns chunk_indices `[NT, 2]`, rows of (sequence, chunk), and chunk_offsets `[N + 1]`, the
    number of each sequence's first chunk; both int32 on cu_seqlens' device. An empty sequence has
    no chunk, and the others keep their number. The rest is padding of (-1, -1).

    rows  NT, e.g. of the batch that a graph was captured with; None: exact for cu_seqlens on the
          host; on a device, which the host may not wait for, the most that `tokens` can have
    """
    counts = (cu_seqlens.diff() + chunk_size - 1) // chunk_size
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    sequences = len(counts)
    if rows is None:
        most = max(-(-tokens // chunk_size) + sequences - 1, 0)
        rows = int(offsets[-1]) if cu_seqlens.device.type == "cpu" else most
    chunk = torch.arange(rows, device=cu_seqlens.device)
    sequence = torch.searchsorted(offsets[1:], chunk, right=True)
    pairs = torch.stack([sequence, chunk - offsets[sequence]], dim=1)
    padding = (chunk >= offsets[-1])[:, None]
    return pairs.masked_fill(padding, -1).int(), offsets.int()


def _fields(
    op: str,
    g: torch.Tensor,
    A_log: Any,
    dt_bias: Any,
    lower_bound: Any,
    output_dtype: torch.dtype | None,
    out: Any,
) -> dict[str, Any]:
    """Check what both operators take; the fields that both Problems have."""
    dtype = check_operand(op, "g", g, FLOATS, g.shape, g)
    gate, a_dtype, bias_dtype, _ = check.gate_of(op, g, True, A_log, dt_bias, lower_bound, False)
    heads, width = g.shape[-2:]
    if out is None:
        wanted = output_dtype or torch.float32
        out_dtype, in_line = str(wanted).removeprefix("torch."), width * wanted.itemsize & 15 == 0
    else:
        out_dtype, in_line = check_operand(op, "out", out, FLOATS, g.shape, g), aligned(out)
        if output_dtype not in (None, out.dtype):
            bad_value(op, "out", f"{output_dtype} like output_dtype", out_dtype)
    if out_dtype not in FLOATS:
        bad_type(op, "output_dtype", " or ".join(FLOATS), out_dtype)
    return {
        "dtype": dtype,
        "out_dtype": out_dtype,
        "value_heads": heads,
        "head_dim": width,
        "gate": gate,
        "A_log": a_dtype,
        "dt_bias": bias_dtype,
        "aligned": in_line and aligned(g),
    }


def _check_chunks(
    op: str, g: torch.Tensor, cu_seqlens: Any, chunk_indices: Any, chunk_size: int, unit: str
) -> str:
    """dtype of cu_seqlens, or "none"."""
    if chunk_size not in CHUNK_SIZES:
        bad_value(op, "chunk_size", "32 or 64", chunk_size)
    if unit not in UNITS:
        bad_value(op, "unit", "'ln' or 'log2'", repr(unit))
    if chunk_indices is not None:
        check_operand(op, "chunk_indices", chunk_indices, check.INTEGERS, (None, 2), g)
    return check.sequences_of(op, g, cu_seqlens)[1]


OPERATORS = (
    Operator(
        name="kda_gate",
        family="kda",
        problem=KdaGateProblem,
        inputs=("g", "A_log", "dt_bias", "lower_bound"),
        outputs=("out",),
        reference="archkey.reference.kda:kda_gate",
        function="archkey.ops.kda_gate:kda_gate",
        cases="archkey.conformance.cases.kda",
        workloads="archkey.bench.workloads.kda",
        examples=MappingProxyType(
            {
                "Kimi-Linear TP8": KdaGateProblem("bfloat16", "float32", 4, 128),
                "Kimi-K3 TP8": KdaGateProblem("bfloat16", "float32", 12, 128, "sigmoid"),
            }
        ),
    ),
    Operator(
        name="kda_gate_chunk_cumsum",
        family="kda",
        problem=KdaGateChunkCumsumProblem,
        inputs=(
            "g",
            "A_log",
            "dt_bias",
            "cu_seqlens",
            "chunk_indices",
            "lower_bound",
            "chunk_size",
            "unit",
        ),
        outputs=("out",),
        reference="archkey.reference.kda:kda_gate_chunk_cumsum",
        function="archkey.ops.kda_gate:kda_gate_chunk_cumsum",
        cases="archkey.conformance.cases.kda",
        workloads="archkey.bench.workloads.kda",
        examples=MappingProxyType(
            {
                "Kimi-Linear TP8": KdaGateChunkCumsumProblem(
                    "bfloat16", "float32", 4, 128, cu_seqlens="int32"
                ),
                "Kimi-K3 TP8": KdaGateChunkCumsumProblem(
                    "bfloat16", "float32", 12, 128, "sigmoid", cu_seqlens="int32", unit="log2"
                ),
            }
        ),
    ),
)
