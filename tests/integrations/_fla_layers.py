# SPDX-License-Identifier: Apache-2.0
"""fla's own layer of Kimi Delta Attention with random weights, and what runs it without a GPU.

Two of its parts are Triton kernels of fla that no CPU runs: the short convolutions and the gated
norm. There they are replaced by the same in torch; all else is fla's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tests.integrations._kda import defined, gated
from torch import Tensor, nn

__all__ = ["HIDDEN", "by_definition", "make", "through"]

HIDDEN = 128


class Convolution(nn.Module):
    """Causal, each channel by itself, then SiLU; packed sequences and single steps alike."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.weight = theirs.weight

    def forward(
        self,
        x: Tensor,
        cache: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x `[B, T, D]`, cache `[N, D, W]`: the last W inputs of each sequence."""
        width = self.weight.shape[-1]
        rows = [*x] if cu_seqlens is None else x[0].split(cu_seqlens.diff().tolist())
        before = x.new_zeros(len(rows), x.shape[-1], width) if cache is None else cache
        seen = [torch.cat([old, row.T], -1) for old, row in zip(before, rows, strict=True)]
        channels = x.shape[-1]
        made = [nn.functional.conv1d(s[None], self.weight, groups=channels)[0, :, 1:] for s in seen]
        y = torch.cat(made, -1).T.view(x.shape)
        last = torch.stack([s[:, -width:] for s in seen]) if output_final_state else None
        return nn.functional.silu(y), last


class GatedNorm(nn.Module):
    """RMS norm times a sigmoid."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.weight, self.eps = theirs.weight, theirs.eps

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        y = x.float() * (x.float().square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (self.weight * y * g.float().sigmoid()).to(x.dtype)


def make(device: str, dtype: torch.dtype, **options: Any) -> Any:
    """A layer whose gates, betas and keys are far from uniform."""
    from fla.layers.kda import KimiDeltaAttention

    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "head_dim": 64, "num_heads": 2, "layer_idx": 0}
    layer = KimiDeltaAttention(**sizes | options).eval()
    for name, parameter in layer.named_parameters():
        if "conv1d" in name:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.12)
    if device == "cpu":
        for name in ("q_conv1d", "k_conv1d", "v_conv1d"):
            setattr(layer, name, Convolution(getattr(layer, name)))
        layer.o_norm = GatedNorm(layer.o_norm)
    return layer.requires_grad_(False).to(device, dtype)


def _defined(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **call: Any) -> Any:
    """A layer's call, with V before K in the states, by definition."""
    state, bounds = call["initial_state"], call["cu_seqlens"]
    beta = beta.double().sigmoid() * (1 + call["allow_neg_eigval"])
    o, states = defined(
        q, k, v, gated(g, call["A_log"], call["dt_bias"], call["lower_bound"]), beta,
        initial_state=None if state is None else state.mT,
        bounds=None if bounds is None else bounds.tolist(),
        norm=call["use_qk_l2norm_in_kernel"],
    )  # fmt: skip
    return o.to(v.dtype), states.mT.float().contiguous() if call["output_final_state"] else None


@contextmanager
def by_definition() -> Iterator[None]:
    """fla's layer computes its attention token by token in float64."""
    import fla.layers.kda as module

    before = module.chunk_kda, module.fused_recurrent_kda
    module.chunk_kda = module.fused_recurrent_kda = _defined
    try:
        yield
    finally:
        module.chunk_kda, module.fused_recurrent_kda = before


def through(layer: Any, parts: list[Tensor], bounds: list[Tensor | None]) -> Tensor:
    """The layer's outputs for parts of one batch, each after the states that the last one left.

    parts  `[B, T, HIDDEN]`, or with bounds (cu_seqlens) `[1, T, HIDDEN]`; concatenated along T
    """
    from fla.models.utils import Cache

    past, outputs = Cache(), []
    with torch.inference_mode():
        for x, cu_seqlens in zip(parts, bounds, strict=True):
            more = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
            y, _, past = layer(x, past_key_values=past, use_cache=True, **more)
            outputs.append(y)
    return torch.cat(outputs, 1)
