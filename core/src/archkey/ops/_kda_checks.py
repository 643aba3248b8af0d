# SPDX-License-Identifier: Apache-2.0
"""Checks that the KDA operators share: metadata, and under ARCHKEY_VALIDATE=1 values too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from archkey.ops._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_dtype,
    check_same_device,
    check_shape,
    check_tensor,
    shape_text,
)
from archkey.ops._operand import check_operand

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch

STATES = ("float32", "bfloat16")
INTEGERS = ("int32", "int64")
MAX_KEY_DIM = 256
SAFE_BOUND = -5.0
"""Sixteen tokens at -5 stay within float32's exponent (80 of 88 nats): what safe_gate promises."""


def tokens_of(op: str, q: Any, k: Any, v: Any, g: Any, beta: Any) -> tuple[Any, ...]:
    """(dtype, g's dtype, beta's dtype, H, HV, K, V) of one call's tokens."""
    dtype = check_operand(op, "q", q, FLOATS, 4, q)
    shape = q.shape
    batch, length, heads, k_dim = shape
    check_operand(op, "k", k, (dtype,), shape, q)
    check_operand(op, "v", v, (dtype,), 4, q)
    value_shape = v.shape
    value_heads, v_dim = value_shape[2:]
    if value_shape[:2] != shape[:2]:
        bad_value(op, "v", f"of shape [{batch}, {length}, HV, V] like q", shape_text(v))
    if heads < 1 or value_heads < 1 or value_heads % heads:
        bad_value(op, "v's heads", f"a multiple of q's {heads}", value_heads)
    if not 0 < k_dim <= MAX_KEY_DIM or v_dim < 1:
        expected = f"1 to {MAX_KEY_DIM} for q and k, 1 or more for v"
        bad_value(op, "head dims", expected, (k_dim, v_dim))
    g_dtype = check_operand(op, "g", g, FLOATS, (batch, length, value_heads, k_dim), q)
    beta_dtype = check_operand(op, "beta", beta, FLOATS, (batch, length, value_heads), q)
    return dtype, g_dtype, beta_dtype, heads, value_heads, k_dim, v_dim


def gate_of(
    op: str,
    like: torch.Tensor,
    in_kernel: bool,
    A_log: Any,
    dt_bias: Any,
    lower_bound: Any,
    safe_gate: bool,
) -> tuple[str, str, str, bool]:
    """(kind of gate, dtype of A_log, dtype of dt_bias, whether no gate is below SAFE_BOUND).

    like  g, whose last dimensions are `[HV, K]`
    """
    if lower_bound is not None:
        if not isinstance(lower_bound, float | int):
            bad_type(op, "lower_bound", "None or a number", type(lower_bound).__name__)
        if not lower_bound < 0:
            bad_value(op, "lower_bound", "below 0", lower_bound, "It is a log decay, in nats.")
    if safe_gate and lower_bound is None and not in_kernel:
        lower_bound = SAFE_BOUND
    if safe_gate and (lower_bound is None or lower_bound < SAFE_BOUND):
        bad_value(op, "lower_bound", f"in [{SAFE_BOUND}, 0) with safe_gate", lower_bound)
    if not in_kernel:
        for name, x in (("A_log", A_log), ("dt_bias", dt_bias)):
            if x is not None:
                hint = "It belongs to a raw g; without the flag g is the finished log gate."
                bad_value(op, name, "None without use_gate_in_kernel", shape_text(x), hint)
        return "given", "none", "none", safe_gate
    if A_log is None and lower_bound is None:
        hint = "The gate is -exp(A_log) softplus(x), or lower_bound sigmoid(exp(A_log) x)."
        bad_value(op, "A_log", "given with use_gate_in_kernel, or lower_bound", "neither", hint)
    heads, width = like.shape[-2:]
    kind = "softplus" if lower_bound is None else "sigmoid"
    bounded = lower_bound is not None and lower_bound >= SAFE_BOUND
    a_dtype = _flat(op, "A_log", A_log, heads, like)
    return kind, a_dtype, _flat(op, "dt_bias", dt_bias, heads * width, like), bounded


def _flat(op: str, name: str, x: Any, numel: int, like: torch.Tensor) -> str:
    """dtype of an optional contiguous parameter of `numel` numbers, or "none"."""
    if x is None:
        return "none"
    check_tensor(op, name, x)
    dtype = check_dtype(op, name, x, FLOATS)
    if x.numel() != numel or not x.is_contiguous():
        bad_value(op, name, f"contiguous with {numel} numbers", shape_text(x))
    if x.device != like.device:
        check_same_device(op, like, **{name: x})
    return dtype


def beta_of(op: str, sigmoid: bool, allow_neg_eigval: bool) -> str:
    """What becomes of beta: "given", "sigmoid" or "2sigmoid"."""
    if allow_neg_eigval and not sigmoid:
        hint = "Double a finished beta where it is made."
        bad_value(op, "allow_neg_eigval", "False without use_beta_sigmoid_in_kernel", True, hint)
    return ("2sigmoid" if allow_neg_eigval else "sigmoid") if sigmoid else "given"


def scale_of(op: str, scale: Any, k_dim: int) -> float:
    """The scale of q; K^-0.5 by default."""
    if scale is None:
        return 1 / math.sqrt(k_dim)
    if not isinstance(scale, float | int):
        bad_type(op, "scale", "None or a number", type(scale).__name__)
    return float(scale)


def sequences_of(
    op: str, q: torch.Tensor, cu_seqlens: Any, cu_seqlens_cpu: Any = None
) -> tuple[int, str]:
    """(number of sequences, dtype of cu_seqlens or "none")."""
    if cu_seqlens is None:
        if cu_seqlens_cpu is not None:
            bad_value(op, "cu_seqlens_cpu", "None without cu_seqlens", shape_text(cu_seqlens_cpu))
        return q.shape[0], "none"
    dtype = check_operand(op, "cu_seqlens", cu_seqlens, INTEGERS, 1, q)
    if q.shape[0] != 1:
        hint = "Pack the sequences along T; cu_seqlens separates them."
        bad_value(op, "q", "of batch 1 with cu_seqlens", shape_text(q), hint)
    if cu_seqlens.shape[0] < 1:
        bad_value(op, "cu_seqlens", "of shape [N + 1]", shape_text(cu_seqlens))
    if cu_seqlens_cpu is not None:
        check_tensor(op, "cu_seqlens_cpu", cu_seqlens_cpu)
        check_dtype(op, "cu_seqlens_cpu", cu_seqlens_cpu, INTEGERS)
        check_shape(op, "cu_seqlens_cpu", cu_seqlens_cpu, cu_seqlens.shape)
        if cu_seqlens_cpu.device.type != "cpu":
            bad_value(op, "cu_seqlens_cpu", "on the host", f"a tensor on {cu_seqlens_cpu.device}")
    return cu_seqlens.shape[0] - 1, dtype


def slots_of(
    op: str, name: str, indices: Any, state: Any, like: torch.Tensor, sequences: int, many: bool
) -> str:
    """dtype of pool slots `[N]` or `[N, columns]`, whose row stride is free, or "none".

    many  whether more than one column, a slot for each token, is allowed
    """
    if indices is None:
        return "none"
    check_tensor(op, name, indices)
    if state is None:
        hint = "Without a pool every sequence would share slot 0."
        bad_value(op, name, "None without initial_state", shape_text(indices), hint)
    if indices.dim() == 1:
        return check_operand(op, name, indices, INTEGERS, (sequences,), like)
    dtype = check_operand(op, name, indices, INTEGERS, 2, like)
    rows, columns = indices.shape
    if rows != sequences or columns < 1 or (columns > 1 and not many):
        shapes = f"[{sequences}] or [{sequences}, {'1 + S' if many else 1}]"
        bad_value(op, name, f"of shape {shapes}", shape_text(indices))
    return dtype


def state_of(
    op: str, name: str, state: Any, number: int | None, like: torch.Tensor, shape: tuple[int, ...]
) -> str:
    """dtype of states `[number, HV, ...]` (None: a pool of any size), or "none"."""
    if state is None:
        return "none"
    if number is None:
        number = state.shape[0] if hasattr(state, "shape") and state.dim() else 0
    return check_operand(op, name, state, STATES, (number, *shape), like)


def accepted_of(op: str, accepted: Any, slots: torch.Tensor | None, q: torch.Tensor) -> str:
    """dtype of num_accepted_tokens `[N]`, or "none"."""
    if accepted is None:
        return "none"
    if slots is None:
        bad_value(op, "num_accepted_tokens", "None without ssm_state_indices", "a tensor")
    return check_operand(op, "num_accepted_tokens", accepted, INTEGERS, (slots.shape[0],), q)


# ---- values: ARCHKEY_VALIDATE=1


def validate_cu_seqlens(op: str, cu_seqlens: torch.Tensor, cpu: Any, tokens: int) -> None:
    """cu_seqlens rises from 0 to at most `tokens`, and its copy on the host is the same."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] > tokens or (cu_seqlens.diff() < 0).any():
        bad_value(op, "cu_seqlens", f"rising from 0 to at most {tokens}", bounds)
    if cpu is not None and cpu.tolist() != bounds:
        bad_value(op, "cu_seqlens_cpu", f"equal to cu_seqlens {bounds}", cpu.tolist())


def validate_slots(op: str, name: str, slots: torch.Tensor, pool: torch.Tensor) -> None:
    """Slots are in the pool, and no two of them are the same; negative ones are padding."""
    used = slots[slots >= 0]
    if (used >= pool.shape[0]).any():
        bad_value(op, name, f"slots of the pool, below {pool.shape[0]}", int(used.max()))
    if len(used.unique()) < len(used):
        bad_value(op, name, "without duplicates", used.tolist(), "Two sequences would race.")


def validate_accepted(op: str, accepted: torch.Tensor | None, slots: torch.Tensor | None) -> None:
    """No sequence has accepted more tokens than it has slots; FlashInfer would clamp the number."""
    if accepted is None or slots is None:
        return
    columns = 1 if slots.dim() == 1 else slots.shape[1]
    if (accepted > columns).any():
        expected = f"at most {columns}, the columns of ssm_state_indices"
        bad_value(op, "num_accepted_tokens", expected, accepted.tolist())


def validate_given_gate(op: str, g: torch.Tensor, lower_bound: float | None) -> None:
    """A finished gate is a log decay: not positive, and not below a bound that is promised."""
    if (g > 0).any():
        bad_value(op, "g", "<= 0, a log decay in nats", float(g.max()))
    if lower_bound is not None and (g < lower_bound).any():
        bad_value(op, "g", f">= lower_bound = {lower_bound} with safe_gate", float(g.min()))
