# SPDX-License-Identifier: Apache-2.0
"""What `use_mla` and the attention that it sets refuse, each by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.integrations._mla_models import make
from tests.integrations._models import padded, small, tokens
from transformers import DynamicCache, StaticCache

import archkey
from archkey.errors import ArgumentTypeError, ArgumentValueError
from archkey.integrations.transformers import LatentCache, use_mla

BATCH = padded(tokens(3, 6))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def model(**options: Any) -> Any:
    """DeepSeek-V3 in bfloat16 under use_mla."""
    made = make("DeepSeek-V3", torch.bfloat16)
    use_mla(made, **options)
    return made


def test_a_model_without_latents() -> None:
    llama = small("Llama", "eager")
    with pytest.raises(archkey.Unsupported, match="one with MLA, found LlamaForCausalLM.*archkey"):
        use_mla(llama)
    assert llama.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kv_lora_rank": 256}, r"latent and rope key .* \(512, 64\), found \(256, 64\)"),
        ({"qk_rope_head_dim": 32}, r"\(512, 64\), found \(512, 32\)"),
        ({"v_head_dim": 64}, r"head dims .* found \(192, 64\)"),
    ],
)
def test_sizes(sizes: dict[str, int], message: str) -> None:
    made = make("DeepSeek-V3", torch.bfloat16, **sizes)
    with pytest.raises(archkey.Unsupported, match=message):
        use_mla(made)
    assert made.config._attn_implementation != "archkey_mla"


def test_float32() -> None:
    with pytest.raises(ArgumentTypeError, match="bfloat16 or float16, found float32"):
        use_mla(make("DeepSeek-V3"))


def test_a_projection_that_is_not_plain() -> None:
    made = make("DeepSeek-V3", torch.bfloat16)
    attention = made.model.layers[1].self_attn
    attention.kv_b_proj = torch.nn.Sequential(attention.kv_b_proj)
    with pytest.raises(
        archkey.Unsupported, match="kv_b_proj .* torch.nn.Linear without bias, found Sequential"
    ):
        use_mla(made)


def test_attention_to_chosen_keys() -> None:
    made = make("DeepSeek-V3", torch.bfloat16)
    made.model.layers[0].self_attn.indexer = torch.nn.Identity()
    with pytest.raises(archkey.Unsupported, match="attends to all keys"):
        use_mla(made)


def test_options() -> None:
    with pytest.raises(ArgumentValueError, match="page_size must be one of .* found 48"):
        model(page_size=48)
    with pytest.raises(ArgumentValueError, match="page_size must be one of .* found 7"):
        LatentCache(7)
    with pytest.raises(ArgumentValueError, match="prefix_tokens must be at least 1, found 0"):
        model(prefix_tokens=0)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_another_cache_that_holds_tokens(cache: str) -> None:
    """An empty dynamic one, which a plain forward makes, is only written."""
    made = model()
    past = DynamicCache() if cache == "dynamic" else StaticCache(made.config, max_cache_len=16)
    with pytest.raises(archkey.Unsupported, match=r"past_key_values must be a LatentCache.*pass"):
        for _ in range(2):
            made(BATCH["input_ids"], past_key_values=past)


def test_another_cache_of_generate() -> None:
    with pytest.raises(archkey.Unsupported, match="cache_implementation .* found 'static'"):
        model().generate(**BATCH, max_new_tokens=2, cache_implementation="static")


def test_its_cache_under_another_implementation() -> None:
    made = model()
    made.set_attn_implementation("sdpa")
    with pytest.raises(archkey.Unsupported, match="over a LatentCache must be 'archkey_mla'.*sdpa"):
        made(**BATCH, past_key_values=LatentCache())


def test_a_mask_that_forgets_padding() -> None:
    """The cache has no rows for padding, so a later mask must say the same."""
    made, past = model(), LatentCache()
    made(**BATCH, past_key_values=past)
    with pytest.raises(ArgumentValueError, match=r"attention_mask .* \[3, 6\] .* \[6, 6\]"):
        made(BATCH["input_ids"][:, :1], past_key_values=past)
    with pytest.raises(ArgumentValueError, match="of 7 columns, .* found 6"):
        made(
            BATCH["input_ids"][:, :1], attention_mask=BATCH["attention_mask"], past_key_values=past
        )


def test_what_no_attention_of_archkey_computes() -> None:
    made = model()
    with pytest.raises(archkey.Unsupported, match="output_attentions must be off"):
        made(**BATCH, output_attentions=True)
    own = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    with pytest.raises(
        archkey.Unsupported, match=r"attention_mask must be .* found \[2, 1, 6, 6\]"
    ):
        made(BATCH["input_ids"], attention_mask=own)
    for layer in made.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(archkey.Unsupported, match="dropout must be 0, found 0.1"):
        made.train()(**BATCH)
