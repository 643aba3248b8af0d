# SPDX-License-Identifier: Apache-2.0
"""Outputs are those of whole sequences computed at once; pools fill, and pages come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.engine_example._dense import FULL, MIXED, SIZES, dense_greedy, prompts
from tests.engine_example.engine import Engine
from tests.engine_example.model import Model, ModelConfig, random_model

import archkey
from archkey.errors import FrozenError

MODELS = {"full": random_model(FULL, 1), "mixed": random_model(MIXED, 2)}
LENGTHS = (5, 17, 30, 3, 40)
NEW = 24


@pytest.fixture(scope="module")
def wanted() -> dict[str, list[list[int]]]:
    """Outputs of the dense recomputation."""
    return {
        name: [dense_greedy(model, prompt, NEW) for prompt in prompts(*LENGTHS)]
        for name, model in MODELS.items()
    }


def poison(engine: Engine) -> None:
    """NaN in every page that no request holds, the padding's page 0 among them."""
    for decoder in engine.decoders:
        for layer, cache in zip(decoder.model.layers, decoder.caches, strict=True):
            pages = engine.pool.full if layer.kind == "full" else engine.pool.swa
            for kept in cache:
                kept[[0, *pages.free]] = float("nan")


def idle(engine: Engine) -> bool:
    """Everything was given back."""
    pool, config = engine.pool, engine.config
    free = [set(pool.full.free), set(pool.swa.free), set(pool.rows)]
    counts = (config.pages, config.window_pages, config.max_requests + 1)
    return free == [set(range(1, count)) for count in counts] and not (
        pool.full.promised or pool.swa.promised
    )


@pytest.mark.parametrize("page_size", [1, 4, 16], ids="page{}".format)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_of_the_dense_recomputation(
    name: str, page_size: int, wanted: dict[str, list[list[int]]]
) -> None:
    pages = 4 + 256 // page_size
    config = replace(SIZES, page_size=page_size, pages=pages, window_pages=pages)
    engine = Engine(MODELS[name], archkey.open("cpu"), config)
    assert engine.generate(prompts(*LENGTHS), NEW) == wanted[name]
    assert idle(engine)


def test_the_model_has_something_to_say(wanted: dict[str, list[list[int]]]) -> None:
    """Window, softcap and sinks change tokens, so an engine that drops one is found out."""
    for change in ({"window": 96}, {"softcap": 0.0}, {"sinks": False}):
        without = replace(MODELS["mixed"], config=replace(MIXED, **change))
        if "sinks" in change:
            layers = tuple(replace(layer, sinks=None) for layer in without.layers)
            without = replace(without, layers=layers)
        assert dense_greedy(without, prompts(*LENGTHS)[4], NEW) != wanted["mixed"][4], change
    assert all(len(set(tokens)) > 4 for outputs in wanted.values() for tokens in outputs)


def test_pages_behind_the_window_are_never_read_again(wanted: dict[str, list[list[int]]]) -> None:
    engine = Engine(MODELS["mixed"], archkey.open("cpu"), SIZES)
    requests = [engine.add(prompt, NEW) for prompt in prompts(*LENGTHS)]
    most, evicted = 0, 0
    while not all(request.finished for request in requests):
        poison(engine)
        engine.step()
        for request in engine.scheduler.running:
            held, pool = request.held, engine.pool
            slots = pool.req_to_token[held.row, : request.cached].long()
            gone = held.evicted * SIZES.page_size
            assert (pool.full_to_swa[slots] == 0).tolist() == [i < gone for i in range(len(slots))]
            most, evicted = max(most, len(held.window_pages)), max(evicted, held.evicted)
    assert [request.output for request in requests] == wanted["mixed"]
    assert evicted >= (40 + NEW - MIXED.window) // 4 - 1
    # After a step the nine keys before the next query are kept; nine in a row touch three pages.
    assert most == 3
    assert idle(engine)


def test_values_that_the_engine_passes_are_valid(
    environ: Callable[..., None], wanted: dict[str, list[list[int]]]
) -> None:
    """archkey's own check of lengths, pages and bounds, in every call of a run with padding."""
    environ(ARCHKEY_VALIDATE="1")
    session = archkey.open("cpu")
    assert session.validate
    engine = Engine(MODELS["mixed"], session, SIZES)
    assert engine.generate(prompts(*LENGTHS), NEW) == wanted["mixed"]


@pytest.mark.parametrize("batch_invariant", [False, True], ids=["any bits", "same bits"])
@pytest.mark.parametrize("config", [FULL, MIXED], ids=["full", "mixed"])
def test_what_was_prepared_is_all_that_runs(
    config: ModelConfig, batch_invariant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths that the session has not seen bind nothing; each prepared Problem is used."""
    session = archkey.open("cpu")
    # Chunks of more than 16 tokens, of fewer, and of one: all that a Problem tells apart.
    sizes = replace(SIZES, batch_invariant=batch_invariant, draft_tokens=3, chunk_tokens=20)
    model = random_model(config, 1)
    engine = Engine(model, session, sizes, draft=model)
    prepared = session.fingerprint()
    assert engine.degraded == []
    used = set()
    launcher = session.launcher
    monkeypatch.setattr(session, "launcher", lambda p: used.add(repr(p)) or launcher(p))
    engine.generate(prompts(*LENGTHS, 33), NEW)
    assert session.fingerprint() == prepared
    assert used == {entry for entry in session.identity() if "Problem(" in entry}


def test_another_shape_is_an_error_after_freeze() -> None:
    session = archkey.open("cpu")
    Engine(MODELS["full"], session, SIZES)
    wider: Model = random_model(replace(FULL, hidden=96), 1)
    x = wider.embedding[:3]
    with pytest.raises(FrozenError, match="width=96.*was not prepared"):
        session.rmsnorm(x, wider.norm)
    assert session.rmsnorm(x[:, :64], MODELS["full"].norm).shape == (3, 64)
