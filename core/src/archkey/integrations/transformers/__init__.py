# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers on `archkey.unified_attention`.

    from archkey.integrations import transformers as archkey_transformers
    archkey_transformers.register()

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="archkey")
    model.generate(**tokens)

    model.set_attn_implementation("paged|archkey")      # continuous batching
    model.generate_batch(prompts)

DeepSeek-V3 and models of its kind, over a cache of latents:

    archkey_transformers.use_mla(model)
    model.generate(**tokens)

What is outside of the contract raises `Unsupported` before any attention is computed; see
core/docs/transformers.md for what that is.
"""

from __future__ import annotations

from archkey.errors import MissingDependency
from archkey.requirements import Requirement, installed_versions

__all__ = [
    "REQUIRES",
    "LatentCache",
    "attention",
    "mask",
    "paged_attention",
    "register",
    "use_mla",
]

REQUIRES = Requirement(
    "transformers",
    ">=5.16,<5.18",
    "what a mask function and continuous batching are handed is no public interface, and 5.18 has "
    "another PagedAttentionCache",
)
"""What the tests ran with: 5.16.1 and 5.17.0. The extra `transformers` asks for the same."""

_found = installed_versions([REQUIRES.package])
if not REQUIRES.satisfied_by(_found):
    raise MissingDependency(
        f"archkey.integrations.transformers needs {REQUIRES}, found {REQUIRES.found_in(_found)}: "
        f'{REQUIRES.why}. pip install "archkey[transformers]"'
    )

# Each of these imports transformers.
from archkey.integrations.transformers.dense import attention  # noqa: E402  after the check
from archkey.integrations.transformers.latents import LatentCache  # noqa: E402  after the check
from archkey.integrations.transformers.masks import mask  # noqa: E402  after the check
from archkey.integrations.transformers.paged import paged_attention  # noqa: E402  after the check
from archkey.integrations.transformers.registry import register  # noqa: E402  after the check
from archkey.integrations.transformers.using import use_mla  # noqa: E402  after the check
