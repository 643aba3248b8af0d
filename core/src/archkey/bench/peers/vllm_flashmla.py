# SPDX-License-Identifier: Apache-2.0
"""FlashMLA as vLLM builds it, with a decode of FP8 queries that DeepSeek's package lacks.

Read against vLLM 0.26.0. Only the interface and the two extensions are imported, not the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import vllm._flashmla_extension_C  # noqa: F401 - registers what OPS names
from vllm.third_party.flashmla.flash_mla_interface import (
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
)

from archkey.bench.entrant import Bound
from archkey.bench.peers import _flashmla
from archkey.bench.peers._arguments import scalar, softmax_scale
from archkey.bench.peers._refusals import require
from archkey.bench.peers._results import Last

__all__ = ["mla_decode", "mla_decode_fp8", "sparse_mla_decode", "sparse_mla_prefill"]

LIBRARY = _flashmla.Library(flash_mla_with_kvcache, flash_mla_sparse_fwd, get_mla_metadata)
OPS = torch.ops._flashmla_extension_C


def mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Dense decode."""
    return _flashmla.decode(LIBRARY, inputs)


def sparse_mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Sparse decode over packed FP8 caches."""
    return _flashmla.sparse_decode(LIBRARY, inputs)


def sparse_mla_prefill(inputs: Mapping[str, Any]) -> Bound:
    """Sparse prefill."""
    return _flashmla.sparse_prefill(LIBRARY, inputs)


def mla_decode_fp8(inputs: Mapping[str, Any]) -> Bound:
    """Dense decode of FP8 queries over an FP8 cache."""
    q, cache = _flashmla.decode_inputs(inputs, "q_descale", "kv_descale")
    for tensor in (q, cache):
        require(tensor.dtype == torch.float8_e4m3fn, "float8_e4m3fn only")
    require(q.shape[3] == 576, "d = 576 only")
    lengths, causal = inputs["cache_seqlens"].contiguous(), inputs.get("causal", True)
    descales = [scalar(inputs.get(n), n, q.device) for n in ("q_descale", "kv_descale")]
    schedule = OPS.get_mla_decoding_metadata_dense_fp8(lengths, q.shape[1] * q.shape[2], 1)

    def run() -> Any:
        return OPS.fwd_kvcache_mla_fp8(
            q,
            cache,
            512,
            lengths,
            inputs["block_table"],
            softmax_scale(inputs),
            causal,
            *schedule,
            *descales,
        )

    call = Last(run)
    outputs = _flashmla.decode_outputs
    return Bound(call, lambda: outputs(call.result), "schedule made once, outside")
