# SPDX-License-Identifier: Apache-2.0
"""Liger 0.8.5, QuACK 0.6.5, FlashInfer 0.7.2 and vLLM 0.26.0: norms, and vLLM's merge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tests.bench._standins import Modules

from archkey.formats.fp8 import encode_fp8, quantize_fp8
from archkey.reference import mla, rmsnorm


def _put(out: torch.Tensor, value: torch.Tensor) -> None:
    assert out.shape == value.shape
    out.copy_(value)


def flashinfer_norms() -> dict[str, Any]:
    def norm(bias: float) -> Any:
        def rmsnorm_(input, weight, eps=1e-6, out=None, enable_pdl=None):
            assert input.dtype == weight.dtype == out.dtype
            _put(out, rmsnorm.rmsnorm(input, weight, eps, bias)[0])
            return out

        return rmsnorm_

    def fused(bias: float) -> Any:
        def fused_add_rmsnorm(input, residual, weight, eps=1e-6, enable_pdl=None):
            y, total = rmsnorm.fused_add_rmsnorm(input, residual, weight, eps, bias)
            _put(input, y)
            _put(residual, total)

        return fused_add_rmsnorm

    def rmsnorm_quant(out, input, weight, scale, eps=1e-6, enable_pdl=None):
        assert scale.shape == (1,)
        _put(out, encode_fp8(rmsnorm.rmsnorm(input, weight, eps)[0] / scale, "float8_e4m3fn"))

    def fused_add_rmsnorm_quant(out, input, residual, weight, scale, eps=1e-6, enable_pdl=None):
        y, total = rmsnorm.fused_add_rmsnorm(input, residual, weight, eps)
        _put(out, encode_fp8(y / scale, "float8_e4m3fn"))
        _put(residual, total)

    return {
        "rmsnorm": norm(0.0),
        "gemma_rmsnorm": norm(1.0),
        "fused_add_rmsnorm": fused(0.0),
        "gemma_fused_add_rmsnorm": fused(1.0),
        "rmsnorm_quant": rmsnorm_quant,
        "fused_add_rmsnorm_quant": fused_add_rmsnorm_quant,
    }


class Liger:
    """Its autograd functions."""

    class Norm:
        @staticmethod
        def apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
            return rmsnorm.rmsnorm(X, W, eps, offset, casting_mode == "llama")[0].to(X.dtype)

    class Add:
        @staticmethod
        def apply(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
            late = casting_mode == "llama"
            y, total = rmsnorm.fused_add_rmsnorm(X, R, W, eps, offset, late)
            return y.to(X.dtype), total.to(X.dtype)


def rmsnorm_fwd(
    x, weight=None, bias=None, residual=None, out_dtype=None, residual_dtype=None, eps=1e-6,
    store_rstd=False, weight_offset=0.0,
):  # fmt: skip
    """QuACK's."""
    total = x.float() if residual is None else x.float() + residual.float()
    out = rmsnorm.rmsnorm(total, weight, eps, weight_offset)[0].to(out_dtype or x.dtype)
    return out, x if residual is None else total.to(residual.dtype), None


def vllm_operators() -> SimpleNamespace:
    """`torch.ops._C`: no argument has a name there that counts, so the order is all."""

    def rms_norm(*arguments: Any) -> None:
        result, input, weight, epsilon = arguments
        _put(result, rmsnorm.rmsnorm(input, weight, epsilon)[0])

    def fused_add_rms_norm(*arguments: Any) -> None:
        input, residual, weight, epsilon = arguments
        y, total = rmsnorm.fused_add_rmsnorm(input, residual, weight, epsilon)
        _put(input, y)
        _put(residual, total)

    def static(*arguments: Any) -> None:
        result, input, weight, scale, epsilon = arguments
        y = rmsnorm.rmsnorm(input, weight, epsilon)[0]
        _put(result, encode_fp8(y / scale, "float8_e4m3fn"))

    def fused_static(*arguments: Any) -> None:
        result, input, residual, weight, scale, epsilon = arguments
        y, total = rmsnorm.fused_add_rmsnorm(input, residual, weight, epsilon)
        _put(result, encode_fp8(y / scale, "float8_e4m3fn"))
        _put(residual, total)

    def dynamic(*arguments: Any) -> None:
        result, input, weight, scale, epsilon, scale_ub, residual, *block = arguments
        assert scale_ub is None
        total = input.float() if residual is None else input.float() + residual.float()
        codes, scales = quantize_fp8(
            rmsnorm.rmsnorm(total, weight, epsilon)[0], "float8_e4m3fn", *block[:1]
        )
        assert not block or block[1] == (scale.stride(0) == 1)
        _put(result, codes)
        _put(scale, scales)
        if residual is not None:
            _put(residual, total)

    def merge(*arguments: Any) -> None:
        out, out_lse, prefix, prefix_lse, suffix, suffix_lse, with_context, scale = arguments
        assert with_context is None and scale is None
        assert all(lse.is_contiguous() for lse in (prefix_lse, suffix_lse, out_lse))
        o, lse = mla.merge_attn_states(prefix, prefix_lse.T, suffix, suffix_lse.T)
        _put(out, o)
        _put(out_lse, lse.T)

    return SimpleNamespace(
        rms_norm=rms_norm,
        fused_add_rms_norm=fused_add_rms_norm,
        rms_norm_static_fp8_quant=static,
        fused_add_rms_norm_static_fp8_quant=fused_static,
        rms_norm_dynamic_per_token_quant=dynamic,
        rms_norm_per_block_quant=dynamic,
        merge_attn_states=merge,
    )


NORMS: Modules = {
    "liger_kernel.ops": {
        "LigerRMSNormFunction": Liger.Norm,
        "LigerFusedAddRMSNormFunction": Liger.Add,
    },
    "quack.rmsnorm": {"rmsnorm_fwd": rmsnorm_fwd},
    "flashinfer.norm": flashinfer_norms(),
    "vllm._C_stable_libtorch": {},
}
