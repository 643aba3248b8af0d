# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention of transformers' models on archkey's MLA operators.

transformers caches latents but expands all of them to keys and values of every head at each step.
Here a step of few tokens reads the latents as they are, with the expansion absorbed into the
query and the output; prompts expand what is new, and what is cached in chunks of a fixed size.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from archkey.integrations.transformers.latents import CACHE_HINT, Latents, NewTokens, spans
from archkey.integrations.transformers.refusals import HINT, OP, refuse
from archkey.ops import mla
from archkey.ops._checks import shape_text, unsupported

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

ABSORBED = 8
"""New tokens a sequence up to which latents are read as they are.

With one key a query of DeepSeek-V3 costs 1088 multiplications a head absorbed and 320 expanded, and
the expansion 131072: up to some 170 queries absorbed does less. But decode kernels are made for few
rows, and 8 hold what speculation verifies.
"""


class Options(NamedTuple):
    """What `use_mla` was told; see there."""

    session: Session | None
    prefix_tokens: int


# No graph of torch.compile: what runs is looked up by a call's metadata, which tracing would pin.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def mla_attention(
    module: Any,
    query: torch.Tensor,
    key: Latents | torch.Tensor,
    value: torch.Tensor,
    attention_mask: NewTokens | None,
    scaling: float,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention over latents, as a module that `use_mla` prepared calls it.

    query           `[B, H, S, nope + rope]`
    key             new latents, normalised, with the cache's layer or `[B, 1, S, rank]` without
    value           new rope keys, rotated, `[B, 1, S, rope]`
    attention_mask  what `new_tokens` made
    scaling         the model's own, mscale ** 2 included

    Returns `([B, S, H, v_head_dim], None)`. Raises Unsupported for dropout, weights, a mask of the
    caller's own or another cache that holds tokens, and ArgumentError as the operators do.
    """
    refuse(module, dropout, options)
    if not isinstance(attention_mask, NewTokens):
        found = "none" if attention_mask is None else shape_text(attention_mask)
        unsupported(OP, "attention_mask", "`[B, tokens]` for the model, or None", found, HINT)
    layer, latents = key if isinstance(key, Latents) else (None, key)
    batch, heads, queries, head_dim = query.shape
    if latents.shape[2] != queries:
        found = f"{latents.shape[2] - queries} tokens of another cache"
        unsupported(OP, "past_key_values", "a LatentCache, or none", found, CACHE_HINT)
    tokens = attention_mask
    rows = tokens.taken(torch.cat([latents, value], -1).flatten(0, 2))
    q = tokens.taken(query.transpose(1, 2).reshape(batch * queries, heads, head_dim))
    call = _Call(module, tokens, q, scaling)
    pages = None if layer is None else layer.add(tokens, rows)
    if pages is None or not any(tokens.cached):
        out = call.over_new(rows)
    elif queries <= ABSORBED:
        out = call.absorbed(layer, pages)
    else:
        out = call.over_both(layer, rows)
    return tokens.put(out).view(batch, queries, heads, -1), None


class _Call:
    """The queries `[T, H, d]` of one layer, and what they are attended with."""

    def __init__(self, module: Any, tokens: NewTokens, q: torch.Tensor, scale: float) -> None:
        options: Options = module.archkey_mla
        self.ops = mla if options.session is None else options.session
        self.prefix_tokens = options.prefix_tokens
        self.expand = module.kv_b_proj
        self.rank, self.nope = module.kv_lora_rank, module.qk_nope_head_dim
        self.tokens, self.q, self.scale = tokens, q, scale

    def over_new(self, rows: torch.Tensor) -> Any:
        """Over new tokens alone."""
        return self._prefill(rows, self.tokens.bounds(rows.device), max(self.tokens.new), True)

    def absorbed(self, layer: Any, pages: Any) -> torch.Tensor:
        """Over the latents of all tokens: `k_b` goes into the query, `v_b` into the output."""
        tokens, q = self.tokens, self.q
        weight = self.expand.weight.view(q.shape[1], -1, self.rank)
        k_b, v_b = weight[:, : self.nope], weight[:, self.nope :]  # [H, nope or v, rank]
        nope = torch.bmm(q[..., : self.nope].transpose(0, 1), k_b).transpose(0, 1)
        q = torch.cat([nope, q[..., self.nope :]], -1)
        ragged = {} if tokens.rows is None else {"cu_seqlens_q": tokens.bounds(q.device)}
        out = self.ops.mla_decode(
            q if ragged else q.unflatten(0, (-1, tokens.queries)),
            layer.keys.view(-1, layer.page_size, q.shape[-1]),
            pages.table,
            pages.lengths,
            softmax_scale=self.scale,
            head_dim_v=self.rank,
            max_seqlen_q=max(tokens.new),
            max_seqlen_k=pages.longest,
            **ragged,
        )
        latent = out.flatten(0, -3).transpose(0, 1)  # [H, T, rank]
        return torch.bmm(latent, v_b.transpose(1, 2)).transpose(0, 1)

    def over_both(self, layer: Any, rows: torch.Tensor) -> torch.Tensor:
        """Over new tokens, and over cached ones in chunks, each merged with what was before."""
        device = rows.device
        out, lse = self._prefill(
            rows, self.tokens.bounds(device), max(self.tokens.new), True, return_lse=True
        )
        batch, room, width = layer.keys.shape
        size = max(self.prefix_tokens // batch, 1)
        key = "prefix", device, room, size
        for index, bounds, longest in self.tokens.once(key, lambda: self._chunks(size, room)):
            chunk = layer.keys.view(-1, width)[index]
            part = self._prefill(chunk, bounds, longest, False, return_lse=True)
            self.ops.merge_attn_states(out, lse, *part, out=out, lse=lse)
        return out  # type: ignore[no-any-return]

    def _chunks(self, size: int, room: int) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
        """Cached tokens, up to `size` of each sequence: rows of the layer, bounds, the longest."""
        cached, device = self.tokens.cached, self.q.device
        chunks = []
        for start in range(0, max(cached), size):
            lengths = [min(max(n - start, 0), size) for n in cached]
            index = spans([b * room + start for b in range(len(cached))], lengths, device)
            bounds = torch.tensor([*accumulate(lengths, initial=0)], dtype=torch.int32)
            chunks.append((index, bounds.to(device), max(lengths)))
        return chunks

    def _prefill(
        self, rows: torch.Tensor, bounds: torch.Tensor, longest: int, causal: bool, **more: bool
    ) -> Any:
        """Over expanded `rows` `[Tk, rank + rope]` with their cu_seqlens."""
        tokens, heads = self.tokens, self.q.shape[1]
        expanded = self.expand(rows[:, : self.rank]).unflatten(-1, (heads, -1))
        rope = rows[:, None, self.rank :].expand(-1, heads, -1)
        return self.ops.mla_prefill(
            self.q,
            torch.cat([expanded[..., : self.nope], rope], -1),
            expanded[..., self.nope :],
            tokens.bounds(rows.device),
            bounds,
            max(tokens.new),
            longest,
            softmax_scale=self.scale,
            causal=causal,
            **more,
        )
