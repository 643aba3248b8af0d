# SPDX-License-Identifier: Apache-2.0
"""transformers' models with latent attention on archkey's MLA operators, in bfloat16.

Each is held against eager attention in float32, and may be off by what eager attention in bfloat16
is off by, times a small factor. The same tests run on the CPU and, marked `gpu`, on a card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.integrations._batches import likelihoods
from tests.integrations._mla_models import FAMILIES, Pair
from tests.integrations._models import padded, tokens

from archkey.integrations import transformers as integration
from archkey.integrations.transformers import LatentCache, mla, use_mla
from archkey.session import session_of

LENGTHS = (5, 19, 1, 8)
ROUNDED = 1.5  # rms over thousands of numbers; what is summed in another order is rounded elsewhere
WORST = 3  # between the largest of some hundred errors and the largest of as many others
NEW = 6

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
        ],
    ),
]
pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Calls:
    """The MLA operators as a session has them, and what they were called with."""

    def __init__(self, device: str) -> None:
        self.session = session_of(torch.empty(0, device=device).device)
        self.times: Counter[str] = Counter()
        self.scales: set[float] = set()
        self.caches: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.times[name] += 1
            self.scales.add(options.get("softmax_scale", 0.0))
            if name == "mla_decode":
                self.caches.append(arguments[1])
            return getattr(self.session, name)(*arguments, **options)

        return call


def close(found: torch.Tensor, want: torch.Tensor, error: float) -> None:
    assert want.std() > 0.1
    assert float((found.float() - want).square().mean().sqrt()) <= ROUNDED * error


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits(family: str, side: str, device: str) -> None:
    pair = Pair(family, device)
    batch = padded(tokens(*LENGTHS), side)
    want, error = pair.wanted(batch)
    use_mla(pair.model)
    close(pair.logits(pair.model, batch), want, error)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_of_a_layer(family: str, device: str) -> None:
    """Of the last one, with what the layers before it gave: prompt, then token by token."""
    pair = Pair(family, device)
    batch = pair.here(padded(tokens(12, 12)))
    ids, outputs = batch["input_ids"], []
    for model, implementation in ((pair.reference, ""), (pair.model, ""), (pair.model, "mla")):
        found: list[torch.Tensor] = []
        hook = model.model.layers[-1].self_attn.register_forward_hook(
            lambda module, inputs, output, found=found: found.append(output[0].float())
        )
        if implementation:
            use_mla(model)
        past = LatentCache() if implementation else None
        for columns in (slice(0, 9), *(slice(t, t + 1) for t in range(9, 12))):
            past = model(ids[:, columns], past_key_values=past, use_cache=True).past_key_values
        hook.remove()
        outputs.append(torch.cat(found, 1))
    want, eager, ours = outputs
    close(ours, want, float((eager - want).square().mean().sqrt()))


@pytest.mark.parametrize(
    ("family", "page_size"), [*((family, 64) for family in FAMILIES), ("DeepSeek-V3", 1)]
)
def test_generate(family: str, page_size: int, device: str) -> None:
    """Each token is the likeliest, or as good as bfloat16 can tell."""
    pair = Pair(family, device)
    prompts = tokens(*LENGTHS)
    calls = Calls(device)
    use_mla(pair.model, session=calls, page_size=page_size)  # type: ignore[arg-type]
    found = pair.model.generate(**pair.here(padded(prompts)), max_new_tokens=NEW, do_sample=False)
    new = found[:, max(LENGTHS) :].tolist()
    assert len(set(map(tuple, new))) == len(LENGTHS), "the prompts decide what follows"
    layers = pair.model.config.num_hidden_layers
    assert calls.times == {"mla_prefill": layers, "mla_decode": layers * (NEW - 1)}
    attention = pair.model.model.layers[0].self_attn
    assert calls.scales == {attention.scaling}
    assert (attention.scaling > attention.qk_head_dim**-0.5) == ("YaRN" in family)
    assert {cache.shape[1:] for cache in calls.caches} == {(page_size, 576)}
    pair.model.set_attn_implementation("eager")
    for prompt, said in zip(prompts, new, strict=True):
        known, eager = (likelihoods(m, prompt, said) for m in (pair.reference, pair.model))
        real = known.gather(1, torch.tensor(said)[:, None])[:, 0]
        assert (known.max(-1).values - real).max() <= WORST * (eager - known).abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [12, 65536], ids=["prefix in parts", "prefix whole"])
def test_a_prompt_in_chunks(family: str, prefix: int, device: str) -> None:
    """Few queries read the latents, many expand them; one sequence has no prefix for long."""
    pair = Pair(family, device)
    lengths = (5, 41, 1, 24)
    batch = padded(tokens(*lengths))
    want, error = pair.wanted(batch)
    calls = Calls(device)
    use_mla(pair.model, session=calls, prefix_tokens=prefix)  # type: ignore[arg-type]
    batch = pair.here(batch)
    ids, real = batch["input_ids"], batch["attention_mask"]
    past, found, start = LatentCache(16), [], 0
    for size in (9, 12, 8, 1, 11):
        end = start + size
        more = pair.model(ids[:, start:end], attention_mask=real[:, :end], past_key_values=past)
        found.append(more.logits)
        start = end
    assert start == ids.shape[1]
    close(torch.cat(found, 1)[real.bool()], want, error)
    # Chunks 2 and 5 have more tokens than are absorbed; 9 tokens in parts of 3, and 30.
    merged = {12: 3 + 10, 65536: 1 + 1}[prefix]
    layers = pair.model.config.num_hidden_layers
    assert calls.times == {
        "mla_prefill": layers * (3 + merged),
        "merge_attn_states": layers * merged,
        "mla_decode": layers * 2,
    }
    assert [layer.cached for layer in past.layers] == [list(lengths)] * layers


def test_decoding_after_padding_at_the_right(device: str) -> None:
    """Padding lies between what was read and what is new, and takes no row of the cache."""
    pair = Pair("DeepSeek-V3", device)
    batch = pair.here(padded(tokens(13, 3, 6), "right"))
    steps = torch.tensor(tokens(4, 4, 4, seed=2), device=device)
    found = []
    for model, implementation in ((pair.reference, ""), (pair.model, ""), (pair.model, "mla")):
        if implementation:
            use_mla(model)
        real, logits = batch["attention_mask"], []
        past = LatentCache() if implementation else None
        past = model(**batch, past_key_values=past, use_cache=True).past_key_values
        for step in range(steps.shape[1]):
            real = torch.cat([real, real.new_ones(len(real), 1)], 1)
            ids = steps[:, step : step + 1]
            logits.append(model(ids, attention_mask=real, past_key_values=past).logits.float())
        found.append(torch.cat(logits, 1))
    want, eager, ours = found
    close(ours, want, float((eager - want).square().mean().sqrt()))


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 10}],
    ids=["beams", "lookup", "chunks"],
)
def test_other_ways_to_generate(options: dict[str, int], device: str) -> None:
    """What follows is as likely as what eager float32 generates in the same way."""
    pair = Pair("DeepSeek-V3", device)
    prompt = tokens(6)[0] * 4  # repeats, so that looking up finds something
    batch = pair.here(padded([prompt]))
    more = {"max_new_tokens": NEW, "do_sample": False, **options}
    use_mla(pair.model)
    texts = [m.generate(**batch, **more)[0, len(prompt) :] for m in (pair.reference, pair.model)]
    pair.model.set_attn_implementation("eager")
    chances, errors = [], []
    for new in texts:
        known, eager = (likelihoods(m, prompt, new.tolist()) for m in (pair.reference, pair.model))
        chances.append(float(known.gather(1, new.cpu()[:, None]).sum()))
        errors.append(float((eager - known).abs().max()))
    assert chances[1] >= chances[0] - WORST * max(errors) * NEW


def test_a_prompt_that_outgrows_its_pages(device: str) -> None:
    """The cache takes more room, and keeps what it has."""
    pair = Pair("DeepSeek-V3", device)
    batch = padded(tokens(40, 33))
    want, error = pair.wanted(batch)
    use_mla(pair.model)
    batch = pair.here(batch)
    past, found = LatentCache(1), []
    for t in range(40):
        real = batch["attention_mask"][:, : t + 1]
        ids = batch["input_ids"][:, t : t + 1]
        found.append(pair.model(ids, attention_mask=real, past_key_values=past).logits)
    close(torch.cat(found, 1)[batch["attention_mask"].bool()], want, error)
    assert past.layers[0].keys.shape[1] < 60


def test_the_cache_as_transformers_handles_it(device: str) -> None:
    """Sequences doubled, chosen, forgotten in part and as a whole."""
    pair = Pair("DeepSeek-V3", device)
    use_mla(pair.model)
    batch = pair.here(padded(tokens(7, 4)))
    past = LatentCache()
    pair.model(**batch, past_key_values=past)
    rows = past.layers[1].keys[:, :7].clone()
    past.batch_repeat_interleave(2)
    past.batch_select_indices(torch.tensor([0, 3], device=device))
    past.reorder_cache(torch.tensor([1, 0], device=device))
    assert past.layers[1].cached == [4, 7]
    assert torch.equal(past.layers[1].keys[1, :7], rows[0])
    assert torch.equal(past.layers[1].keys[0, :4], rows[1, :4])
    past.crop(-2)
    assert (past.layers[1].cached, past.get_seq_length()) == ([2, 5], 5)
    past.reset()
    assert (past.layers[1].cached, past.get_seq_length()) == ([0, 0], 0)


def test_another_implementation_afterwards(device: str) -> None:
    pair = Pair("DeepSeek-V3", device)
    batch = pair.here(padded(tokens(*LENGTHS)))
    more = {"max_new_tokens": 3, "do_sample": False}
    before = pair.model.generate(**batch, **more, output_logits=True, return_dict_in_generate=True)
    use_mla(pair.model)
    pair.model.set_attn_implementation("eager")
    after = pair.model.generate(**batch, **more, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(torch.stack(after.logits), torch.stack(before.logits))
    integration.register()
    pair.model.set_attn_implementation("archkey")
    assert pair.model.generate(**batch, **more).shape == after.sequences.shape


def test_the_expanded_keys_of_a_prefix_are_never_all_there(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is expanded at once is bounded by prefix_tokens, however long the prefix is."""
    pair = Pair("DeepSeek-V3", device)
    longest: list[int] = []
    run = mla.mla.mla_prefill

    def spy(q: torch.Tensor, k: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        longest.append(len(k))
        return run(q, k, *arguments, **options)

    monkeypatch.setattr(mla.mla, "mla_prefill", spy)
    use_mla(pair.model, prefix_tokens=32)
    past = LatentCache()
    batch = pair.here(padded(tokens(60, 50)))
    for columns in (slice(0, 10), slice(10, 25), slice(25, 60)):
        ids, real = batch["input_ids"][:, columns], batch["attention_mask"][:, : columns.stop]
        longest.clear()
        pair.model(ids, attention_mask=real, past_key_values=past)
        assert max(longest) <= max(32, ids.numel())
