# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer on archkey's operators: weights, caches, and one forward pass.

RMSNorm, grouped-query attention with rotary embedding, gated MLP; each layer sees all keys ("full")
or a window of them ("window"), as in Gemma and GPT-OSS. Norms and attention are archkey's, products
with weights are torch's. The weights are random: the example is about how an engine calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import archkey


@dataclass(frozen=True)
class ModelConfig:
    """Shapes, with Hugging Face's names.

    layers   "full" or "window" for each layer
    window   keys that a query of a window layer sees, itself included (`sliding_window`)
    softcap  of the attention's logits; 0: none
    sinks    whether each head has a learned sink
    """

    vocab: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    layers: tuple[str, ...]
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    eps: float = 1e-6
    rope_theta: float = 10000.0

    def window_size(self, kind: str) -> tuple[int, int]:
        """unified_attention's `window_size`: it counts *earlier* keys, hence the -1."""
        return (self.window - 1, 0) if kind == "window" else (-1, -1)


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; a projection is `[out, in]`; q, k, v are one, and gate and up."""

    kind: str
    attention_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    sinks: Tensor | None


@dataclass(frozen=True)
class Model:
    """A config and its weights."""

    config: ModelConfig
    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor


def random_model(
    config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Model:
    """Random weights, the same for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return (values / math.sqrt(shape[-1])).to(device, dtype)

    def scales(width: int) -> Tensor:
        return (1 + 0.1 * torch.randn(width, generator=generator)).to(device, dtype)

    c = config
    q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layers = tuple(
        Layer(
            kind=kind,
            attention_norm=scales(c.hidden),
            qkv=weights(q_width + 2 * kv_width, c.hidden),
            output=weights(c.hidden, q_width),
            mlp_norm=scales(c.hidden),
            gate_up=weights(2 * c.intermediate, c.hidden),
            down=weights(c.hidden, c.intermediate),
            sinks=scales(c.heads) if c.sinks else None,
        )
        for kind in c.layers
    )
    embedding = torch.randn(c.vocab, c.hidden, generator=generator).to(device, dtype)
    return Model(c, embedding, layers, scales(c.hidden), weights(c.vocab, c.hidden))


@dataclass(frozen=True)
class Batch:
    """What all layers of a forward pass share. The maps are by kind of layer.

    slots         `[T]` int64: where the pass writes the keys of its T tokens
    page_tables   `[B, columns]` int32
    cu_seqlens_q  `[B + 1]` int32; rows past its last entry are padding
    seqused_k     `[B]` int32, the tokens of this pass included
    max_seqlen_q  a bound, known on the host
    """

    slots: Mapping[str, Tensor]
    page_tables: Mapping[str, Tensor]
    cu_seqlens_q: Tensor
    seqused_k: Tensor
    max_seqlen_q: int


Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer, `[pages, page_size, Hk, D]` each."""


class Decoder:
    """Runs a model over a paged cache of its own.

    pages       pages of the cache by kind of layer
    context     longest sequence [tokens]
    max_tokens  most tokens of one pass
    linear_rows None: one product for all tokens of a pass; else see `linear`
    """

    def __init__(
        self,
        model: Model,
        session: archkey.Session,
        *,
        pages: Mapping[str, int],
        page_size: int,
        context: int,
        max_tokens: int,
        batch_invariant: bool = False,
        linear_rows: int | None = None,
    ) -> None:
        c, like = model.config, model.embedding
        self.model, self.config, self.session = model, c, session
        self.batch_invariant, self.linear_rows = batch_invariant, linear_rows
        shapes = [(pages[kind], page_size, c.kv_heads, c.head_dim) for kind in c.layers]
        self.caches: list[Cache] = [(like.new_zeros(s), like.new_zeros(s)) for s in shapes]
        # Attention writes where it is told; one buffer serves all layers, eager or captured.
        self.attended = like.new_zeros(max_tokens, c.heads, c.head_dim)
        angle = torch.arange(context, device=like.device)[:, None] * c.rope_theta ** -(
            torch.arange(0, c.head_dim, 2, device=like.device) / c.head_dim
        )
        self.cosine, self.sine = angle.cos()[:, None], angle.sin()[:, None]

    def forward(self, tokens: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        """Normalised hidden states `[T, hidden]` of `tokens` at `positions`, both `[T]`.

        Nothing here waits for the device or depends on values, so a graph can hold it.
        """
        model, eps, rows = self.model, self.config.eps, self.linear_rows
        rotation = self.cosine[positions], self.sine[positions]
        residual = model.embedding[tokens]
        x: Tensor = self.session.rmsnorm(residual, model.layers[0].attention_norm, eps)
        after = [layer.attention_norm for layer in model.layers[1:]] + [model.norm]
        for layer, cache, next_norm in zip(model.layers, self.caches, after, strict=True):
            x = self._attention(layer, cache, x, rotation, batch)
            # In place: residual becomes the sum, x its norm.
            self.session.fused_add_rmsnorm(x, residual, layer.mlp_norm, eps)
            gate, up = linear(x, layer.gate_up, rows).chunk(2, dim=-1)
            x = linear(F.silu(gate) * up, layer.down, rows)
            self.session.fused_add_rmsnorm(x, residual, next_norm, eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """`[T, vocab]` of the rows of `hidden`."""
        return linear(hidden, self.model.head, self.linear_rows)

    def _attention(
        self, layer: Layer, cache: Cache, x: Tensor, rotation: tuple[Tensor, Tensor], batch: Batch
    ) -> Tensor:
        c = self.config
        widths = [heads * c.head_dim for heads in (c.heads, c.kv_heads, c.kv_heads)]
        q, k, v = (
            part.unflatten(-1, (-1, c.head_dim))
            for part in linear(x, layer.qkv, self.linear_rows).split(widths, dim=-1)
        )
        for kept, new in zip(cache, (rotate(k, *rotation), v), strict=True):
            kept.flatten(0, 1).index_copy_(0, batch.slots[layer.kind], new)
        table = batch.page_tables[layer.kind]
        out = self.session.unified_attention(
            rotate(q, *rotation),
            *cache,
            self.attended[: len(x)],
            batch.cu_seqlens_q,
            batch.max_seqlen_q,
            batch.seqused_k,
            # A bound that never changes: a captured launch keeps the one it was captured with.
            table.shape[1] * cache[0].shape[1],
            c.head_dim**-0.5,
            True,
            c.window_size(layer.kind),
            table,
            c.softcap,
            sinks=layer.sinks,
            batch_invariant=self.batch_invariant,
        )
        return linear(out.flatten(1), layer.output, self.linear_rows)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of `[T, h, D]`, in float32; cosine and sine are `[T, 1, D / 2]`."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1).to(x.dtype)


def linear(x: Tensor, weight: Tensor, rows: int | None) -> Tensor:
    """`x @ weight.T`; with `rows`, in products of exactly that many rows, the last one padded.

    A matrix library chooses its kernel, and with it the order of its sums, by the product's shape.
    A token's bits therefore change with the number of tokens beside it, unless every product has
    one shape. `rows=1` leaves no neighbours at all; on a GPU that is slow, and a multiple of the
    matrix tile serves as well, for a library that treats all rows of a product alike.
    """
    if rows is None:
        return F.linear(x, weight)
    padded = F.pad(x, (0, 0, 0, -len(x) % rows))
    return torch.cat([F.linear(part, weight) for part in padded.split(rows)])[: len(x)]
