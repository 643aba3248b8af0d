# SPDX-License-Identifier: Apache-2.0
"""The hooks of `rocm_gfx950`: AMD CDNA4, Instinct MI350X, MI355X."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import archkey
from archkey import tables
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
    mxfp4_linear_scaled_kernels,
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
from archkey.kernels.sparse_mla_tunings import SparseMlaTuning
from archkey.kernels.tunings import RmsNormTuning
from archkey_rocm_gfx950.facts import FACTS

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


@archkey.hookimpl
def archkey_capabilities(target: archkey.Target) -> Iterable[archkey.Capability]:
    """The table of facts; what differs from card to card is left to the probe."""
    return FACTS


@archkey.hookimpl
def archkey_kernels(target: archkey.Target) -> Iterable[archkey.Kernel]:
    """The shared bodies with this architecture's numbers."""
    yield from rmsnorm_kernels(_TUNING["rmsnorm"], _TUNING["qk_rmsnorm"], _TUNING["rmsnorm_quant"])
    yield from mxfp4_linear_scaled_kernels(_TUNING["mxfp4_linear_scaled"])
    yield from mxfp4_linear_kernels(_TUNING["mxfp4_linear"])
    yield from attention_kernels(_TUNING["attention"])
    yield from mla_decode_kernels(_TUNING["mla_decode"])
    yield from mla_prefill_kernels(_TUNING["mla_prefill"])
    yield from sparse_mla_kernels(_TUNING["sparse_mla_prefill"], _TUNING["sparse_mla_decode"])
    yield from chunk_kda_kernels(_TUNING["chunk_kda"])
    yield from kda_decode_kernels(_TUNING["kda_decode"])
    yield from kda_gate_kernels(_TUNING["kda_gate"])
    yield from merge_attn_states_kernels()
    yield from page_table_kernels()
    yield from sparse_kv_kernels()
