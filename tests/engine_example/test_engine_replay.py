# SPDX-License-Identifier: Apache-2.0
"""Rounds recorded once and replayed: on the CPU, by a tape. Graphs are in test_engine_device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.engine_example._dense import MIXED, SIZES, dense_greedy, prompts
from tests.engine_example._tape import Tape, capture
from tests.engine_example.engine import Engine
from tests.engine_example.graphs import padded_sizes
from tests.engine_example.model import random_model
from tests.engine_example.test_engine import idle, poison

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


@pytest.mark.parametrize("most", [1, 2, 3, 8, 12, 33])
def test_padded_sizes(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)
    assert all(b <= 2 * a for a, b in zip(sizes, sizes[1:], strict=False))
