# SPDX-License-Identifier: Apache-2.0
"""What the integration with transformers refuses, each by name and before it computes attention."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from tests.integrations._models import make, padded, small, tokens
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertModel,
    DynamicCache,
)
from transformers.masking_utils import create_chunked_causal_mask

import archkey
from archkey.errors import ArgumentValueError
from archkey.integrations import transformers as integration
from archkey.integrations.transformers import dense, paged

BATCH = padded(tokens(3, 6))


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    integration.register()


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("attention was computed")

    monkeypatch.setattr(dense, "unified_attention", run)
    monkeypatch.setattr(paged, "unified_attention", run)


def refused(match: str, call: Callable[..., Any], **arguments: Any) -> None:
    with torch.inference_mode(), pytest.raises(archkey.Unsupported, match=match):
        call(**arguments)


def test_dropout() -> None:
    model = make("Llama")
    model.set_attn_implementation("archkey")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    refused("dropout must be 0, found 0.1", model.train(), **BATCH)


def test_weights() -> None:
    model = small("Qwen3", "archkey")
    refused("output_attentions must be off", model, **BATCH, output_attentions=True)
    model = make("Qwen3")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    model.set_attn_implementation("archkey")
    refused("output_attentions must be off", model, **BATCH)


def test_a_mask_of_ones_own() -> None:
    own = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    ids = BATCH["input_ids"]
    refused(
        r"attention_mask must be .* found \[2, 1, 6, 6\]",
        small("Llama", "archkey"),
        input_ids=ids,
        attention_mask=own,
    )


def test_an_encoder() -> None:
    config = BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, attn_implementation="archkey",
    )  # fmt: skip
    refused("the mask must be causal", BertModel(config).eval(), **BATCH)


def test_a_module_that_is_not_causal() -> None:
    """A vision tower asks for no mask at all."""
    tower = torch.nn.Linear(1, 1)
    x = torch.zeros(1, 2, 4, 8)
    call = integration.attention
    options = {"module": tower, "query": x, "key": x, "value": x, "attention_mask": None}
    refused("must be causal, found Linear with is_causal=False", call, **options, is_causal=False)
    tower.is_causal = False  # type: ignore[assignment]
    refused("must be causal, found Linear with is_causal=False", call, **options)
    tower.is_causal = True  # type: ignore[assignment]
    refused("attention_mask must be .* found none", call, **options)


@pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices", "cu_seq_lens_q"])
def test_arguments_that_change_the_result(name: str) -> None:
    x, spans = torch.zeros(1, 2, 4, 8), integration.mask(1, 4, 4)
    options = {"query": x, "key": x, "value": x, "attention_mask": spans, name: x}
    refused(f"{name} must be off, found Tensor", integration.attention, module=None, **options)


def test_packed_sequences() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    refused(
        "the mask must be causal, .* found and_masks",
        small("Llama", "archkey"),
        input_ids=BATCH["input_ids"][1:],
        position_ids=positions,
        use_cache=False,
    )


def test_tokens_that_see_later_ones() -> None:
    config = transformers.Gemma3TextConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, intermediate_size=32, sliding_window=4,
        use_bidirectional_attention=True, attn_implementation="archkey",
    )  # fmt: skip
    refused("the mask must be causal", transformers.Gemma3TextModel(config).eval(), **BATCH)


def test_attention_in_chunks() -> None:
    config = transformers.Llama4TextConfig(attention_chunk_size=4, attn_implementation="archkey")
    refused(
        "the mask must be causal, or a causal window",
        create_chunked_causal_mask,
        config=config,
        inputs_embeds=torch.zeros(2, 6, 1),
        attention_mask=BATCH["attention_mask"],
        past_key_values=None,
    )


def test_padding_between_tokens() -> None:
    real = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    refused(
        "attention_mask must be without padding between the tokens",
        small("Llama", "archkey"),
        input_ids=BATCH["input_ids"],
        attention_mask=real,
    )


def test_a_mask_that_leaves_out_the_past() -> None:
    model = small("Llama", "archkey")
    past = DynamicCache(config=model.config)
    for layer in range(3):
        past.update(torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 16), layer)
    new = torch.tensor([[1, 1], [0, 1]])
    with pytest.raises(ArgumentValueError, match="attention_mask must be of 6 columns"):
        model(BATCH["input_ids"][:, :2], attention_mask=new, past_key_values=past)


def test_a_mask_for_other_keys() -> None:
    x, spans = torch.zeros(1, 2, 4, 8), integration.mask(1, 4, 5)
    with pytest.raises(ArgumentValueError, match="key must be of 5 slots for 4 queries"):
        integration.attention(None, x, x, x, spans)


def test_paged_attention_without_a_batch() -> None:
    refused(
        "must be one of continuous batching, found no cache",
        small("Llama", "paged|archkey"),
        **BATCH,
    )


@pytest.mark.parametrize("name", ["my_flash", "sdpa2", "flex", "eager", "a|b", "owner/kernel"])
def test_names_that_transformers_takes_for_others(name: str) -> None:
    with pytest.raises(ArgumentValueError, match="name must be an identifier without"):
        integration.register(name)


def test_a_name_that_is_taken() -> None:
    for full in ("taken", "paged|half"):
        AttentionInterface.register(full, test_dropout)
        name = full.removeprefix("paged|")
        with pytest.raises(ArgumentValueError, match=re.escape(repr(full))):
            integration.register(name)
        assert name not in AttentionMaskInterface()
    assert "half" not in AttentionInterface()


def test_registering_again_changes_nothing() -> None:
    before = dict(AttentionInterface._global_mapping)
    integration.register()
    assert dict(AttentionInterface._global_mapping) == before
    assert before["archkey"] is integration.attention
    assert before["paged|archkey"] is integration.paged_attention


@pytest.mark.parametrize(
    ("found", "said"),
    [({}, "transformers not installed"), ({"transformers": "4.57.1"}, "transformers 4.57.1")],
)
def test_another_version(found: dict[str, str], said: str, run_python: Callable[..., str]) -> None:
    """Of a transformers that is not there, or not the one: an ImportError that says what to do."""
    code = f"""
from archkey import requirements
requirements.installed_versions = lambda packages: {found!r}
try:
    import archkey.integrations.transformers
except ImportError as error:
    print(type(error).__name__, error)
"""
    message = run_python(code)
    assert message.startswith("MissingDependency ")
    assert f"needs {integration.REQUIRES}, found {said}" in message
    assert 'pip install "archkey[transformers]"' in message
