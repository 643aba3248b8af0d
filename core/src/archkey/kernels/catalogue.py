# SPDX-License-Identifier: Apache-2.0
"""The shared bodies as `Kernel` entries: what every plugin that uses them lists alike.

A plugin passes its own numbers and gets the entries of a family:

    @archkey.hookimpl
    def archkey_kernels(target):
        yield from rmsnorm_kernels(RMSNORM, QK_RMSNORM, RMSNORM_QUANT)

Metadata only; the builders that are named here import triton when a kernel is first built.
"""

from __future__ import annotations

from archkey.conditions import Condition, at_most, is_
from archkey.kernel import Kernel
from archkey.kernels import spaces
from archkey.requirements import Requirement
from archkey.tuning import Table

__all__ = [
    "TRITON",
    "attention_kernels",
    "chunk_kda_kernels",
    "kda_decode_kernels",
    "kda_gate_kernels",
    "mla_decode_kernels",
    "merge_attn_states_kernels",
    "mla_prefill_kernels",
    "mxfp4_linear_kernels",
    "mxfp4_linear_scaled_kernels",
    "page_table_kernels",
    "rmsnorm_kernels",
    "sparse_kv_kernels",
    "sparse_mla_kernels",
]

TRITON = Requirement("triton", ">=3.6", why="the oldest release that these bodies ran with")


_ROW = at_most("width", 16384, "a row is held in registers")


def rmsnorm_kernels(
    tuning: Table, qk_tuning: Table, quant_tuning: Table | None = None
) -> tuple[Kernel, ...]:
    """Kernels of the RMSNorm family.

    tuning        rows of `RmsNormTuning`, with conditions on `width`: rmsnorm, fused_add_rmsnorm
    qk_tuning     the same, with conditions on `q_width` and `k_width`: fused_qk_rmsnorm
    quant_tuning  the same, with conditions on `width` and `quant`: rmsnorm_quant; None leaves that
                  operator to another kernel
    """
    shared = "shared Triton body: a tile of rows in registers, read once, one launch"
    listed: dict[str, tuple[str, Table, tuple[Condition, ...]]] = {
        "rmsnorm": ("rmsnorm", tuning, ()),
        "fused_add_rmsnorm": ("rmsnorm", tuning, ()),
        "fused_qk_rmsnorm": ("rmsnorm", qk_tuning, ()),
    }
    if quant_tuning is not None:
        listed["rmsnorm_quant"] = ("rmsnorm_quant", quant_tuning, (_ROW,))
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.{module}:build_{operator}",
            accepts=accepts,
            requires=(TRITON,),
            tuning=table,
            summary=shared,
            space=spaces.RMSNORM,
        )
        for operator, (module, table, accepts) in listed.items()
    )


def mxfp4_linear_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """mxfp4_linear for every matrix unit of bfloat16.

    tuning  rows of `Mxfp4LinearTuning`
    """
    return (
        Kernel(
            operator="mxfp4_linear",
            name="triton",
            build="archkey.kernels.mxfp4_linear:build_mxfp4_linear",
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton body: 4-bit weights decoded in registers to bfloat16",
            space=spaces.MXFP4_LINEAR,
        ),
    )


def mxfp4_linear_scaled_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """mxfp4_linear of packed x, for matrix units that take block scales; list it first.

    tuning  rows of `Mxfp4LinearTuning`
    """
    native = is_("mxfp4", "native", "both operands go to the matrix unit as they are")
    return (
        Kernel(
            operator="mxfp4_linear",
            name="triton_scaled",
            build="archkey.kernels.mxfp4_linear:build_mxfp4_linear_scaled",
            accepts=(is_("dtype", "uint8", "float x has no block scales"),),
            needs=(native,),
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton body: products of e2m1 with block scales; interpreted, decoded",
            space=spaces.MXFP4_LINEAR_SCALED,
        ),
    )


def attention_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """unified_attention.

    tuning  rows of `AttentionTuning`, with conditions on `queries`, the head dims and dtypes
    """
    return (
        Kernel(
            operator="unified_attention",
            name="triton",
            build="archkey.kernels.attention:build_unified_attention",
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton body: a KV head's keys read once for its group of queries",
            space=spaces.ATTENTION,
        ),
    )


def mla_decode_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """mla_decode.

    tuning  rows of `MlaDecodeTuning`, with conditions on `heads`, `page_size` and the dtypes
    """
    return (
        Kernel(
            operator="mla_decode",
            name="triton",
            build="archkey.kernels.mla_decode:build_mla_decode",
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton body: a row of the latent cache read once for both products",
            space=spaces.MLA_DECODE,
        ),
    )


def mla_prefill_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """mla_prefill.

    tuning  rows of `MlaPrefillTuning`, with conditions on the widths, dtypes and `batch_invariant`
    """
    return (
        Kernel(
            operator="mla_prefill",
            name="triton",
            build="archkey.kernels.mla_prefill:build_mla_prefill",
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton body: one launch; widths of 192 as products of 128 and of 64",
            space=spaces.MLA_PREFILL,
        ),
    )


def sparse_mla_kernels(prefill_tuning: Table, decode_tuning: Table) -> tuple[Kernel, ...]:
    """sparse_mla_prefill and sparse_mla_decode.

    *_tuning  rows of `SparseMlaTuning`, with conditions on `heads`, `kv_format` and `aligned`
    """
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.sparse_mla:build_{operator}",
            requires=(TRITON,),
            tuning=table,
            summary="shared Triton body: heads of a token; keys by index, unpacked in registers",
            space=spaces.SPARSE_MLA,
        )
        for operator, table in (
            ("sparse_mla_prefill", prefill_tuning),
            ("sparse_mla_decode", decode_tuning),
        )
    )


def chunk_kda_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """chunk_kda.

    tuning  rows of `KdaChunkTuning`, with conditions on the widths and `small_grid`
    """
    return (
        Kernel(
            operator="chunk_kda",
            name="triton",
            build="archkey.kernels.kda_chunk:build_chunk_kda",
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton bodies: chunks alone, then states walked in segments",
            space=spaces.KDA_CHUNK,
        ),
    )


def kda_decode_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """fused_recurrent_kda and kda_packed_decode.

    tuning  rows of `KdaDecodeTuning`, with conditions on the widths, `state_dtype` and
            `state_v_first`, which packed decode has, too
    """
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.kda_decode:build_{operator}",
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton body: a part of a state in registers, read and written once",
            space=spaces.KDA_DECODE,
        )
        for operator in ("fused_recurrent_kda", "kda_packed_decode")
    )


def kda_gate_kernels(tuning: Table) -> tuple[Kernel, ...]:
    """kda_gate and kda_gate_chunk_cumsum.

    tuning  rows of `KdaGateTuning`, with conditions on `head_dim`, `dtype` and `out_dtype`
    """
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.kda_gate:build_{operator}",
            requires=(TRITON,),
            tuning=tuning,
            summary="shared Triton body: one launch, chunks found on the device",
            space=spaces.KDA_GATE,
        )
        for operator in ("kda_gate", "kda_gate_chunk_cumsum")
    )


def merge_attn_states_kernels() -> tuple[Kernel, ...]:
    """merge_attn_states. No tuning table: a program is a few loads of 16 bytes a thread."""
    return (
        Kernel(
            operator="merge_attn_states",
            name="triton",
            build="archkey.kernels.merge_states:build_merge_attn_states",
            requires=(TRITON,),
            summary="shared Triton body: one launch, each row read once, in place or not",
        ),
    )


def page_table_kernels() -> tuple[Kernel, ...]:
    """Both builders of page tables. No tuning table: a call moves a few kilobytes of indices."""
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.page_table:build_{operator}",
            requires=(TRITON,),
            summary="shared Triton body: both tables in one launch, lengths read on the device",
        )
        for operator in ("ragged_kv_indices_to_page_table", "req_to_token_to_page_table")
    )


def sparse_kv_kernels() -> tuple[Kernel, ...]:
    """What serves packed caches. No tuning table: a program is a few loads of 16 bytes a thread."""
    packed = "shared Triton body: one launch, a few tokens a program, each byte moved once"
    indices = "shared Triton body: one launch, a division by a constant an entry"
    listed = {
        "quantize_sparse_kv": packed,
        "dequantize_sparse_kv": packed,
        "logical_to_physical_indices": indices,
    }
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.sparse_kv:build_{operator}",
            requires=(TRITON,),
            summary=summary,
        )
        for operator, summary in listed.items()
    )
