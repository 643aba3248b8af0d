# SPDX-License-Identifier: Apache-2.0
"""Pools that are too small for everybody at once: who waits, what is promised, what comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.engine_example._dense import MIXED, SIZES, dense_greedy, prompts, run
from tests.engine_example.engine import Engine
from tests.engine_example.model import random_model
from tests.engine_example.pool import Pool
from tests.engine_example.test_engine import idle

import archkey

TARGET = random_model(MIXED, 2)
LENGTHS = (5, 17, 30, 3)
NEW = 16


@pytest.fixture(scope="module")
def wanted() -> list[list[int]]:
    """Outputs of the dense recomputation."""
    return [dense_greedy(TARGET, prompt, NEW) for prompt in prompts(*LENGTHS)]


def test_a_window_pool_far_smaller_than_the_context() -> None:
    """One request, 90 tokens long, in a window pool of 28."""
    config = replace(SIZES, window_pages=1 + 7, chunk_tokens=16, max_requests=1)
    engine = Engine(TARGET, archkey.open("cpu"), config)
    (prompt,) = prompts(50)
    assert engine.generate([prompt], 40) == [dense_greedy(TARGET, prompt, 40)]
    assert idle(engine)


@pytest.mark.parametrize("short_of", ["pages", "window_pages", "max_requests"])
def test_requests_wait_for_what_is_short(short_of: str, wanted: list[list[int]]) -> None:
    config = {
        "pages": replace(SIZES, pages=1 + 17),
        "window_pages": replace(SIZES, window_pages=1 + 8),
        "max_requests": replace(SIZES, max_requests=1),
    }[short_of]
    engine = Engine(TARGET, archkey.open("cpu"), config)
    requests = [engine.add(prompt, NEW) for prompt in prompts(*LENGTHS)]
    engine.step()
    assert len(engine.scheduler.running) < len(requests) - 1
    run(engine, requests)
    assert [request.output for request in requests] == wanted
    assert idle(engine)


def test_requests_that_could_never_run_are_refused() -> None:
    engine = Engine(TARGET, archkey.open("cpu"), replace(SIZES, pages=1 + 10))
    with pytest.raises(ValueError, match="exceed the context or the pool"):
        engine.add([1] * 30, 12)
    with pytest.raises(ValueError, match="exceed the context or the pool"):
        Engine(TARGET, archkey.open("cpu"), SIZES).add([1] * 90, 8)
    with pytest.raises(ValueError, match="needs a prompt"):
        engine.add([], 1)
    with pytest.raises(ValueError, match="prompts would starve"):
        Engine(TARGET, archkey.open("cpu"), replace(SIZES, token_budget=4))


@pytest.mark.parametrize("draft_tokens", [1, 4], ids="n{}".format)
def test_the_smallest_pool_that_is_not_refused_is_enough(draft_tokens: int) -> None:
    """Pages of one token, so that a promise short of one token is one short of a page."""
    (prompt,) = prompts(9)
    draft = TARGET if draft_tokens > 1 else None
    for pages in range(2, 64):
        sizes = replace(SIZES, page_size=1, pages=pages, draft_tokens=draft_tokens)
        engine = Engine(TARGET, archkey.open("cpu"), sizes, draft=draft)
        try:
            request = engine.add(prompt, NEW)
        except ValueError:
            continue
        break
    run(engine, [request])
    assert request.output == dense_greedy(TARGET, prompt, NEW)
    assert pages == 1 + len(prompt) + NEW - 2 + draft_tokens


@pytest.mark.parametrize("page_size", [1, 2, 4, 16], ids="page{}".format)
@pytest.mark.parametrize("window", [1, 2, 5, 16, 33], ids="window{}".format)
@pytest.mark.parametrize("stride", [1, 3, 16, 20], ids="stride{}".format)
def test_what_a_window_holds_at_most_is_what_is_promised(
    page_size: int, window: int, stride: int
) -> None:
    """Random strides, some taken back, in a pool of the promised size: enough, and no page more."""
    tokens, most = 800, 0
    sizes = {"page_size": page_size, "pages": 5000, "window_pages": 5000, "requests": 1}
    pool = Pool(**sizes, context=5000, window=window, stride=stride, device=torch.device("cpu"))
    holding = pool.admit(tokens)
    assert holding is not None
    generator = torch.Generator().manual_seed(0)
    cached = 0
    while cached + stride <= tokens:
        pool.grow(holding, cached + stride)
        most = max(most, len(holding.window_pages))
        cached += int(torch.randint(stride + 1, (), generator=generator))
        pool.settle(holding, cached)
        assert len(holding.pages) == -(-cached // page_size)
    assert most == holding.promised[1] == pool.need(tokens)[1]
    pool.release(holding)
    assert (len(pool.full.free), len(pool.swa.free)) == (4999, 4999)
