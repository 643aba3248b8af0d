# SPDX-License-Identifier: Apache-2.0
"""Workloads of RMSNorm: norms of hidden states, of heads, and of MLA's two latents.

Bytes as in every norm: rows in, rows out, weights once. No operation of a norm is a product of
matrices, so none is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from archkey.bench.workload import Cost, Workload
from archkey.bench.workloads._counts import KILO, short, size
from archkey.conformance.cases.rmsnorm.inputs import AddNorm, Norm, QkNorm

__all__ = ["COSTS", "TOKENS", "WORKLOADS"]

TOKENS = (1, 64, KILO, 16 * KILO)
"""Of a step: one sequence that decodes, a small batch, a large batch, a prefill."""

# Model, width of its hidden states, what is added to the weight.
_HIDDEN = (
    ("DeepSeek-V3", 7168, 0.0),
    ("GLM-5", 6144, 0.0),
    ("Qwen3.5-397B", 4096, 1.0),
    ("Kimi-Linear", 2304, 0.0),
    ("Llama-3.1-405B", 16384, 0.0),
)

# Model, q_lora and kv_lora; 64 rope columns stand behind them in the row.
_LATENTS = (("DeepSeek-V3", 1536, 512), ("GLM-5", 2048, 512), ("Kimi-Linear", 0, 512))


def _hidden() -> Iterator[Workload]:
    for operator, call in (("rmsnorm", Norm), ("fused_add_rmsnorm", AddNorm)):
        for model, width, bias in _HIDDEN:
            about = f"hidden {width}{', 1 + w' if bias else ''}"
            # The widths between are told by their ends, at the two sizes that differ most.
            for tokens in TOKENS if model == "DeepSeek-V3" else TOKENS[1::2]:
                quick = model == "DeepSeek-V3" and tokens in TOKENS[1::2]
                inputs = call(tokens, width, bias=bias)
                yield Workload(operator, model, 1, f"t{short(tokens)}", inputs, about, quick)


def _heads() -> Iterator[Workload]:
    for tp in (1, 4):
        for tokens in (64, 4 * KILO):
            heads = 32 // tp
            inputs = Norm(tokens, 256, heads, bias=1.0)
            about = f"{heads} q heads of 256, 1 + w"
            yield Workload("rmsnorm", "Qwen3.5-397B", tp, f"t{short(tokens)}", inputs, about)


def _latent_alone() -> Iterator[Workload]:
    """The norm of kv_a by itself, as an engine calls it that does not fuse the two."""
    for tokens in TOKENS[1::2]:
        inputs = Norm(tokens, 512, lay="slice")
        yield Workload("rmsnorm", "DeepSeek-V3", 1, f"t{short(tokens)}", inputs, "kv 512 alone")


def _latents() -> Iterator[Workload]:
    for model, q, kv in _LATENTS:
        halves = f"q {q} and kv {kv}" if q else f"kv {kv}"
        about = f"{halves} of a {q + kv + 64}-wide row"
        for tokens in TOKENS if model == "DeepSeek-V3" else TOKENS[1::2]:
            quick = model == "DeepSeek-V3" and tokens >= KILO
            inputs = QkNorm(tokens, (0, q), (0, kv), row=True)
            yield Workload("fused_qk_rmsnorm", model, 1, f"t{short(tokens)}", inputs, about, quick)


WORKLOADS = (*_hidden(), *_heads(), *_latent_alone(), *_latents())


def _norm(call: Mapping[str, Any]) -> Cost:
    """x and weight in, out of x's dtype out."""
    x = call["x"]
    return Cost(0, size(x, call["weight"], x))


def _add_norm(call: Mapping[str, Any]) -> Cost:
    """x, residual and weight in; out of x's dtype and the sum of the residual's out."""
    x, residual = call["x"], call["residual"]
    return Cost(0, size(x, residual, call["weight"], x, residual))


def _qk_norm(call: Mapping[str, Any]) -> Cost:
    """q, k and their weights in, both out; of the row that they are slices of nothing else."""
    q, k = call["q"], call["k"]
    return Cost(0, size(q, k, call["q_weight"], call["k_weight"], q, k))


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = {
    "rmsnorm": _norm,
    "fused_add_rmsnorm": _add_norm,
    "fused_qk_rmsnorm": _qk_norm,
}
