# SPDX-License-Identifier: Apache-2.0
"""`use_mla`: a model of transformers whose latent attention runs on archkey's MLA operators."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface, AttentionMaskInterface

from archkey.integrations.transformers.latents import CACHE_HINT, LatentCache, Latents, new_tokens
from archkey.integrations.transformers.mla import Options, mla_attention
from archkey.integrations.transformers.refusals import OP
from archkey.ops._checks import bad_type, bad_value, dtype_name, unsupported
from archkey.ops._mla_checks import OUT_DTYPES
from archkey.ops._mla_operands import PAGE_SIZES, PREFILL_DIMS

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

NAME = "archkey_mla"
"""The attn_implementation that `use_mla` sets; without use_mla it has nothing to work with."""

LATENT = (512, 64)
"""Widths of a latent and a rope key, side by side in a row that `mla_decode` reads."""


def use_mla(
    model: Any,
    *,
    session: Session | None = None,
    page_size: int = 64,
    prefix_tokens: int = 65536,
) -> None:
    """Let `model` attend over latents, in `generate()` over a cache of latents in pages.

    model          in bfloat16 or float16, with attention as DeepSeek-V3 has it: a latent of 512 and
                   a rope key of 64, heads of 192/128 or 256/256
    session        what runs it; default: the session of its tensors' device
    page_size      tokens a page of the cache that generate() makes: 1, 16, 32, 64 or 128
    prefix_tokens  cached tokens that are expanded at once, when a prompt comes in chunks

    Another implementation that is set later works as before. Raises Unsupported for attention that
    is no such MLA, and ArgumentError for a dtype or page size that the operators do not have.
    """
    if page_size not in PAGE_SIZES:
        bad_value(OP, "page_size", f"one of {PAGE_SIZES}", page_size)
    if prefix_tokens < 1:
        bad_value(OP, "prefix_tokens", "at least 1", prefix_tokens)
    layers = [module for module in model.modules() if hasattr(type(module), "expand_kv")]
    if not layers:
        hint = 'For attention without latents there is attn_implementation="archkey".'
        unsupported(OP, "model", "one with MLA", type(model).__name__, hint)
    for layer in layers:
        _check(layer)
    for layer in layers:
        layer.archkey_mla = Options(session, prefix_tokens)
        layer.expand_kv = MethodType(_expand_kv, layer)
    AttentionInterface.register(NAME, mla_attention)
    AttentionMaskInterface.register(NAME, new_tokens)
    model.set_attn_implementation(NAME)
    if hasattr(model, "_prepare_cache_for_generation"):
        model.archkey_page_size = page_size
        model._prepare_cache_for_generation = MethodType(_prepare_cache, model)


def _check(layer: Any) -> None:
    """Whether the operators have the sizes and dtype of a layer, and where its expansion is."""
    kind = type(layer).__name__
    if hasattr(layer, "indexer"):
        hint = 'Attention to chosen keys only is not implemented here: attn_implementation="eager".'
        unsupported(OP, "model", "one that attends to all keys", kind, hint)
    row = layer.kv_lora_rank, layer.qk_rope_head_dim
    if row != LATENT:
        unsupported(OP, f"widths of latent and rope key of {kind}", str(LATENT), row)
    dims = layer.qk_nope_head_dim + layer.qk_rope_head_dim, layer.v_head_dim
    if dims not in PREFILL_DIMS:
        unsupported(OP, f"head dims of {kind}", f"one of {PREFILL_DIMS}", dims)
    if type(layer.kv_b_proj) is not torch.nn.Linear or layer.kv_b_proj.bias is not None:
        hint = "Its weight is read by itself, so it can be neither quantised nor adapted."
        found = type(layer.kv_b_proj).__name__
        unsupported(OP, f"kv_b_proj of {kind}", "a torch.nn.Linear without bias", found, hint)
    dtype = dtype_name(layer.kv_b_proj.weight)
    if dtype not in OUT_DTYPES:
        hint = "Load the model with dtype=torch.bfloat16."
        bad_type(OP, "model", " or ".join(OUT_DTYPES), dtype, hint)


def _expand_kv(self: Any, kv_nope: Any, k_rot: torch.Tensor) -> Any:
    """In the place of a layer's method: latents as they are for our implementation."""
    if self.config._attn_implementation == NAME:
        return kv_nope, k_rot
    if isinstance(kv_nope, Latents):
        found = self.config._attn_implementation
        unsupported(OP, "attn_implementation over a LatentCache", repr(NAME), repr(found))
    return type(self).expand_kv(self, kv_nope, k_rot)


def _prepare_cache(
    self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """In the place of the model's method: generate() gets a LatentCache."""
    ours = self.config._attn_implementation == NAME and generation_config.use_cache is not False
    if ours and model_kwargs.get("past_key_values") is None:
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            unsupported(OP, "cache_implementation", "None or 'dynamic'", repr(wanted), CACHE_HINT)
        model_kwargs["past_key_values"] = LatentCache(self.archkey_page_size)
        return None
    return type(self)._prepare_cache_for_generation(
        self, generation_config, model_kwargs, *args, **kwargs
    )
