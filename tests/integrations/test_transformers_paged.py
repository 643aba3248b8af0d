# SPDX-License-Identifier: Apache-2.0
"""Continuous batching of transformers on archkey's attention gives what plain eager one gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.integrations._batches import batched, judge
from tests.integrations._models import FAMILIES, WINDOW, padded, small, tokens

from archkey.integrations import transformers as integration
from archkey.integrations.transformers import paged

PROMPTS = tokens(5, 2 * WINDOW + 7, 1, 5 * WINDOW, WINDOW)
NEW = WINDOW + 4


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    integration.register()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "sizes",
    [
        # A prompt is cut where the batch is full, so that new tokens push old ones out of a
        # window's ring while the first of them still see these.
        {"block_size": 4, "num_blocks": 128, "max_batch_tokens": 24},
        {"block_size": 12, "num_blocks": 48, "max_batch_tokens": 256},  # pages are of 4 here
    ],
    ids=["chunks of 24, block 4", "whole prompts, block 12"],
)
def test_batches(family: str, sizes: dict[str, int]) -> None:
    model = small(family, "eager")
    want = []
    for prompt in PROMPTS:
        whole = model.generate(**padded([prompt]), max_new_tokens=NEW, do_sample=False)
        want.append(whole[0, len(prompt) :].tolist())
    assert len(set(map(tuple, want))) == len(PROMPTS), "the prompts decide what follows"
    found = batched(small(family, "paged|archkey"), PROMPTS, NEW, **sizes)
    assert [output.generated_tokens for output in found] == want
    judge(small(family, "eager"), found, tolerance=1e-4)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The page tables that were made, and the page size of each."""
    made: list[Any] = []
    build = paged.ragged_kv_indices_to_page_table

    def spy(slots: Any, lengths: Any, table: Any, *, page_size: int) -> Any:
        made.append((len(slots), page_size))
        return build(slots, lengths, table, page_size=page_size)

    monkeypatch.setattr(paged, "ragged_kv_indices_to_page_table", spy)
    yield made


def test_one_table_a_forward_and_group(built: list[Any]) -> None:
    """Three layers of one kind are one group; so are windows, and the one that sees everything."""
    forwards = 4  # of the prompt, and of each new token but the last
    for family, groups in (("Llama", 1), ("Gemma3", 3)):
        built.clear()
        batched(small(family, "paged|archkey"), tokens(WINDOW + 1), forwards, block_size=16)
        assert len(built) == forwards * groups


def test_pages_are_blocks_where_all_keys_are_kept(built: list[Any]) -> None:
    for block_size, page_size in ((16, 16), (12, 4), (5, 1)):
        built.clear()
        batched(small("Qwen3", "paged|archkey"), tokens(20), 3, block_size=block_size)
        assert {size for _, size in built} == {page_size}


def test_keys_are_gathered_for_chunks_in_a_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    gathered = []
    update = PagedAttentionCache.update

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        gathered.append(options.get("layer_idx", args[2] if len(args) > 2 else None))
        return update(self, *args, **options)

    monkeypatch.setattr(PagedAttentionCache, "update", spy)
    batched(small("Llama", "paged|archkey"), PROMPTS, 4, max_batch_tokens=24)
    assert gathered == []
    batched(small("Gemma3", "paged|archkey"), tokens(WINDOW * 2), 5)
    assert gathered == [0, 2], "the prompt; each later token is one alone"


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_a_prompt_of_one_token(family: str) -> None:
    """One query, as in decoding, and nothing to read yet."""
    found = batched(small(family, "paged|archkey"), tokens(1), 3)
    judge(small(family, "eager"), found, tolerance=1e-4)


def test_a_shared_prefix_is_read_from_where_it_is() -> None:
    prompt = tokens(24)[0]
    model = small("Llama", "paged|archkey")
    found = batched(model, [prompt, [*prompt, 7, 8], prompt[:16]], 6, block_size=8)
    judge(small("Llama", "eager"), found, tolerance=1e-4)
    assert found[0].generated_tokens != found[1].generated_tokens


def test_a_request_alone_is_the_same_in_company() -> None:
    model = small("GPT-OSS", "paged|archkey")
    (alone,) = batched(model, PROMPTS[:1], NEW)
    together = batched(model, PROMPTS, NEW)[0]
    assert alone.generated_tokens == together.generated_tokens
    assert torch.allclose(*(torch.tensor(x.logprobs) for x in (alone, together)), atol=1e-4)
