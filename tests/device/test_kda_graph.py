# SPDX-License-Identifier: Apache-2.0
"""On a card: captured calls of KDA serve other lengths, other slots and other values.

A prefill is captured for a bucket of tokens, sequences and chunks. What is left of a bucket is
padding: rows past the last sequence, sequences without tokens and without a slot, chunks of nobody.
Lengths, chunks and slots are rebuilt on the device before a replay; the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
import torch
from tests.device._graphs import captured, near

import archkey
from archkey.ops.kda_gate import chunk_layout
from archkey.reference import kda as reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]

DEVICE = "cuda:0"
TOKENS, SEQUENCES, SLOTS, DIM, CHUNK = 1024, 6, 40, 128, 64
CHUNKS = TOKENS // CHUNK + SEQUENCES - 1
DRAFTS = 3
LENGTHS = (
    (TOKENS,),
    (1, 63, 64, 65, 0, 831),
    (0, 0, 130, 7),
    (200, 500, 300),
    (),
)
LIVE = (6, 1, 5, 3, 0)
"""Sequences that decode; the others are padding."""


class Layer(NamedTuple):
    """A layer's part of a call: heads, and the bound of its gate."""

    heads: int
    lower_bound: float | None
    state: torch.dtype


LAYERS = {
    "Kimi-Linear TP4": Layer(8, None, torch.float32),
    "Kimi-K3 TP8, bf16 states": Layer(12, -5.0, torch.bfloat16),
}


class Buffers:
    """The tensors of a captured call, whose addresses stay."""

    def __init__(self, layer: Layer, tokens: int, columns: int = 1) -> None:
        h, device = layer.heads, DEVICE
        self.layer = layer
        self.projected = torch.empty(1, tokens, 3 * h, DIM, device=device, dtype=torch.bfloat16)
        self.g = torch.empty(1, tokens, h, DIM, device=device, dtype=torch.bfloat16)
        self.beta = torch.empty(1, tokens, h, device=device, dtype=torch.bfloat16)
        self.out = torch.empty(1, tokens, h, DIM, device=device, dtype=torch.bfloat16)
        self.pool = torch.empty(SLOTS, h, DIM, DIM, device=device, dtype=layer.state)
        self.slots = torch.full((SEQUENCES, columns), -1, device=device, dtype=torch.int32)
        self.gate = {
            "A_log": torch.rand(h, device=device) * 2.77,
            "dt_bias": torch.rand(h * DIM, device=device) * 4.6 - 6.9,
            "lower_bound": layer.lower_bound,
        }

    def fill(self, number: int, live: list[int]) -> None:
        """New values; slots in another order, for the sequences `live` alone."""
        for x in (self.projected, self.g, self.beta):
            x.normal_()
        generator = torch.Generator().manual_seed(number)
        order = torch.randperm(SLOTS, generator=generator)[: self.slots.numel()]
        slots = order.view(self.slots.shape).int()
        slots[[n for n in range(SEQUENCES) if n not in live]] = -1
        self.slots.copy_(slots)
        self.pool.fill_(float("inf"))
        used = slots[slots >= 0].long()
        self.pool[used] = (
            torch.randn(len(used), *self.pool.shape[1:], device=DEVICE, dtype=torch.float32).to(
                self.pool.dtype
            )
            / 8
        )
        self.out.fill_(float("nan"))

    def call(self) -> dict[str, Any]:
        """Arguments of prefill and of verification alike."""
        q, k, v = self.projected.split(self.layer.heads, dim=2)
        flags = ("use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel")
        return {
            **{"q": q, "k": k, "v": v, "g": self.g, "beta": self.beta},
            **{"initial_state": self.pool, "state_v_first": True},
            **self.gate,
            **dict.fromkeys(flags, True),
        }

    def hold(
        self, operator: str, out: torch.Tensor, before: torch.Tensor, want: tuple[Any, ...]
    ) -> None:
        """Results are as the float64 reference has them; slots of nobody are as they were."""
        assert near(operator, "o", out, want[0], "bfloat16")
        used = self.slots[self.slots >= 0].long()
        if len(used):
            assert near(operator, "final_state", self.pool[used], want[1][used], "bfloat16")
        rest = torch.ones(SLOTS, dtype=torch.bool, device=DEVICE)
        rest[used] = False
        assert torch.equal(self.pool[rest], before[rest])


def replay(call: Callable[[], Any], fills: list[Callable[[], Callable[[], None]]]) -> None:
    """Capture `call` on the first filling; then fill, replay and hold each result."""
    with torch.inference_mode():
        fills[1]()
        graph, _ = captured(call)
        for fill in fills:
            hold = fill()
            graph.replay()
            hold()


@pytest.mark.parametrize("invariant", [False, True], ids=["any bits", "same bits"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_captured_prefill_serves_other_lengths(name: str, invariant: bool) -> None:
    buffers = Buffers(LAYERS[name], TOKENS)
    ends = torch.zeros(SEQUENCES + 1, device=DEVICE, dtype=torch.int32)
    indices = torch.full((CHUNKS, 2), -1, device=DEVICE, dtype=torch.int32)
    offsets = torch.zeros(SEQUENCES + 1, device=DEVICE, dtype=torch.int32)
    wanted = torch.zeros(SEQUENCES, device=DEVICE, dtype=torch.int32)
    heads = LAYERS[name].heads
    snapshots = torch.empty(SEQUENCES, heads, DIM, DIM, device=DEVICE)
    call = {
        **buffers.call(),
        **{"cu_seqlens": ends, "chunk_indices": indices, "chunk_offsets": offsets},
        **{"track_state": snapshots, "track_chunk_idx": wanted},
    }

    def filled(number: int, lengths: tuple[int, ...]) -> Callable[[], None]:
        padded = [*lengths, *[0] * (SEQUENCES - len(lengths))]
        buffers.fill(number, list(range(len(lengths))))
        ends.copy_(torch.tensor(list(accumulate(padded, initial=0))))
        for mine, new in zip(
            (indices, offsets), chunk_layout(ends, TOKENS, CHUNK, rows=CHUNKS), strict=True
        ):
            mine.copy_(new)
        wanted.copy_(torch.tensor([n // CHUNK - 1 for n in padded]))
        snapshots.normal_()
        before, kept = buffers.pool.clone(), snapshots.clone()

        def hold() -> None:
            inputs = dict(call, initial_state=before, track_state=kept)
            want = reference.chunk_kda(
                **inputs, state_indices=buffers.slots, compute_dtype=torch.float64
            )
            buffers.hold("chunk_kda", buffers.out, before, want)
            assert near("chunk_kda", "track_state", snapshots, want[3], "bfloat16")

        return hold

    replay(
        lambda: archkey.chunk_kda(
            **call,
            initial_state_indices=buffers.slots,
            safe_gate=LAYERS[name].lower_bound is not None,
            out=buffers.out,
            batch_invariant=invariant,
        ),
        [lambda n=n, x=x: filled(n, x) for n, x in enumerate(LENGTHS)],  # type: ignore[misc]
    )


@pytest.mark.parametrize("drafts", [0, DRAFTS], ids=["decode", "verification"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_captured_decode_serves_other_slots(name: str, drafts: int) -> None:
    columns = 1 + drafts
    buffers = Buffers(LAYERS[name], SEQUENCES * columns, columns)
    accepted = torch.ones(SEQUENCES, device=DEVICE, dtype=torch.int32)
    call = {
        **buffers.call(),
        "cu_seqlens": torch.arange(SEQUENCES + 1, device=DEVICE, dtype=torch.int32) * columns,
        "num_accepted_tokens": accepted if drafts else None,
        "inplace_final_state": True,
    }

    def filled(number: int, live: int) -> Callable[[], None]:
        buffers.fill(number, [(n + number) % SEQUENCES for n in range(live)])
        accepted.copy_(torch.arange(SEQUENCES) % columns + 1)
        before = buffers.pool.clone()

        def hold() -> None:
            inputs = dict(call, initial_state=before)
            want = reference.fused_recurrent_kda(
                **inputs, state_indices=buffers.slots, compute_dtype=torch.float64
            )
            buffers.hold("fused_recurrent_kda", buffers.out, before, want)

        return hold

    replay(
        lambda: archkey.fused_recurrent_kda(
            **call, ssm_state_indices=buffers.slots, out=buffers.out
        ),
        [lambda n=n, x=x: filled(n, x) for n, x in enumerate(LIVE)],  # type: ignore[misc]
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_captured_packed_decode_serves_other_slots(name: str) -> None:
    buffers = Buffers(LAYERS[name], SEQUENCES)
    call = {
        "mixed_qkv": buffers.projected.view(SEQUENCES, -1),
        "a": buffers.g.view(SEQUENCES, -1),
        "b": buffers.beta.view(SEQUENCES, -1),
        **{"ssm_state_indices": buffers.slots, "initial_state": buffers.pool, "scale": None},
        **buffers.gate,
    }
    out = buffers.out.view(SEQUENCES, 1, -1, DIM)

    def filled(number: int, live: int) -> Callable[[], None]:
        buffers.fill(number, [(n + number) % SEQUENCES for n in range(live)])
        before = buffers.pool.clone()

        def hold() -> None:
            inputs = dict(call, initial_state=before)
            want = reference.kda_packed_decode(**inputs, compute_dtype=torch.float64)
            buffers.hold("kda_packed_decode", out, before, want)

        return hold

    replay(
        lambda: archkey.kda_packed_decode(**call, out=out),
        [lambda n=n, x=x: filled(n, x) for n, x in enumerate(LIVE)],  # type: ignore[misc]
    )
