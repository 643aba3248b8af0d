# SPDX-License-Identifier: Apache-2.0
"""transformers with archkey's attention on a card, in bfloat16, against eager float32 there.

bfloat16 moves every logit, so each bound is what transformers' own eager attention in bfloat16
is off by, times a small factor.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.integrations._batches import batched, judge, likelihoods
from tests.integrations._models import FAMILIES, WINDOW, make, padded, tokens

from archkey.integrations import transformers as integration

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
    # A static cache is compiled, and torch's compiler warns of torch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
DEVICE = "cuda"
SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 64}
LENGTHS = (5, 2 * WINDOW + 3, 1, WINDOW)
NEW = WINDOW + 4
FACTOR = 3  # between the largest of some hundred errors and the largest of as many others


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    integration.register()


def pair(family: str) -> tuple[Any, Any]:
    """The same model twice: eager in float32, and in bfloat16."""
    reference = make(family, **SIZES).to(DEVICE)
    reference.set_attn_implementation("eager")
    return reference, make(family, **SIZES).to(DEVICE, torch.bfloat16)


def noise(reference: Any, model: Any, sequences: list[tuple[list[int], list[int]]]) -> float:
    """How far eager bfloat16 is from the reference on these prompts and their new tokens, nats."""
    model.set_attn_implementation("eager")
    return max(
        float((likelihoods(model, *texts) - likelihoods(reference, *texts)).abs().max())
        for texts in sequences
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family: str) -> None:
    reference, model = pair(family)
    batch = {name: x.to(DEVICE) for name, x in padded(tokens(*LENGTHS)).items()}
    real = batch["attention_mask"].bool()
    errors = {}
    with torch.inference_mode():
        want = reference(**batch).logits[real]
        for attention in ("eager", "archkey"):
            model.set_attn_implementation(attention)
            errors[attention] = (model(**batch).logits[real].float() - want).square().mean().sqrt()
    assert errors["archkey"] <= 1.5 * errors["eager"]


@pytest.mark.parametrize(
    ("family", "cache"),
    # transformers compiles the forward for a static cache; one family shows that it may.
    [*((family, "dynamic") for family in FAMILIES), ("Gemma3", "static")],
)
def test_generate(family: str, cache: str) -> None:
    reference, model = pair(family)
    model.set_attn_implementation("archkey")
    prompts = tokens(*LENGTHS)
    batch = {name: x.to(DEVICE) for name, x in padded(prompts).items()}
    found = model.generate(
        **batch, max_new_tokens=NEW, do_sample=False, cache_implementation=cache
    )[:, max(LENGTHS) :].tolist()
    sequences = list(zip(prompts, found, strict=True))
    bound = FACTOR * noise(reference, model, sequences)
    for prompt, new in sequences:
        known = likelihoods(reference, prompt, new)
        real = known.gather(1, torch.tensor(new)[:, None])[:, 0]
        assert (known.max(-1).values - real).max() <= bound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "as graphs"])
def test_batches(family: str, graphs: bool) -> None:
    """Prompts in chunks; as graphs, each replay has other slots than its capture."""
    reference, model = pair(family)
    model.set_attn_implementation("paged|archkey")
    sizes = {"block_size": 16, "num_blocks": 64, "max_batch_tokens": 64}
    prompts = tokens(5, 2 * WINDOW + 7, 1, 15 * WINDOW, WINDOW)
    found = batched(model, prompts, NEW, use_cuda_graph=graphs, **sizes)
    bound = noise(reference, model, [(x.prompt_ids, x.generated_tokens) for x in found])
    judge(reference, found, FACTOR * bound)
