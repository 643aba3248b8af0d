# SPDX-License-Identifier: Apache-2.0
"""transformers' Kimi-Linear with its delta attention on archkey: prompts, then 256 steps of decode.

Held against the model's own recurrence in torch, float32, token by token. In bfloat16 it may be off
by what that recurrence is off by in bfloat16, times a small factor. The same tests run on the CPU
and, marked `gpu`, on a card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("transformers.models.kimi_linear")

import transformers
from tests.integrations._models import VOCABULARY, padded, tokens
from transformers.models.kimi_linear import modeling_kimi_linear as modeling

import archkey
from archkey.integrations import fla

STEPS = 256
BATCH, PROMPT = 3, 67  # of no whole chunk
EXACT = {"cpu": 1e-5, "cuda": 1e-2}  # of float32 tokens, which a card multiplies in bfloat16
ROUNDED = 1.5  # rms over thousands of numbers; what is summed in another order is rounded elsewhere
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mlp_layer_types": ["dense"] * 3,
    "linear_num_heads": 2,
    "linear_head_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LINEAR = SIZES["layer_types"].count("linear_attention")


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(
                    not torch.cuda.is_available(), reason="no GPU that torch can use"
                ),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of archkey's operators was called."""
    counted: Counter[str] = Counter()

    def spied(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return run(*arguments, **options)

        return spy

    for name in ("chunk_kda", "fused_recurrent_kda"):
        monkeypatch.setattr(archkey, name, spied(name, getattr(archkey, name)))
    return counted


@contextmanager
def by_definition() -> Iterator[None]:
    """Prompts too go through the model's recurrence in torch, whatever is installed."""
    names = "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"
    before = {name: getattr(modeling, name) for name in names}
    for name in names:
        setattr(modeling, name, before[names[1]].__wrapped__)
    try:
        yield
    finally:
        vars(modeling).update(before)


def make(dtype: torch.dtype, device: str) -> Any:
    """Small, with weights that make gates, betas and scores far from uniform."""
    torch.manual_seed(0)
    made = transformers.KimiLinearForCausalLM(transformers.KimiLinearConfig(**SIZES)).eval()
    for name, parameter in made.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.12)
        elif name.endswith("conv1d.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    return made.requires_grad_(False).to(device, dtype)


def forwards(model: Any, device: str, parts: tuple[int, ...], mask: Any = None) -> torch.Tensor:
    """Logits of a batch that comes in parts, each with what is cached of those before."""
    ids = torch.tensor(tokens(*(sum(parts),) * BATCH, seed=3), device=device)
    past, start, logits = None, 0, []
    for size in parts:
        end = start + size
        seen = None if mask is None else mask[:, :end]
        found = model(ids[:, start:end], attention_mask=seen, past_key_values=past, use_cache=True)
        past, start = found.past_key_values, end
        logits.append(found.logits.float())
    return torch.cat(logits, 1)


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """The size of the error next to that of what is right."""
    return float((got - want).norm() / want.norm())


def of_each(dtype: torch.dtype, device: str, *more: Any) -> tuple[torch.Tensor, ...]:
    """Logits in float32 by definition, in `dtype` by definition, in `dtype` on archkey."""
    found = []
    with torch.inference_mode():
        for kind in (torch.float32, dtype):
            with by_definition():
                found.append(forwards(make(kind, device), device, *more))
        with fla.routed():
            found.append(forwards(make(dtype, device), device, *more))
    return tuple(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_prompt_and_then_256_steps(dtype: torch.dtype, device: str, calls: Counter[str]) -> None:
    want, own, ours = of_each(dtype, device, (PROMPT, *(1,) * STEPS))
    assert calls == {"chunk_kda": LINEAR, "fused_recurrent_kda": LINEAR * STEPS}
    for part in (slice(0, PROMPT), slice(PROMPT, None), slice(-32, None)):
        rounded = ROUNDED * off(own[:, part], want[:, part])
        bound = EXACT[device] if dtype == torch.float32 else rounded
        assert off(ours[:, part], want[:, part]) <= bound


def test_a_prompt_in_parts(device: str, calls: Counter[str]) -> None:
    """A later part begins with the states that the one before left."""
    want, _, ours = of_each(torch.float32, device, (33, 1, 64, 2, 1))
    assert calls == {"chunk_kda": 3 * LINEAR, "fused_recurrent_kda": 2 * LINEAR}
    assert off(ours, want) <= EXACT[device]
    with torch.inference_mode(), fla.routed():
        whole = forwards(make(torch.float32, device), device, (101,))
    assert off(ours, whole) <= EXACT[device]


def test_a_batch_with_padding(device: str) -> None:
    """Padding at the left is multiplied away before it becomes a token."""
    lengths = (PROMPT, 40, 1)
    mask = padded(tokens(*lengths))["attention_mask"]
    mask = torch.cat([mask, torch.ones(BATCH, 3, dtype=mask.dtype)], 1).to(device)
    want, _, ours = of_each(torch.float32, device, (PROMPT, 1, 1, 1), mask)
    assert off(ours[mask.bool()], want[mask.bool()]) <= EXACT[device]


def test_generate(device: str) -> None:
    """The same tokens as the model generates by itself, and others for each prompt."""
    model = make(torch.float32, device)
    batch = {name: x.to(device) for name, x in padded(tokens(PROMPT, 9, 40)).items()}
    more = {"max_new_tokens": 24, "do_sample": False}
    with by_definition():
        want = model.generate(**batch, **more)
    with fla.routed():
        ours = model.generate(**batch, **more)
    assert torch.equal(ours, want)
    assert len({tuple(row) for row in want[:, PROMPT:].tolist()}) == len(want)


def test_afterwards_the_model_is_as_before() -> None:
    before = modeling.chunk_kimi_delta_attention, modeling.recurrent_kimi_delta_attention
    with fla.routed():
        assert modeling.chunk_kimi_delta_attention is fla.chunk_kda
        assert modeling.recurrent_kimi_delta_attention is fla.fused_recurrent_kda
    after = modeling.chunk_kimi_delta_attention, modeling.recurrent_kimi_delta_attention
    assert after == before
