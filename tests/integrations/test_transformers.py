# SPDX-License-Identifier: Apache-2.0
"""transformers with archkey's attention gives what it gives with its own eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.integrations._models import FAMILIES, WINDOW, padded, small, tokens
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StaticCache,
)

from archkey.integrations import transformers as integration
from archkey.integrations.transformers import dense

LENGTHS = (5, 2 * WINDOW + 3, 1, WINDOW)
TOLERANCE = 2e-5  # float32 throughout; logits are of the order of 1


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    integration.register()


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_logits(family: str, side: str) -> None:
    batch = padded(tokens(*LENGTHS), side) if side != "none" else padded(tokens(WINDOW * 3) * 2)
    real = batch["attention_mask"].bool()
    want = small(family, "eager")(**batch, use_cache=False).logits[real]
    found = small(family, "archkey")(**batch, use_cache=False).logits[real]
    assert want.std() > 0.1
    torch.testing.assert_close(found, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate(family: str, cache: str) -> None:
    """Prompts padded at the left, on both sides of the window's size, and on past it."""
    options: dict[str, Any] = {
        **padded(tokens(*LENGTHS)),
        "max_new_tokens": WINDOW + 3,
        "do_sample": False,
        "cache_implementation": cache,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    want = small(family, "eager").generate(**options)
    found = small(family, "archkey").generate(**options)
    new = want.sequences[:, max(LENGTHS) :]
    assert len(set(map(tuple, new.tolist()))) == len(LENGTHS), "the prompts decide what follows"
    assert torch.equal(found.sequences, want.sequences)
    logits = torch.stack(found.logits), torch.stack(want.logits)
    torch.testing.assert_close(*logits, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_a_prompt_in_chunks(family: str, cache: Any) -> None:
    """Several queries with a past, as chunked prefill and assisted decoding have them."""
    batch = padded(tokens(*LENGTHS))
    ids, real = batch["input_ids"], batch["attention_mask"]
    want = small(family, "eager")(**batch, use_cache=False).logits
    model = small(family, "archkey")
    past = cache(config=model.config, **({"max_cache_len": 32} if cache is StaticCache else {}))
    found, start = [], 0
    for size in (2, 5, 1, 9, 2):
        end = start + size
        # A static cache takes the whole mask as well as the part of what was read.
        known = real if cache is StaticCache else real[:, :end]
        more = model(ids[:, start:end], attention_mask=known, past_key_values=past)
        found.append(more.logits)
        start = end
    assert start == ids.shape[1]
    kept = real.bool()
    torch.testing.assert_close(
        torch.cat(found, 1)[kept], want[kept], atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.parametrize("family", ["Llama", "Mistral", "GPT-OSS"])
@pytest.mark.parametrize("forgets", [True, False], ids=["window's cache", "whole cache"])
def test_decoding_after_padding_at_the_right(family: str, forgets: bool) -> None:
    """Padding then lies between what was read and what is new, and a window counts it."""
    batch = padded(tokens(WINDOW + 5, 3, WINDOW - 2), "right")
    steps = torch.tensor(tokens(4, 4, 4, seed=2))
    found = []
    for attention in ("eager", "archkey"):
        model = small(family, attention)
        past = DynamicCache(config=model.config if forgets else None)
        real, logits = batch["attention_mask"], []
        model(**batch, past_key_values=past)
        for step in range(steps.shape[1]):
            real = torch.cat([real, real.new_ones(len(real), 1)], 1)
            ids = steps[:, step : step + 1]
            logits.append(model(ids, attention_mask=real, past_key_values=past).logits)
        found.append(torch.cat(logits, 1))
    torch.testing.assert_close(found[1], found[0], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3"])
@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["beams", "lookup"]
)
def test_other_ways_to_generate(family: str, options: dict[str, int]) -> None:
    prompt = tokens(6)[0] * 4  # repeats, so that looking up finds something
    more = {"max_new_tokens": WINDOW + 2, "do_sample": False, **options}
    want = small(family, "eager").generate(**padded([prompt]), **more)
    found = small(family, "archkey").generate(**padded([prompt]), **more)
    assert torch.equal(found, want)


@pytest.mark.slow
def test_a_compiled_forward() -> None:
    """generate() compiles the forward for a static cache on a GPU; attention is left out of it."""
    batch = padded(tokens(4, 9))
    logits = []
    for attention, compiled in (("eager", False), ("archkey", True)):
        model = small("Gemma3", attention)
        forward = torch.compile(model.forward, backend="eager") if compiled else model.forward
        past = StaticCache(config=model.config, max_cache_len=16)
        forward(**batch, past_key_values=past)
        real = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
        ids = torch.tensor(tokens(1, 1, seed=3))
        logits.append(forward(ids, attention_mask=real, past_key_values=past).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=TOLERANCE, rtol=TOLERANCE)


def test_the_causal_part_of_a_model() -> None:
    """A vision tower is not causal; the language model beside it runs on archkey."""
    common = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    text = LlamaConfig(vocab_size=97, num_attention_heads=2, num_key_value_heads=1, **common)
    vision = CLIPVisionConfig(num_attention_heads=2, image_size=8, patch_size=4, **common)
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=96, image_seq_length=4
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[5, *[96] * 4, 7, 8]])
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = []
    for attention in ("eager", {"text_config": "archkey", "vision_config": "sdpa"}):
        model.set_attn_implementation(attention)
        logits.append(model(input_ids=ids, pixel_values=pixels).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=TOLERANCE, rtol=TOLERANCE)


class Calls:
    """unified_attention, and what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[Any] = []
        self.tables: list[Any] = []
        run = dense.unified_attention

        def spy(*args: Any, **options: Any) -> Any:
            self.keys.append(args[1])
            self.tables.append(args[11])
            return run(*args, **options)

        monkeypatch.setattr(dense, "unified_attention", spy)


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_the_cache_is_read_where_it_lies(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    model = small("Llama", "archkey")
    past = cache(config=model.config, **({"max_cache_len": 32} if cache is StaticCache else {}))
    model(**padded(tokens(*LENGTHS)), past_key_values=past)
    for layer, keys in zip(past.layers, calls.keys, strict=True):
        assert keys.data_ptr() == layer.keys.data_ptr()


def test_a_table_is_made_once_for_each_kind_of_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    model = small("Gemma3", "archkey")
    model(**padded(tokens(*LENGTHS)), past_key_values=DynamicCache(config=model.config))
    window, full, again = calls.tables
    assert window is again
    assert window is not full


def test_keys_and_values_that_lie_differently() -> None:
    """Keys of a cache beside values that are a view of a wider projection."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2))
    wide = torch.randn(2, 5, 3, 2, 8, generator=generator)
    v = wide[:, :, 1].transpose(1, 2)
    spans = integration.mask(2, 5, 5)
    out, weights = integration.attention(None, q, k, v, spans)
    want = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    assert weights is None
    torch.testing.assert_close(out, want.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_tables_follow_a_layer_to_its_device() -> None:
    spans = integration.mask(3, 1, 7)
    there = spans.table(torch.device("meta"), 7)
    assert [x.device.type for x in there] == ["meta"] * 3
    assert spans.table(torch.device("cpu"), 7)[0].tolist()[2] == list(range(14, 21))
