# SPDX-License-Identifier: Apache-2.0
"""Continuous batching in a test: run it, and judge every token that it gave."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig


def batched(model: Any, prompts: list[list[int]], new: int, **sizes: Any) -> list[Any]:
    """What `generate_batch` gives for each prompt, greedily, with log-probabilities."""
    settings = {"block_size": 8, "num_blocks": 64, "max_batch_tokens": 256, **sizes}
    found = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(return_logprobs=True, **settings),
        progress_bar=False,
    )
    outputs = [found[key] for key in sorted(found, key=lambda key: int(key.rsplit("_", 1)[1]))]
    assert [output.error for output in outputs] == [None] * len(prompts)
    assert [output.prompt_ids for output in outputs] == prompts
    return outputs


def likelihoods(model: Any, prompt: list[int], new: list[int]) -> torch.Tensor:
    """Log-probabilities `[new tokens, vocabulary]` of what may follow, float32, on the CPU."""
    ids = torch.tensor([prompt + new], device=model.device)
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).cpu()


def judge(reference: Any, outputs: list[Any], tolerance: float) -> None:
    """Each token was the likeliest of `reference`'s, and as likely as it was said to be.

    tolerance  of a log-probability, in nats
    """
    for output in outputs:
        new = output.generated_tokens
        known = likelihoods(reference, output.prompt_ids, new)
        said = torch.tensor(output.logprobs)
        real = known.gather(1, torch.tensor(new)[:, None])[:, 0]
        assert (said - real).abs().max() < tolerance
        assert (known.max(-1).values - real).max() < tolerance
