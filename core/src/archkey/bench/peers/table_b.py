# SPDX-License-Identifier: Apache-2.0
"""Peers from the projects of KDA and FlashMLA, from the servers, and from AMD."""

from __future__ import annotations

from archkey.bench.peers.peer import Peer, Route

__all__ = ["PEERS_B"]


def _same(*operators: str) -> tuple[Route, ...]:
    """Routes whose adapters have their operators' names."""
    return tuple(Route(operator, operator) for operator in operators)


PEERS_B: tuple[Peer, ...] = (
    Peer(
        name="fla",
        title="flash-linear-attention",
        module="archkey.bench.peers.fla",
        packages=("fla",),
        distributions=("fla-core", "flash-linear-attention"),
        install="pip install fla-core",
        home="https://github.com/fla-org/flash-linear-attention",
        routes=_same("chunk_kda", "fused_recurrent_kda", "kda_gate", "kda_gate_chunk_cumsum"),
    ),
    Peer(
        name="flash-kda",
        title="FlashKDA",
        module="archkey.bench.peers.flash_kda",
        packages=("flash_kda", "flash_kda_C"),
        distributions=("flash_kda",),
        install="pip install --no-build-isolation git+https://github.com/MoonshotAI/FlashKDA",
        home="https://github.com/MoonshotAI/FlashKDA",
        routes=_same("chunk_kda"),
    ),
    Peer(
        name="flashmla",
        title="FlashMLA",
        module="archkey.bench.peers.flash_mla",
        packages=("flash_mla",),
        distributions=("flash_mla",),
        install="pip install --no-build-isolation git+https://github.com/deepseek-ai/FlashMLA",
        home="https://github.com/deepseek-ai/FlashMLA",
        routes=_same("mla_decode", "sparse_mla_decode", "sparse_mla_prefill"),
    ),
    Peer(
        name="vllm-flashmla",
        title="FlashMLA in vLLM",
        module="archkey.bench.peers.vllm_flashmla",
        packages=("vllm",),
        distributions=("vllm",),
        install="pip install vllm",
        home="https://github.com/vllm-project/FlashMLA",
        routes=(
            *_same("mla_decode", "sparse_mla_decode", "sparse_mla_prefill"),
            Route("mla_decode", "mla_decode_fp8", "fp8"),
        ),
    ),
    Peer(
        name="vllm-kda",
        title="KDA in vLLM",
        module="archkey.bench.peers.vllm_kda",
        packages=("vllm",),
        distributions=("vllm",),
        install="pip install vllm",
        home="https://github.com/vllm-project/vllm",
        routes=_same("chunk_kda"),
    ),
    Peer(
        name="sglang",
        title="SGLang",
        module="archkey.bench.peers.sglang",
        packages=("sglang",),
        distributions=("sglang",),
        install="pip install sglang",
        home="https://github.com/sgl-project/sglang",
        routes=(
            *_same("chunk_kda", "merge_attn_states", "mla_decode", "unified_attention"),
            Route("kda_packed_decode", "kda_packed_decode"),
            Route("kda_packed_decode", "kda_packed_decode_cuda", "cuda"),
            Route("sparse_mla_decode", "sparse_mla_decode"),
            Route("sparse_mla_decode", "sparse_mla_decode_autotuned", "autotuned"),
            Route("sparse_mla_prefill", "sparse_mla_prefill"),
            Route("sparse_mla_prefill", "sparse_mla_prefill_autotuned", "autotuned"),
        ),
    ),
    Peer(
        name="aiter",
        title="aiter",
        module="archkey.bench.peers.aiter",
        packages=("aiter",),
        distributions=("amd-aiter",),
        install="pip install --no-build-isolation git+https://github.com/ROCm/aiter",
        home="https://github.com/ROCm/aiter",
        routes=_same(
            "mla_decode",
            "unified_attention",
            "rmsnorm",
            "fused_add_rmsnorm",
            "fused_qk_rmsnorm",
            "rmsnorm_quant",
        ),
    ),
)
"""In the order in which they are shown."""
