# SPDX-License-Identifier: Apache-2.0
"""The hooks of `cuda_sm90`: NVIDIA Hopper, H100, H200, GH200."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import archkey
from archkey import tables
from archkey.conditions import at_least, at_most, is_, one_of
from archkey.kernels.attention_tunings import AttentionTuning
from archkey.kernels.catalogue import (
    attention_kernels,
    chunk_kda_kernels,
    kda_decode_kernels,
    kda_gate_kernels,
    merge_attn_states_kernels,
    mla_decode_kernels,
    mla_prefill_kernels,
    mxfp4_linear_kernels,
    page_table_kernels,
    rmsnorm_kernels,
    sparse_kv_kernels,
    sparse_mla_kernels,
)
from archkey.kernels.kda_chunk_tunings import KdaChunkTuning
from archkey.kernels.kda_decode_tunings import KdaDecodeTuning
from archkey.kernels.kda_gate_tunings import KdaGateTuning
from archkey.kernels.linear_tunings import Mxfp4LinearTuning
from archkey.kernels.mla_decode_tunings import MlaDecodeTuning
from archkey.kernels.mla_prefill_tunings import MlaPrefillTuning
from archkey.kernels.spaces import KDA_CHUNK
from archkey.kernels.sparse_mla_tunings import SparseMlaTuning
from archkey.kernels.tunings import RmsNormTuning
from archkey.requirements import Requirement
from archkey_cuda_sm90.facts import FACTS

ARCHKEY_API = (1, 1)

_TUNING = tables.read(
    Path(__file__).with_name("tuning.json"),
    RmsNormTuning,
    Mxfp4LinearTuning,
    AttentionTuning,
    MlaDecodeTuning,
    MlaPrefillTuning,
    SparseMlaTuning,
    KdaChunkTuning,
    KdaDecodeTuning,
    KdaGateTuning,
)

_WARP_GROUPS = archkey.Kernel(
    operator="mla_decode",
    name="wgmma",
    build="archkey_cuda_sm90.kernels.mla_decode:build_mla_decode",
    accepts=(
        one_of("kv_dtype", ("bfloat16", "float16"), "rows go to the matrix units as they are"),
        is_("kv_descale", "none", "a row is not scaled"),
        is_("q_descale", "none", "a row is not scaled"),
        is_("head_dim_v", 512, "each of two warp groups sums half of the columns"),
        is_("aligned", True, "rows are copied 16 bytes at a time"),
        is_("ragged", False, "tiles of a sequence are counted from q_len"),
        is_("window", False, "a segment begins with the first key"),
        is_("batch_invariant", False, "ragged queries, which another kernel serves, sum otherwise"),
        at_least("rows", 32, "fewer leave most of a tile of 64 empty"),
    ),
    needs=(is_("wgmma", True, "two warp groups multiply from shared memory"),),
    requires=(Requirement("triton", ">=3.6,<3.7", why="Gluon's names move between releases"),),
    tuning=_TUNING["mla_decode_wgmma"],
    summary="Gluon body: two warp groups multiply, a third loads the latent cache",
)

_SPARSE_WARP_GROUPS = tuple(
    archkey.Kernel(
        operator=operator,
        name="wgmma",
        build="archkey_cuda_sm90.kernels.sparse_mla:build_sparse_mla",
        accepts=(
            one_of(
                "caches",
                ("bf16", "fp8_v32", "fp8_v32_nope"),
                "one cache, of rows as they are or of codes with four scales a row",
            ),
            is_("head_dim_v", 512, "each of two warp groups sums half of the columns"),
            is_("aligned", True, "rows are copied 16 bytes at a time"),
        ),
        needs=(is_("wgmma", True, "two warp groups multiply from shared memory"),),
        requires=_WARP_GROUPS.requires,
        tuning=_TUNING["sparse_mla_wgmma"],
        summary="Gluon body: two warp groups take turns at scores, others fetch and decode rows",
    )
    for operator in ("sparse_mla_prefill", "sparse_mla_decode")
)

_KDA_WARPS = archkey.Kernel(
    operator="chunk_kda",
    name="mma",
    build="archkey_cuda_sm90.kernels.kda_chunk:build_chunk_kda",
    accepts=(
        one_of("dtype", ("bfloat16", "float16"), "rows go to the matrix units as they are"),
        is_("head_dim", 128, "a warp holds 16 rows of k as the matrix units do"),
        is_("head_dim_v", 128, "one tile of values"),
        is_("chunk_size", 64, "four warps of 16 tokens"),
        is_("l2norm", True, "keys of unit length fit into float16"),
        is_("aligned", True, "rows are copied 16 bytes at a time"),
    ),
    needs=(is_("wgmma", True, "a warp group multiplies from shared memory"),),
    requires=_WARP_GROUPS.requires,
    tuning=_TUNING["chunk_kda_mma"],
    space=KDA_CHUNK,
    summary="Gluon body prepares chunks in registers; states are walked by the shared body",
)

_FLASH_MLA = (
    Requirement("flash_mla", ">=1.0", "optional; built from github.com/deepseek-ai/FlashMLA"),
    Requirement("vllm", ">=0.26,<0.27", "optional; its copy's interface was read in 0.26.0"),
)
_BY_TMA = is_("aligned", True, "rows are copied 16 bytes at a time")
_LATENT = at_most("head_dim_v", 512, "the width of its results")
_SPARSE = (
    is_("out_dtype", "bfloat16", "results are rounded to it"),
    at_most("heads", 128, "its kernels have 64 heads or 128"),
    is_("batch_invariant", False, "lists are split by how many there are"),
    _LATENT,
    _BY_TMA,
)
_SERVED = {
    "mla_decode": (
        one_of("dtype", ("bfloat16", "float16"), "what its dense decode is built for"),
        is_("one_dtype", True, "a cache and results of q's dtype"),
        is_("head_dim", 576, "its tiles are nine times 64 columns"),
        is_("page_size", 64, "a page is a tile"),
        is_("kv_descale", "none", "a row is not scaled"),
        is_("q_descale", "none", "a row is not scaled"),
        is_("ragged", False, "sequences have the same number of queries"),
        is_("window", False, "a sequence is read from its first key"),
        is_("batch_invariant", False, "keys are split by all lengths of the batch"),
        _LATENT,
        _BY_TMA,
    ),
    "sparse_mla_decode": (
        one_of(
            "caches",
            ("fp8_v32", "fp8_model1", "fp8_model1 + fp8_model1"),
            "packed caches alone, and a second one in MODEL1's format alone",
        ),
        *_SPARSE,
    ),
    "sparse_mla_prefill": (is_("kv_format", "bf16", "a pool of bfloat16 alone"), *_SPARSE),
}
"""What FlashMLA serves of an operator. Ours come first; the user chooses it by an override."""


def _flash_mla_kernels(operator: str) -> Iterable[archkey.Kernel]:
    """FlashMLA's kernel of `operator`, from either distribution."""
    for rule, name in zip(_FLASH_MLA, ("flash_mla", "vllm_flash_mla"), strict=True):
        yield archkey.Kernel(
            operator=operator,
            name=name,
            build=f"archkey_cuda_sm90.kernels.flash_mla:build_{operator}",
            accepts=_SERVED[operator],
            requires=(rule,),
            summary=f"FlashMLA's own kernel, where {rule.package} is installed",
        )


@archkey.hookimpl
def archkey_capabilities(target: archkey.Target) -> Iterable[archkey.Capability]:
    """The table of facts; what differs from card to card is left to the probe."""
    return FACTS


@archkey.hookimpl
def archkey_kernels(target: archkey.Target) -> Iterable[archkey.Kernel]:
    """The shared bodies with this architecture's numbers; FlashMLA's, if it is there, behind."""
    yield from rmsnorm_kernels(_TUNING["rmsnorm"], _TUNING["qk_rmsnorm"], _TUNING["rmsnorm_quant"])
    yield from mxfp4_linear_kernels(_TUNING["mxfp4_linear"])
    yield from attention_kernels(_TUNING["attention"])
    yield _WARP_GROUPS
    yield from mla_decode_kernels(_TUNING["mla_decode"])
    yield from mla_prefill_kernels(_TUNING["mla_prefill"])
    yield from _SPARSE_WARP_GROUPS
    yield from sparse_mla_kernels(_TUNING["sparse_mla_prefill"], _TUNING["sparse_mla_decode"])
    yield _KDA_WARPS
    yield from chunk_kda_kernels(_TUNING["chunk_kda"])
    yield from kda_decode_kernels(_TUNING["kda_decode"])
    yield from kda_gate_kernels(_TUNING["kda_gate"])
    yield from merge_attn_states_kernels()
    yield from page_table_kernels()
    yield from sparse_kv_kernels()
    for operator in _SERVED:
        yield from _flash_mla_kernels(operator)
