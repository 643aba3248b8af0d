# SPDX-License-Identifier: Apache-2.0
"""Rounds recorded once and replayed: on the CPU, by a tape. Graphs are in test_engine_device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.engine_example._dense import MIXED, SIZES, dense_greedy, prompts
from tests.engine_example._tape import Tape, capture
from tests.engine_example.engine import Engine
from tests.engine_example.graphs import Replay, padded_sizes
from tests.engine_example.model import random_model
from tests.engine_example.test_engine import idle, poison
from torch import Tensor

import archkey

TARGET = random_model(MIXED, 2)
LENGTHS = (5, 17, 30, 3, 40)
NEW = 16


@pytest.mark.parametrize("draft_tokens", [1, 4], ids="n{}".format)
def test_a_recording_serves_every_length(draft_tokens: int) -> None:
    """Recorded with padding alone, as at the start of an engine; evicted pages hold NaN."""
    draft = random_model(MIXED, 2) if draft_tokens > 1 else None
    sizes = replace(SIZES, draft_tokens=draft_tokens)
    engine = Engine(TARGET, archkey.open("cpu"), sizes, draft=draft)
    capture(engine)
    tapes = dict(engine.replay.captured)
    assert sorted(tapes) == [1, 2, 4]
    requests = [engine.add(prompt, NEW) for prompt in prompts(*LENGTHS)]
    while not all(request.finished for request in requests):
        poison(engine)
        engine.step()
    assert [r.output for r in requests] == [dense_greedy(TARGET, r.prompt, NEW) for r in requests]
    assert engine.replay.captured == tapes
    assert idle(engine)


def test_a_length_of_the_recording_is_found_out() -> None:
    """The tape is one: a number read at the recording stays, and waiting for one is an error."""
    length = torch.tensor([3])
    read = int(length)
    with Tape() as tape:
        inside, outside = length + length, length + read
    length.fill_(5)
    tape.replay()
    assert (int(inside), int(outside)) == (10, 8)
    with pytest.raises(RuntimeError, match="waits for the device"), Tape():
        int(length)


def test_padding_has_no_query_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences in a round of four, in both models; what a graph of four is launched with."""
    sizes = replace(SIZES, draft_tokens=3)
    session = archkey.open("cpu")
    engine = Engine(TARGET, session, sizes, draft=TARGET)
    requests = [engine.add(prompt, NEW) for prompt in prompts(5, 6, 7)]
    engine.step()
    lens = [request.cached for request in requests]
    seen = []
    attention = session.unified_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append((len(q), rest[0].tolist(), rest[2].tolist()))
        return attention(q, k, v, out, *rest, **more)

    monkeypatch.setattr(session, "unified_attention", spy)
    engine.step()
    layers = len(MIXED.layers)
    drafted = [(4, [0, 1, 2, 3, 3], [n + i for n in lens] + [0]) for i in (1, 2, 3)]
    verified = (12, [0, 3, 6, 9, 9], [n + 3 for n in lens] + [0])
    assert seen == [call for call in (*drafted, verified) for _ in range(layers)]


def test_the_smallest_size_that_holds_a_batch_runs() -> None:
    replay = Replay(lambda size: (torch.tensor(size),), [8, 1, 4])
    assert [int(replay.run(rows)[0]) for rows in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]


@pytest.mark.parametrize("most", [1, 2, 3, 8, 12, 33])
def test_padded_sizes(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)
    assert all(b <= 2 * a for a, b in zip(sizes, sizes[1:], strict=False))
