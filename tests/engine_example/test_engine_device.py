# SPDX-License-Identifier: Apache-2.0
"""On a card: rounds captured once and replayed over other lengths: `make gpu`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.engine_example._dense import run
from tests.engine_example.engine import Engine, EngineConfig
from tests.engine_example.model import Model, ModelConfig, random_model
from tests.engine_example.scheduler import Request

import archkey

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
DEVICE = "cuda:0"

CONFIG = ModelConfig(
    vocab=4096, hidden=512, heads=16, kv_heads=2, head_dim=64, intermediate=1024,
    layers=("window", "full", "window", "full"), window=128, softcap=30.0, sinks=True,
)  # fmt: skip
SIZES = EngineConfig(
    pages=1024, window_pages=512, page_size=16, context=2048, max_requests=12, token_budget=512,
    chunk_tokens=256, keep_logits=True,
)  # fmt: skip
LENGTHS = (1, 5, 16, 17, 100, 127, 129, 300, 511, 640, 900)
NEW = 48


@pytest.fixture(scope="module")
def target() -> Model:
    return random_model(CONFIG, 7, torch.bfloat16, DEVICE)


def often_right(target: Model) -> Model:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(target.head.shape, generator=generator) * 0.1 * target.head.std().cpu()
    return replace(target, head=target.head + noise.to(target.head))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(CONFIG.vocab, (n,), generator=generator).tolist() for n in LENGTHS]


def serve(
    target: Model, order: range | None = None, draft: Model | None = None, **sizes: Any
) -> tuple[Engine, list[Request]]:
    """An engine, and the requests of `prompts()` that it served, arriving over some steps."""
    engine = Engine(target, archkey.open(DEVICE), replace(SIZES, **sizes), draft=draft)
    found, texts = {}, prompts()
    for i in order or range(len(texts)):
        found[i] = engine.add(texts[i], NEW)
        engine.step()
    run(engine, list(found.values()))
    return engine, [found[i] for i in range(len(texts))]


def logits(requests: list[Request]) -> torch.Tensor:
    return torch.stack([torch.stack(request.logits) for request in requests])


@pytest.mark.parametrize("draft_tokens", [1, 4], ids="n{}".format)
def test_replayed_rounds_are_the_eager_ones(target: Model, draft_tokens: int) -> None:
    """Bit for bit: a graph launches the kernels that the eager engine launches."""
    draft = often_right(target) if draft_tokens > 1 else None
    more = {"draft_tokens": draft_tokens, "draft": draft}
    engine, replayed = serve(target, **more)
    assert engine.degraded == []
    assert sorted(engine.replay.captured) == engine.replay.sizes == [1, 2, 4, 8, 12]
    plain, eager = serve(target, graphs=False, **more)
    assert plain.replay.captured == {}
    assert [r.output for r in replayed] == [r.output for r in eager]
    assert [r.accepted for r in replayed] == [r.accepted for r in eager]
    assert torch.equal(logits(replayed), logits(eager))


def test_a_capture_serves_every_length(target: Model) -> None:
    """One engine, one set of graphs: short and long requests, one after another and together."""
    engine = Engine(target, archkey.open(DEVICE), SIZES)
    graphs = dict(engine.replay.captured)
    together = engine.generate(prompts(), NEW)
    again = engine.generate(prompts(), NEW)
    assert together == again
    assert engine.replay.captured == graphs
    assert len(engine.pool.full.free) == SIZES.pages - 1
    assert len(engine.pool.swa.free) == SIZES.window_pages - 1


@pytest.mark.parametrize("draft_tokens", [1, 4], ids="n{}".format)
def test_the_same_bits_in_any_batch(target: Model, draft_tokens: int) -> None:
    """Replayed, with other neighbours, other chunks, other arrival; and alone."""
    same = {"batch_invariant": True, "linear_rows": 64}
    _, together = serve(target, **same)
    wanted = logits(together)
    draft = often_right(target) if draft_tokens > 1 else None
    backwards = range(len(LENGTHS) - 1, -1, -1)
    sizes = {"chunk_tokens": 96, "max_requests": 5, "draft_tokens": draft_tokens}
    _, other = serve(target, backwards, draft, **same, **sizes)
    assert [r.output for r in other] == [r.output for r in together]
    assert torch.equal(logits(other), wanted)
    for i in (2, 7):
        config = replace(SIZES, max_requests=1, **same)
        engine = Engine(target, archkey.open(DEVICE), config)
        request = engine.add(prompts()[i], NEW)
        run(engine, [request])
        assert torch.equal(torch.stack(request.logits), wanted[i])


def test_evicted_pages_are_never_read(target: Model) -> None:
    """NaN in every page that no request holds, before every step."""
    _, clean = serve(target)
    engine = Engine(target, archkey.open(DEVICE), SIZES)
    requests = []
    for prompt in prompts():
        requests.append(engine.add(prompt, NEW))
        poison(engine)
        engine.step()
    while not all(request.finished for request in requests):
        poison(engine)
        engine.step()
    assert [r.output for r in requests] == [r.output for r in clean]
    assert bool(logits(requests).isfinite().all())


def poison(engine: Engine) -> None:
    for layer, cache in zip(engine.target.model.layers, engine.target.caches, strict=True):
        pages = engine.pool.full if layer.kind == "full" else engine.pool.swa
        for kept in cache:
            kept[torch.tensor([0, *pages.free], device=DEVICE)] = float("nan")
