# SPDX-License-Identifier: Apache-2.0
"""Attention over the paged cache of continuous batching, where it lies.

What transformers 5.16 and 5.17 hand over, apart from flash attention's own names:

  The cache is flat, `[slots, Hk, D]`, one tensor for keys and one for values for the i-th layer of
  every group; a group's layers are of one kind and share their slots. A block is `block_size`
  slots, and a block table exists in Python only (`block_table` is None here). Each group has
  `write_index`, the slot of each new token, and `read_index`, the slots of all of a sequence's
  tokens, one sequence after another; it is empty if no sequence has a past.

  Full attention: read_index counts the new tokens, block by block, so every block_size-th entry
  names a page.
  A window: the last `W - 1` old tokens in a ring of W slots, which starts anywhere, then one
  sentinel for each new token, which transformers takes from k and v. Several new tokens may take
  the places of old ones that the first of them still sees; then transformers gathers before it
  writes, and so do we. One new token takes the place of one that it does not see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from archkey.integrations.transformers.refusals import OP, refuse
from archkey.ops._checks import unsupported
from archkey.ops.attention import unified_attention
from archkey.ops.page_table import ragged_kv_indices_to_page_table

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch


class _Layer(NamedTuple):
    """Where a layer's tokens lie; all but `nth` is the same for all layers of its group.

    nth          which of the cache's tensors is this layer's
    window       keys that a query sees at most, itself included; 0: all
    lengths      `[B + 1]` int32, cumulative, of the keys
    longest      the most keys of a sequence, or a bound
    read, write  int64 slots, read_index and write_index of the group
    queries      the most new tokens of a sequence, or a bound
    """

    group: int
    nth: int
    window: int
    lengths: torch.Tensor
    longest: int
    read: torch.Tensor
    write: torch.Tensor
    queries: int

    @property
    def gathers(self) -> bool:
        """Whether keys have to be gathered before the new ones are written."""
        return self.window > 0 and self.queries > 1


class _Tables(NamedTuple):
    """The page tables of one forward, by group.

    batch  what they were made for; a list of transformers', a new one for each batch
    """

    batch: Any
    capturing: bool
    of: dict[int, tuple[torch.Tensor, torch.Tensor]]


_TABLES: WeakKeyDictionary[Any, _Tables] = WeakKeyDictionary()


# No graph of torch.compile: what runs is looked up by a call's metadata, which tracing would pin.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    cache: Any = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int | Mapping[str, int] = 0,
    read_index: Sequence[torch.Tensor] = (),
    write_index: Sequence[torch.Tensor] = (),
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of a batch of continuous batching; writes the new keys and values first.

    query       `[1, H, T, D]`, the tokens of all sequences, one after another
    key, value  `[1, Hk, T, D]`, of the same tokens
    cache       the PagedAttentionCache; the rest of the arguments are its batch, see above
    s_aux       `[H]` sinks, natural-log logits

    Returns `([1, T, H, D], None)`. Raises Unsupported without a cache, and as `attention` does.
    """
    refuse(module, dropout, options)
    if cache is None or cu_seq_lens_q is None:
        hint = "Use generate_batch() or a ContinuousBatchingManager, or a name without `paged|`."
        unsupported(OP, "the call", "one of continuous batching", "no cache", hint)
    layer = _layer(
        cache, module.layer_idx, cu_seq_lens_k, max_seqlen_k, read_index, write_index, max_seqlen_q
    )
    if layer.gathers:
        keys, values = cache.update(key, value, module.layer_idx, read_index, write_index)
        page_size = 1
    else:
        keys, values = cache.key_cache[layer.nth], cache.value_cache[layer.nth]
        keys.index_copy_(0, layer.write, key[0].transpose(0, 1))
        values.index_copy_(0, layer.write, value[0].transpose(0, 1))
        # Any power of two that divides a block is a page, and a table's pages are powers of two.
        page_size = 1 if layer.window else cache.block_size & -cache.block_size
    table, lengths = _table(cache, read_index, layer, len(keys), page_size)
    q = query[0].transpose(0, 1)
    out = torch.empty(*q.shape[:2], values.shape[-1], dtype=q.dtype, device=q.device)
    unified_attention(
        q,
        keys.view(-1, page_size, *keys.shape[1:]) if page_size > 1 else keys[:, None],
        values.view(-1, page_size, *values.shape[1:]) if page_size > 1 else values[:, None],
        out,
        cu_seq_lens_q,
        max_seqlen_q,
        lengths,
        layer.longest,
        q.shape[-1] ** -0.5 if scaling is None else scaling,
        True,
        (layer.window - 1, 0) if layer.window else (-1, -1),
        table,
        softcap or 0.0,
        sinks=s_aux,
    )
    return out[None], None


def _layer(
    cache: Any,
    layer_idx: int,
    lengths: Any,
    longest: Any,
    read_index: Sequence[torch.Tensor],
    write_index: Sequence[torch.Tensor],
    queries: int,
) -> _Layer:
    """What the batch says of one layer."""
    group, nth = cache.layer_index_to_group_indices[layer_idx]
    window = cache.sliding_windows[layer_idx]
    window = 0 if window == 1 else window  # transformers' word for none
    if isinstance(lengths, Mapping):  # a model of several kinds of layers
        kind = "sliding_attention" if window else "full_attention"
        lengths, longest = lengths[kind], longest[kind]
    read, write = read_index[group], write_index[group]
    return _Layer(group, nth, window, lengths, longest, read, write, queries)


def _table(
    cache: Any, batch: Sequence[torch.Tensor], layer: _Layer, tokens: int, page_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The group's page table `[B, pages]` and lengths `[B]`, int32, made once a forward.

    A graph that is being captured makes its own, or a replay would read an old one.
    """
    device = layer.lengths.device
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    tables = _TABLES.get(cache)
    if tables is None or tables.batch is not batch or tables.capturing != capturing:
        tables = _TABLES[cache] = _Tables(batch, capturing, {})
    known = tables.of.get(layer.group)
    if known is None:
        if layer.gathers:
            slots = torch.arange(tokens, dtype=torch.int32, device=device)
        else:
            slots = layer.read if layer.read.numel() else layer.write
            if layer.window:
                slots = slots.masked_scatter(slots == cache.sentinel_index, layer.write)
        shape = len(layer.lengths) - 1, -(-layer.longest // page_size)
        table = torch.empty(shape, dtype=torch.int32, device=device)
        ragged_kv_indices_to_page_table(slots, layer.lengths, table, page_size=page_size)
        known = tables.of[layer.group] = table, layer.lengths.diff()
    return known
