# SPDX-License-Identifier: Apache-2.0
"""What the tests of MLA and sparse MLA share: valid calls, and a session that records them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from archkey.formats.sparse_kv import empty_cache, packed, store
from archkey.kernel import resolve
from archkey.ops import mla, sparse_mla

SCALE = 192**-0.5
OPERATORS = {operator.name: operator for operator in mla.OPERATORS + sparse_mla.OPERATORS}


class Recorder:
    """A session that serves the references; keeps the last problem and counts the launches."""

    def __init__(self, fp8: str = "any", pdl: bool = False, validate: bool = False) -> None:
        self.fp8, self.pdl, self.validate = fp8, pdl, validate
        self.problems: dict[Any, Any] = {}
        self.problem: Any = None
        self.launches = 0

    def launcher(self, problem: Any) -> Any:
        """The reference as a kernel in destination-passing style."""
        self.problem = problem
        operator = OPERATORS[problem.operator]
        names = operator.inputs

        def run(*arguments: Any) -> None:
            self.launches += 1
            results = resolve(operator.reference)(**dict(zip(names, arguments, strict=False)))
            for result, out in zip(results, arguments[len(names) :], strict=True):
                if out is not None:
                    out.copy_(result)

        return run


def brute_row(
    q: np.ndarray,
    keys: Sequence[np.ndarray] | np.ndarray,
    values: Sequence[np.ndarray] | np.ndarray,
    sink: float = -math.inf,
) -> tuple[np.ndarray, float, float]:
    """out, max_logit and lse of one query and head over its keys, one by one, in float64.

    `values` are as wide as the output even where there are none.
    """
    if len(keys) == 0:
        return np.zeros(np.shape(values)[-1]), -math.inf, -math.inf
    scores = np.array([SCALE * float(np.dot(q, key)) for key in keys])
    weights = np.exp(scores - scores.max())
    share = math.inf if sink == math.inf else math.exp(sink - scores.max())
    out = sum(w * value for w, value in zip(weights, values, strict=True))
    lse = float(scores.max() + np.log(weights.sum()))
    return out / (weights.sum() + share), float(scores.max()), lse


def call(function: Any, inputs: dict[str, Any], session: Any = None) -> Any:
    """The public `function` on `session`, or on a new Recorder."""
    return function.__wrapped__(session or Recorder(), **inputs)


def check_refused(
    function: Any,
    valid: dict[str, Any],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """`valid | changes` is refused, and refused again after calls that were accepted."""
    session = Recorder()
    for accepted in (0, 1, 2):
        with pytest.raises(error, match=message):
            call(function, valid | changes, session)
        assert session.launches == accepted
        call(function, valid, session)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal numbers of standard deviation 0.5."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 2).to(dtype)


def ints(*values: Any) -> torch.Tensor:
    """int32 numbers, or rows of them."""
    return torch.tensor(values, dtype=torch.int32)


def decode_inputs(**changes: Any) -> dict[str, Any]:
    """Two sequences of 70 and 5 tokens in pages of 64, the rest of the cache NaN."""
    cache = torch.full((4, 64, 576), torch.nan, dtype=torch.bfloat16)
    cache[2], cache[1, :6], cache[3, :5] = randn(64, 576), randn(6, 576), randn(5, 576)
    arguments = {
        "q": randn(2, 1, 16, 576, seed=1),
        "kv_cache": cache,
        "block_table": torch.tensor([[2, 1, 2147480000], [3, -7, 99]], dtype=torch.int32),
        "cache_seqlens": ints(70, 5),
        "softmax_scale": SCALE,
    }
    return arguments | changes


def prefill_inputs(**changes: Any) -> dict[str, Any]:
    arguments = {
        "q": randn(5, 4, 192, seed=1),
        "k": randn(9, 4, 192, seed=2),
        "v": randn(9, 4, 128, seed=3),
        "cu_seqlens_q": ints(0, 2, 2, 5),
        "cu_seqlens_k": ints(0, 4, 6, 9),
        "max_seqlen_q": 3,
        "max_seqlen_k": 4,
        "softmax_scale": SCALE,
    }
    return arguments | changes


def merge_inputs(**changes: Any) -> dict[str, Any]:
    arguments = {
        "out_a": randn(3, 4, 128),
        "lse_a": randn(3, 4, seed=1, dtype=torch.float32),
        "out_b": randn(3, 4, 128, seed=2),
        "lse_b": randn(3, 4, seed=3, dtype=torch.float32),
    }
    return arguments | changes


def packed_pool(name: str, blocks: int, page: int, seed: int = 0) -> torch.Tensor:
    """A filled packed cache."""
    layout = packed(name)
    cache = empty_cache(layout, blocks, page)
    rope = randn(blocks * page, layout.rope_dim, seed=seed + 1) if layout.rope_dim else None
    nope = randn(blocks * page, layout.nope_dim, seed=seed)
    slots = torch.arange(blocks * page)
    store(cache, slots, nope, rope, layout, "pow2" if layout.planar else "fp32")
    return cache


def sparse_prefill_inputs(**changes: Any) -> dict[str, Any]:
    """Three rows over eight keys; key 0 is NaN and nobody's."""
    kv = randn(8, 576, seed=1)
    kv[0] = torch.nan
    arguments = {
        "q": randn(3, 16, 576),
        "kv": kv,
        "indices": ints([1, 2, -1, 8], [7, 7, 3, 4], [-1, -2, 9, 8]),
        "softmax_scale": SCALE,
    }
    return arguments | changes


def sparse_decode_inputs(**changes: Any) -> dict[str, Any]:
    """Two sequences of one token over a packed cache of three pages of four."""
    arguments = {
        "q": randn(2, 1, 16, 576),
        "kv_cache": packed_pool("fp8_v32", 3, 4),
        "indices": ints([[1, 2, -1, 12]], [[11, 7, 3, 3]]),
        "softmax_scale": SCALE,
        "kv_format": "fp8_v32",
    }
    return arguments | changes
