# SPDX-License-Identifier: Apache-2.0
"""Every peer we know: facts only, nothing is imported."""

from __future__ import annotations

from archkey.bench.peers.peer import Peer, Route

__all__ = ["PEERS"]


def _plain(*operators: str, label: str = "") -> tuple[Route, ...]:
    """Routes whose adapters have their operators' names."""
    return tuple(Route(name, name, label) for name in operators)


def _labelled(operator: str, *labels: str) -> tuple[Route, ...]:
    """Routes of one operator, told apart by the end of their adapters' names; "" has none."""
    return tuple(Route(operator, "_".join(filter(None, (operator, x))), x) for x in labels)


_NORMS = ("rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm_quant")

PEERS: tuple[Peer, ...] = (
    Peer(
        name="torch",
        title="PyTorch",
        module="archkey.bench.peers.pytorch",
        packages=("torch",),
        distributions=("torch",),
        install="pip install torch",
        home="https://github.com/pytorch/pytorch",
        routes=(
            *_plain(*_NORMS, "merge_attn_states", "kda_gate", "mxfp4_linear", label="eager"),
            *(Route(name, f"{name}_compiled", "compile") for name in _NORMS),
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
    Peer(
        name="fla",
        title="flash-linear-attention",
        module="archkey.bench.peers.fla",
        packages=("fla",),
        distributions=("fla-core", "flash-linear-attention"),
        install="pip install fla-core",
        home="https://github.com/fla-org/flash-linear-attention",
        routes=_plain("chunk_kda", "fused_recurrent_kda", "kda_gate", "kda_gate_chunk_cumsum"),
    ),
    Peer(
        name="flash-kda",
        title="FlashKDA",
        module="archkey.bench.peers.flash_kda",
        packages=("flash_kda", "flash_kda_C"),
        distributions=("flash_kda",),
        install="pip install --no-build-isolation git+https://github.com/MoonshotAI/FlashKDA",
        home="https://github.com/MoonshotAI/FlashKDA",
        routes=_plain("chunk_kda"),
    ),
    Peer(
        name="flashmla",
        title="FlashMLA",
        module="archkey.bench.peers.flash_mla",
        packages=("flash_mla",),
        distributions=("flash_mla",),
        install="pip install --no-build-isolation git+https://github.com/deepseek-ai/FlashMLA",
        home="https://github.com/deepseek-ai/FlashMLA",
        routes=_plain("mla_decode", "sparse_mla_decode", "sparse_mla_prefill"),
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
            *_plain("mla_decode", "sparse_mla_decode", "sparse_mla_prefill"),
            *_labelled("mla_decode", "fp8"),
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
        routes=_plain("chunk_kda"),
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
            *_plain("chunk_kda", "merge_attn_states", "mla_decode", "unified_attention"),
            *_labelled("kda_packed_decode", "", "cuda"),
            *_labelled("sparse_mla_decode", "", "autotuned"),
            *_labelled("sparse_mla_prefill", "", "autotuned"),
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
        routes=_plain("mla_decode", "unified_attention", *_NORMS),
    ),
)
"""Installed or not, in the order in which they are shown."""
