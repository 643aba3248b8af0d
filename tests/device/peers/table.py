# SPDX-License-Identifier: Apache-2.0
"""What of each peer is carried to a GPU machine without network: versions, files, substitutes.

The versions fit the machine's torch 2.11 (CUDA 13.0), Triton 3.6 and Python 3.12. vLLM 0.26.0 is
the newest whose metadata says torch==2.11.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["CARGO", "FLASH_KDA_COMMIT", "PLATFORMS", "PYTHON", "Cargo", "with_needs"]

PYTHON = "3.12"
PLATFORMS = tuple(
    f"{kind}_x86_64"
    for kind in (*(f"manylinux_2_{minor}" for minor in range(35, 16, -1)), "manylinux2014")
)
"""pip takes a platform literally: manylinux_2_34 does not include 2_28."""

FLASH_KDA_COMMIT = "1ce47ea"
_HTTP = (  # imported by FlashInfer, and not certain to be there
    ("requests", "2.34.2"),
    ("urllib3", "2.8.0"),
    ("idna", "3.20"),
    ("certifi", "2026.10.18"),
    ("charset-normalizer", "3.5.2"),
)

_NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


@dataclass(frozen=True)
class Cargo:
    """A distribution, or part of one.

    name          as given to --only
    distribution  and its exact version, as in the index; flash-kda is built from source
    take          patterns of members: `*` also matches slashes, `!` leaves out, the last decides
    excerpts      modules of which only these top-level names are carried
    architecture  whose device code is kept in shared objects; None keeps all
    substitute    whether peers/stubs/NAME holds modules in place of the server's own
    built         whether what lies under BUILT/NAME, laid out as in the archive, is added
    from_source   there is no wheel: all of it is built
    part          carried only when named: an archive of its own, beside the whole's
    needs         what else must travel along
    """

    name: str
    distribution: str
    version: str
    take: tuple[str, ...] = ("*",)
    excerpts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _NOTHING)
    architecture: int | None = None
    substitute: bool = False
    built: bool = False
    from_source: bool = False
    part: bool = False
    needs: tuple[str, ...] = ()


_LINEAR = "vllm/third_party/flash_linear_attention"
_OPS = "vllm/v1/attention/ops"
_SGLANG_OPS = "sglang/kernels/ops"

_VLLM = Cargo(
    "vllm",
    "vllm",
    "0.26.0",
    take=(
        "vllm/_custom_ops.py",
        "vllm/envs.py",
        "vllm/scalar_type.py",
        "vllm/_flashmla_C.abi3.so",
        "vllm/_flashmla_extension_C.abi3.so",
        "vllm/_C_stable_libtorch.abi3.so",
        "vllm/vllm_flash_attn/__init__.py",
        "vllm/vllm_flash_attn/flash_attn_interface.py",
        "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
        "vllm/third_party/__init__.py",
        "vllm/third_party/flashmla/*",
        f"{_LINEAR}/*",
        "vllm/utils/math_utils.py",
        "vllm/v1/__init__.py",
        "vllm/v1/attention/__init__.py",
        f"{_OPS}/__init__.py",
        f"{_OPS}/flashmla.py",
        f"{_OPS}/int4_per_token_head.py",
        f"{_OPS}/merge_attn_states.py",
        f"{_OPS}/prefix_prefill.py",
        f"{_OPS}/triton_attention_helpers.py",
        f"{_OPS}/triton_decode_attention.py",
        f"{_OPS}/triton_merge_attn_states.py",
        f"{_OPS}/triton_prefill_attention.py",
        f"{_OPS}/triton_unified_attention.py",
    ),
    excerpts={
        "vllm/utils/platform_utils.py": ("num_compute_units",),
        "vllm/v1/kv_cache_interface.py": ("KVQuantMode", "get_kv_quant_mode"),
    },
    architecture=90,
    substitute=True,
)

_SGLANG = Cargo(
    "sglang",
    "sglang",
    "0.5.23",
    take=(
        "sglang/srt/environ.py",
        "sglang/kernels/kernel_api_logging.py",
        "sglang/kernels/jit/__init__.py",
        "sglang/kernels/jit/utils/*.py",
        "sglang/kernels/jit/include/*",
        "sglang/kernels/jit/csrc/attention/kda_fused_decode.cuh",
        "sglang/kernels/jit/csrc/attention/kda_packed_decode.cuh",
        "sglang/kernels/jit/csrc/elementwise/*norm*",
        f"{_SGLANG_OPS}/attention/decode_attention.py",
        f"{_SGLANG_OPS}/attention/extend_attention.py",
        f"{_SGLANG_OPS}/attention/fla/*",
        f"!{_SGLANG_OPS}/attention/fla/layernorm_gated.py",
        f"{_SGLANG_OPS}/attention/kda_fused_decode.py",
        f"{_SGLANG_OPS}/attention/kda_packed_decode.py",
        f"{_SGLANG_OPS}/attention/linear/__init__.py",
        f"{_SGLANG_OPS}/attention/linear/fused_sigmoid_gating_recurrent.py",
        f"{_SGLANG_OPS}/attention/merge_state.py",
        f"{_SGLANG_OPS}/attention/metadata.py",
        f"{_SGLANG_OPS}/attention/prefill_attention.py",
        f"{_SGLANG_OPS}/attention/score_mod.py",
        f"{_SGLANG_OPS}/attention/dsa/dequant_k_cache.py",
        f"{_SGLANG_OPS}/attention/dsa/transform_index.py",
        f"{_SGLANG_OPS}/attention/dsa/triton_sparse_mla*.py",
        f"{_SGLANG_OPS}/layernorm/norm.py",
        f"{_SGLANG_OPS}/quantization/dsa_quant_k_cache.py",
    ),
    excerpts={
        f"{_SGLANG_OPS}/quantization/fp8_kernel.py": ("_is_hip", "is_fp8_fnuz"),
        "sglang/srt/utils/common.py": (
            *(
                "logger",
                "torch_release",
                "is_hip",
                "is_cuda",
                "is_xpu",
                "is_npu",
                "is_cpu",
                "is_musa",
            ),
            *("is_host_cpu_x86", "is_host_cpu_arm64", "cpu_has_amx_support"),
            *("get_cuda_version", "get_hip_version", "get_device_core_count", "get_device_sm"),
            *("_get_device_sm_via_nvml", "_check_cuda_device_version", "is_sm90_supported"),
            *("is_gfx95_supported", "is_gfx1250_supported", "cdiv", "next_power_of_2"),
        ),
    },
    substitute=True,
    needs=("apache-tvm-ffi", "msgspec", "nvidia-ml-py"),
)

_FLASHINFER = Cargo(
    "flashinfer",
    "flashinfer-python",
    "0.7.2.post1",
    take=(
        "flashinfer/*.py",
        "flashinfer/*.json",
        # Not imported on this machine, and half of it all.
        "!flashinfer/experimental/*",
        "flashinfer/experimental/__init__.py",
        "flashinfer/experimental/cake_nvfp4_per_token/*.py",
        "!flashinfer/fused_moe/backends/*/artifacts/*",
        "!flashinfer/fused_moe/cute_dsl/*",
        "!flashinfer/moe_ep/*",
        "!flashinfer/prims_ts/batched_gemm/*",
        "!flashinfer/prims_ts/moe/*",
        # Read when a module is asked for, also when it was compiled beforehand.
        "!flashinfer/data/*",
        "flashinfer/data/csrc/batch_*",
        "!flashinfer/data/csrc/batch_decode*",
        "!flashinfer/data/csrc/batch_pod*",
        "flashinfer/data/csrc/cascade.cu",
        "flashinfer/data/csrc/norm.cu",
        "flashinfer/data/csrc/flashinfer_cascade_binding.cu",
        "flashinfer/data/csrc/flashinfer_norm_binding.cu",
    ),
    built=True,
    needs=("apache-tvm-ffi", "nvidia-ml-py", *(name for name, _ in _HTTP)),
)

_FLASHINFER_SOURCES = Cargo(
    "flashinfer-sources",
    "flashinfer-python",
    _FLASHINFER.version,
    take=(
        "flashinfer/data/include/flashinfer/*.cuh",
        "flashinfer/data/include/flashinfer/*.h",
        "!flashinfer/data/include/flashinfer/comm/*",
        "!flashinfer/data/include/flashinfer/gemm/*",
        "!flashinfer/data/include/flashinfer/mamba/*",
        "flashinfer/data/csrc/*.h",
        "flashinfer/data/cutlass/include/cute/*",
        "flashinfer/data/cutlass/include/cutlass/*",
        "flashinfer/data/cutlass/tools/util/include/*",
        "flashinfer/data/cccl/cub/cub/*",
        "flashinfer/data/cccl/libcudacxx/include/*",
        "flashinfer/data/cccl/thrust/thrust/*",
        "flashinfer/data/spdlog/include/*",
    ),
    part=True,
    needs=("flashinfer",),
)
"""Headers with which FlashInfer compiles on the GPU machine what was not compiled beforehand."""

CARGO: tuple[Cargo, ...] = (
    Cargo("fla", "flash-linear-attention", "0.6.0", needs=("fla-core",)),
    Cargo("fla-core", "fla-core", "0.6.0"),
    Cargo("liger", "liger-kernel", "0.8.5"),
    _VLLM,
    _SGLANG,
    _FLASHINFER,
    _FLASHINFER_SOURCES,
    Cargo("flash-kda", "flash-kda", f"0.0.1+{FLASH_KDA_COMMIT}", built=True, from_source=True),
    Cargo("apache-tvm-ffi", "apache-tvm-ffi", "0.1.12"),
    Cargo("msgspec", "msgspec", "0.22.0"),
    Cargo("nvidia-ml-py", "nvidia-ml-py", "13.615.71"),
    *(Cargo(name, name, version) for name, version in _HTTP),
)


def with_needs(names: tuple[str, ...]) -> list[Cargo]:
    """The named cargo with what it needs, in the table's order; all but parts for no name.

    Raises ValueError for an unknown name.
    """
    known = {cargo.name: cargo for cargo in CARGO}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown: {', '.join(unknown)}. Known: {', '.join(known)}")
    wanted: set[str] = set()
    found = names or tuple(cargo.name for cargo in CARGO if not cargo.part)
    while found:
        wanted.update(found)
        found = tuple(need for name in found for need in known[name].needs)
    return [cargo for cargo in CARGO if cargo.name in wanted]
