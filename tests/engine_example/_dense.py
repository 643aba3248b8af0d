# SPDX-License-Identifier: Apache-2.0
"""What an engine's output is held against: whole sequences in torch, without a cache."""

from __future__ import annotations

import torch
from tests.engine_example.engine import Engine, EngineConfig
from tests.engine_example.model import Model, ModelConfig
from tests.engine_example.scheduler import Request
from torch import Tensor

MIXED = ModelConfig(
    vocab=97, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128,
    layers=("window", "full", "window", "full"), window=10, softcap=2.0, sinks=True,
)  # fmt: skip
FULL = ModelConfig(
    vocab=97, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128, layers=("full",) * 2
)
SIZES = EngineConfig(
    pages=64, window_pages=64, page_size=4, context=96, max_requests=4, token_budget=24,
    chunk_tokens=16,
)  # fmt: skip


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random prompts."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(97, (n,), generator=generator).tolist() for n in lengths]


def dense_logits(model: Model, tokens: list[int]) -> Tensor:
    """`[T, vocab]` of a whole sequence, in the weights' dtype."""
    c = model.config
    x = model.embedding[torch.tensor(tokens)]
    position = torch.arange(len(tokens))
    far = position[:, None] - position[None, :]
    frequency = 1 / c.rope_theta ** (torch.arange(0, c.head_dim, 2) / c.head_dim)
    turn = torch.polar(torch.ones(()), position[:, None] * frequency)[:, None]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + c.eps).sqrt() * weight

    def rope(x: Tensor) -> Tensor:  # dimension i turns with dimension i + D / 2
        half = c.head_dim // 2
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((turned.real, turned.imag), -1)

    for layer in model.layers:
        qkv = (norm(x, layer.attention_norm) @ layer.qkv.T).view(len(x), -1, c.head_dim)
        q, k, v = qkv.split((c.heads, c.kv_heads, c.kv_heads), dim=1)
        group = c.heads // c.kv_heads
        k, v = rope(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        s = torch.einsum("qhd,khd->hqk", rope(q), k) / c.head_dim**0.5
        if c.softcap:
            s = c.softcap * torch.tanh(s / c.softcap)
        hidden = (far < 0) | ((far >= c.window) if layer.kind == "window" else far < 0)
        s = s.masked_fill(hidden, -torch.inf)
        if layer.sinks is not None:  # a column of the softmax that has no value
            s = torch.cat((s, layer.sinks[:, None, None].expand(-1, len(x), 1)), -1)
        p = s.softmax(-1)[..., : len(x)]
        x = x + torch.einsum("hqk,khd->qhd", p, v).flatten(1) @ layer.output.T
        gate, up = (norm(x, layer.mlp_norm) @ layer.gate_up.T).chunk(2, -1)
        x = x + (torch.nn.functional.silu(gate) * up) @ layer.down.T
    return norm(x, model.norm) @ model.head.T


def dense_greedy(model: Model, prompt: list[int], new_tokens: int) -> list[int]:
    """The greedy continuation, from scratch for each token."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(dense_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def run(engine: Engine, requests: list[Request]) -> None:
    """Step until all are finished."""
    while not all(request.finished for request in requests):
        engine.step()
