# SPDX-License-Identifier: Apache-2.0
"""Speculation changes how many tokens a round gives, and never which."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.engine_example._dense import MIXED, SIZES, dense_greedy, prompts, run
from tests.engine_example.engine import Engine
from tests.engine_example.model import Model, random_model
from tests.engine_example.speculative import accepted
from tests.engine_example.test_engine import idle, poison

import archkey

TARGET = random_model(MIXED, 2)
LENGTHS = (5, 17, 30, 3)
NEW = 16
N = 4


def often_right() -> Model:
    """The target with some noise: right most of the time."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(TARGET.head.shape, generator=generator) * 0.1 * TARGET.head.std()
    return replace(TARGET, head=TARGET.head + noise)


def never_right() -> Model:
    """The target, but its choice plus one."""
    return replace(TARGET, head=TARGET.head.roll(1, dims=0))


def first_layer() -> Model:
    """The target's own first layer, as a draft of another depth."""
    return replace(TARGET, config=replace(MIXED, layers=MIXED.layers[:1]), layers=TARGET.layers[:1])


DRAFTS = {
    "always": lambda: TARGET,
    "often": often_right,
    "never": never_right,
    "first layer": first_layer,
}


def expected_counts(draft: Model, prompt: list[int], output: list[int]) -> list[int]:
    """Proposals accepted round by round, from the draft's dense recomputation."""
    counts, known = [], 1  # the prompt's pass gives the first token
    while known < NEW:
        proposed = dense_greedy(draft, prompt + output[:known], N - 1)
        right = [a == b for a, b in zip(proposed, output[known:], strict=False)]
        counts.append((*right, False).index(False))
        known += counts[-1] + 1
    return counts


@pytest.mark.parametrize("name", DRAFTS)
def test_tokens_and_counts(name: str) -> None:
    draft, prompt_list = DRAFTS[name](), prompts(*LENGTHS)
    engine = Engine(TARGET, archkey.open("cpu"), replace(SIZES, draft_tokens=N), draft=draft)
    requests = [engine.add(prompt, NEW) for prompt in prompt_list]
    while not all(request.finished for request in requests):
        poison(engine)  # rejected tokens' pages, too
        engine.step()
        for request in engine.scheduler.running:
            assert len(request.held.pages) == -(-request.cached // SIZES.page_size)
    # Longer than was asked for: the last round looks past the end.
    outputs = [dense_greedy(TARGET, prompt, NEW + N) for prompt in prompt_list]
    assert [request.output for request in requests] == [output[:NEW] for output in outputs]
    counts = [request.accepted for request in requests]
    assert counts == [
        expected_counts(draft, *one) for one in zip(prompt_list, outputs, strict=True)
    ]
    flat = [count for one in counts for count in one]
    if name == "always":
        assert set(flat) == {N - 1}
    if name == "never":
        assert set(flat) == {0}
        assert len(flat) == len(LENGTHS) * (NEW - 1)
    if name == "often":
        assert set(flat) == {0, 1, 2, 3}
        assert sum(flat) > len(flat)
    assert idle(engine)


def test_a_step_writes_only_what_its_requests_hold() -> None:
    """Prompts alone, then mixed, then rounds; each after a request that left its pages behind."""
    sizes = replace(SIZES, draft_tokens=N, chunk_tokens=6)
    engine = Engine(TARGET, archkey.open("cpu"), sizes, draft=TARGET)
    run(engine, [engine.add(prompt, NEW) for prompt in prompts(29, 30)])  # end in one step
    requests = [engine.add(prompt, NEW) for prompt in prompts(3, 15)]
    while not all(request.finished for request in requests):
        poison(engine)
        free = [set(pages.free) for pages in (engine.pool.full, engine.pool.swa)]
        if engine.step():
            continue  # pages may have been taken, written and given back
        for decoder in engine.decoders:
            for kind, (keys, values) in zip(MIXED.layers, decoder.caches, strict=True):
                pages = engine.pool.full if kind == "full" else engine.pool.swa
                still = list(free[kind == "window"].intersection(pages.free))
                assert bool(keys[still].isnan().all() and values[still].isnan().all())


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_any_number_of_draft_tokens(n: int) -> None:
    prompt_list = prompts(6, 21)
    sizes = replace(SIZES, draft_tokens=n, max_requests=2)
    engine = Engine(TARGET, archkey.open("cpu"), sizes, draft=often_right())
    outputs = [dense_greedy(TARGET, prompt, NEW) for prompt in prompt_list]
    assert engine.generate(prompt_list, NEW) == outputs


def test_fewer_rounds() -> None:
    """What speculation is for: rounds of a request, with and without."""
    engine = Engine(TARGET, archkey.open("cpu"), replace(SIZES, draft_tokens=N), draft=TARGET)
    (prompt,) = prompts(9)
    request = engine.add(prompt, 1 + 5 * N)
    run(engine, [request])
    assert len(request.accepted) == 5


def test_the_end_may_lie_inside_a_round() -> None:
    """A round that gives more than was asked for: output and slots end where they should."""
    (prompt,) = prompts(7)
    wanted = dense_greedy(TARGET, prompt, 12)
    for new_tokens in range(1, 12):
        engine = Engine(TARGET, archkey.open("cpu"), replace(SIZES, draft_tokens=N), draft=TARGET)
        assert engine.generate([prompt], new_tokens) == [wanted[:new_tokens]]
        assert idle(engine)


def test_accepted() -> None:
    tokens = torch.tensor([[9, 1, 2, 3], [9, 1, 2, 3], [9, 1, 2, 3], [9, 1, 2, 3]])
    choices = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 4], [0, 2, 3, 4], [1, 0, 3, 4]])
    assert accepted(tokens, choices).tolist() == [3, 2, 0, 1]


def test_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="go together"):
        Engine(TARGET, archkey.open("cpu"), SIZES, draft=TARGET)
    with pytest.raises(ValueError, match="go together"):
        Engine(TARGET, archkey.open("cpu"), replace(SIZES, draft_tokens=2))
    other = random_model(replace(MIXED, window=20), 1)
    with pytest.raises(ValueError, match="share a window pool"):
        Engine(TARGET, archkey.open("cpu"), replace(SIZES, draft_tokens=2), draft=other)
