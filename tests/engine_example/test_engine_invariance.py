# SPDX-License-Identifier: Apache-2.0
"""With batch_invariant a request's logits are the same bits, whatever runs beside it and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.engine_example._dense import MIXED, SIZES, prompts, run
from tests.engine_example.engine import Engine
from tests.engine_example.model import random_model
from tests.engine_example.scheduler import Request

import archkey

TARGET = random_model(MIXED, 2)
PROMPTS = prompts(5, 17, 30, 3)
NEW = 12
SAME_BITS = replace(SIZES, batch_invariant=True, keep_logits=True)


def served(order: tuple[int, ...] = (0, 1, 2, 3), gap: int = 0, **sizes: Any) -> list[Request]:
    """The requests of PROMPTS, submitted in `order` with `gap` steps in between."""
    draft = TARGET if sizes.get("draft_tokens", 1) > 1 else None
    engine = Engine(TARGET, archkey.open("cpu"), replace(SAME_BITS, **sizes), draft=draft)
    requests = {}
    for i in order:
        requests[i] = engine.add(PROMPTS[i], NEW)
        for _ in range(gap):
            engine.step()
    run(engine, list(requests.values()))
    return [requests[i] for i in range(len(PROMPTS))]


def logits(requests: list[Request]) -> torch.Tensor:
    """`[requests, NEW, vocab]`."""
    return torch.stack([torch.stack(request.logits) for request in requests])


@pytest.fixture(scope="module")
def alone() -> torch.Tensor:
    """Each request in an engine of its own."""
    found = []
    for prompt in PROMPTS:
        engine = Engine(TARGET, archkey.open("cpu"), replace(SAME_BITS, max_requests=1))
        request = engine.add(prompt, NEW)
        run(engine, [request])
        assert [int(row.argmax()) for row in request.logits] == request.output
        found.append(request)
    return logits(found)


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"order": (3, 1, 0, 2)},
        {"order": (2, 3, 1, 0), "gap": 3},
        {"chunk_tokens": 1},
        {"chunk_tokens": 7, "gap": 1},
        {"token_budget": 100, "chunk_tokens": 100},
        {"page_size": 16},
        {"draft_tokens": 4},
        {"draft_tokens": 2, "order": (1, 3, 2, 0), "gap": 2, "chunk_tokens": 5},
        {"linear_rows": 1, "max_requests": 3},
    ],
    ids=lambda run: ", ".join(f"{k} {v}" for k, v in run.items()) or "together",
)
def test_the_same_bits(run: dict[str, Any], alone: torch.Tensor) -> None:
    assert torch.equal(logits(served(**run)), alone)


def test_other_bits_without_it(alone: torch.Tensor) -> None:
    """The promise is worth something: close, and not the same, when nobody gives it."""
    found = logits(served(batch_invariant=False))
    assert not torch.equal(found, alone)
    torch.testing.assert_close(found, alone, atol=1e-3, rtol=1e-3)
