# SPDX-License-Identifier: Apache-2.0
"""Peers: PyTorch, Liger, QuACK, FlashInfer, FlashAttention-3 and vLLM."""

from __future__ import annotations

from archkey.bench.peers.peer import Peer, Route

__all__ = ["PEERS_A"]


def _compiled(*operators: str) -> tuple[Route, ...]:
    return tuple(Route(name, f"{name}_compiled", "compile") for name in operators)


def _labelled(operator: str, *labels: str) -> tuple[Route, ...]:
    return tuple(Route(operator, f"{operator}_{label}", label) for label in labels)


def _plain(*operators: str, label: str = "") -> tuple[Route, ...]:
    return tuple(Route(name, name, label) for name in operators)


_NORMS = ("rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm_quant")

PEERS_A: tuple[Peer, ...] = (
    Peer(
        name="torch",
        title="PyTorch",
        module="archkey.bench.peers.pytorch",
        packages=("torch",),
        distributions=("torch",),
        install="pip install torch",
        home="https://github.com/pytorch/pytorch",
        routes=(
            *_plain(*_NORMS, "merge_attn_states", "kda_gate", label="eager"),
            *_compiled(*_NORMS),
            *_labelled("mla_decode", "bmm"),
            *_labelled("mla_prefill", "sdpa", "cudnn"),
            *_labelled("unified_attention", "sdpa", "cudnn"),
        ),
    ),
    Peer(
        name="liger",
        title="Liger Kernel",
        module="archkey.bench.peers.liger",
        packages=("liger_kernel",),
        distributions=("liger_kernel",),
        install="pip install liger-kernel",
        home="https://github.com/linkedin/Liger-Kernel",
        routes=_plain("rmsnorm", "fused_add_rmsnorm"),
    ),
    Peer(
        name="quack",
        title="QuACK",
        module="archkey.bench.peers.quack",
        packages=("quack", "cutlass"),
        distributions=("quack-kernels", "nvidia-cutlass-dsl"),
        install="pip install 'quack-kernels[cu13]'",
        home="https://github.com/Dao-AILab/quack",
        routes=_plain("rmsnorm", "fused_add_rmsnorm"),
    ),
    Peer(
        name="flashinfer",
        title="FlashInfer",
        module="archkey.bench.peers.flashinfer",
        packages=("flashinfer",),
        distributions=("flashinfer-python",),
        install="pip install flashinfer-python",
        home="https://github.com/flashinfer-ai/flashinfer",
        routes=(
            *_plain(*_NORMS, "merge_attn_states"),
            *_labelled("mla_decode", "fa3", "fa2"),
            *_labelled("mla_prefill", "fa3"),
            *_labelled("unified_attention", "fa2", "fa3", "decode"),
        ),
    ),
    Peer(
        name="fa3",
        title="FlashAttention-3",
        module="archkey.bench.peers.fa3",
        packages=("flash_attn_interface|vllm",),
        distributions=("flash_attn_3", "vllm"),
        install="pip install vllm, which has a copy, or its hopper folder by source",
        home="https://github.com/Dao-AILab/flash-attention",
        routes=_plain("mla_decode", "mla_prefill", "unified_attention"),
    ),
    Peer(
        name="vllm",
        title="vLLM",
        module="archkey.bench.peers.vllm",
        packages=("vllm",),
        distributions=("vllm",),
        install="pip install vllm",
        home="https://github.com/vllm-project/vllm",
        routes=_plain(*_NORMS, "merge_attn_states", "mla_decode", "unified_attention"),
    ),
)
"""The first half of the peers."""
