# SPDX-License-Identifier: Apache-2.0
"""archkey keeps GPU-kernel differences between architectures out of inference engines.

    import archkey

    session = archkey.open()                    # or "cuda:1", or "rocm_gfx950" on a laptop
    session.capabilities.fp8                    # "e4m3fn"
    out = archkey.rmsnorm(x, weight, 1e-6)      # runs on x's device
    print(session.explain(problem))             # why that kernel

Importing archkey imports neither torch nor triton; names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from archkey import checkpoint as checkpoint
    from archkey.errors import ArchkeyError as ArchkeyError
    from archkey.errors import FrozenError as FrozenError
    from archkey.errors import PrepareError as PrepareError
    from archkey.errors import Unsupported as Unsupported
    from archkey.hookspecs import hookimpl as hookimpl
    from archkey.kernel import Kernel as Kernel
    from archkey.locate import devices as devices
    from archkey.models import problems_for as problems_for
    from archkey.ops.attention import unified_attention as unified_attention
    from archkey.ops.kda import chunk_kda as chunk_kda
    from archkey.ops.kda import fused_recurrent_kda as fused_recurrent_kda
    from archkey.ops.kda import kda_packed_decode as kda_packed_decode
    from archkey.ops.kda_gate import chunk_layout as chunk_layout
    from archkey.ops.kda_gate import kda_gate as kda_gate
    from archkey.ops.kda_gate import kda_gate_chunk_cumsum as kda_gate_chunk_cumsum
    from archkey.ops.mla import merge_attn_states as merge_attn_states
    from archkey.ops.mla import mla_decode as mla_decode
    from archkey.ops.mla import mla_prefill as mla_prefill
    from archkey.ops.mxfp4_linear import mxfp4_linear as mxfp4_linear
    from archkey.ops.page_table import (
        ragged_kv_indices_to_page_table as ragged_kv_indices_to_page_table,
    )
    from archkey.ops.page_table import req_to_token_to_page_table as req_to_token_to_page_table
    from archkey.ops.rmsnorm import fused_add_rmsnorm as fused_add_rmsnorm
    from archkey.ops.rmsnorm import fused_qk_rmsnorm as fused_qk_rmsnorm
    from archkey.ops.rmsnorm import rmsnorm as rmsnorm
    from archkey.ops.rmsnorm_quant import rmsnorm_quant as rmsnorm_quant
    from archkey.ops.sparse_kv import dequantize_sparse_kv as dequantize_sparse_kv
    from archkey.ops.sparse_kv import logical_to_physical_indices as logical_to_physical_indices
    from archkey.ops.sparse_kv import quantize_sparse_kv as quantize_sparse_kv
    from archkey.ops.sparse_mla import sparse_mla_decode as sparse_mla_decode
    from archkey.ops.sparse_mla import sparse_mla_prefill as sparse_mla_prefill
    from archkey.probe import Device as Device
    from archkey.session import Session as Session
    from archkey.session import open as open
    from archkey.session import override as override
    from archkey.target import Target as Target

_HOME = {
    "ArchkeyError": "errors",
    "Capability": "capabilities",
    "Device": "probe",
    "FrozenError": "errors",
    "Kernel": "kernel",
    "PrepareError": "errors",
    "Session": "session",
    "Target": "target",
    "Unsupported": "errors",
    "devices": "locate",
    "hookimpl": "hookspecs",
    "problems_for": "models",
    "open": "session",
    "override": "session",
    "mla_decode": "ops.mla",
    "mla_prefill": "ops.mla",
    "merge_attn_states": "ops.mla",
    "sparse_mla_prefill": "ops.sparse_mla",
    "sparse_mla_decode": "ops.sparse_mla",
    "quantize_sparse_kv": "ops.sparse_kv",
    "dequantize_sparse_kv": "ops.sparse_kv",
    "logical_to_physical_indices": "ops.sparse_kv",
    "fused_add_rmsnorm": "ops.rmsnorm",
    "fused_qk_rmsnorm": "ops.rmsnorm",
    "rmsnorm": "ops.rmsnorm",
    "rmsnorm_quant": "ops.rmsnorm_quant",
    "mxfp4_linear": "ops.mxfp4_linear",
    "unified_attention": "ops.attention",
    "ragged_kv_indices_to_page_table": "ops.page_table",
    "req_to_token_to_page_table": "ops.page_table",
    "chunk_kda": "ops.kda",
    "fused_recurrent_kda": "ops.kda",
    "kda_packed_decode": "ops.kda",
    "kda_gate": "ops.kda_gate",
    "kda_gate_chunk_cumsum": "ops.kda_gate",
    "chunk_layout": "ops.kda_gate",
}

_ROOMS = ("checkpoint",)
"""Rooms that are public as they are: `archkey.checkpoint.read(...)`."""

__all__ = [*_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"archkey.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'archkey' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"archkey.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
