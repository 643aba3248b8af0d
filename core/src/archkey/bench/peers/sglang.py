# SPDX-License-Identifier: Apache-2.0
"""SGLang's kernels, taken from the server's package without starting a server."""

from __future__ import annotations

from archkey.bench.peers.sglang_attention import merge_attn_states, mla_decode, unified_attention
from archkey.bench.peers.sglang_kda import chunk_kda, kda_packed_decode, kda_packed_decode_cuda
from archkey.bench.peers.sglang_sparse import (
    sparse_mla_decode,
    sparse_mla_decode_autotuned,
    sparse_mla_prefill,
    sparse_mla_prefill_autotuned,
)

__all__ = [
    "chunk_kda",
    "kda_packed_decode",
    "kda_packed_decode_cuda",
    "merge_attn_states",
    "mla_decode",
    "sparse_mla_decode",
    "sparse_mla_decode_autotuned",
    "sparse_mla_prefill",
    "sparse_mla_prefill_autotuned",
    "unified_attention",
]
