# SPDX-License-Identifier: Apache-2.0
"""A cache of latents in pages, and which of a forward's tokens go into it.

Of each token a layer keeps one row: the normalised latent, then the rotated rope key. Padding has
no row, so the sequences of a batch have the lengths that they really have.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import causal_mask_function

from archkey.integrations.transformers.masks import check_causal, check_columns
from archkey.integrations.transformers.refusals import OP
from archkey.ops._checks import bad_value, unsupported
from archkey.ops._mla_operands import PAGE_SIZES

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch

__all__ = ["LatentCache", "Latents", "NewTokens", "new_tokens"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class NewTokens:
    """The tokens of one forward, for all its layers: what transformers calls its mask.

    queries  new tokens a sequence, padding included
    cached   of each sequence, how many came before; new  how many are new; both without padding
    rows     `[T]` int64, which of the B * queries tokens are no padding; None: all
    """

    queries: int
    cached: tuple[int, ...]
    new: tuple[int, ...]
    rows: torch.Tensor | None
    _made: dict[Hashable, Any] = field(default_factory=dict)

    # transformers asks it of what generate() prepared; 2 would be the mask of a tokenizer.
    ndim: ClassVar[int] = 4

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave the first layer that asked for `key`."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    def taken(self, tokens: torch.Tensor) -> torch.Tensor:
        """Those of `[B * queries, ..]` that are no padding, `[T, ..]`."""
        return tokens if self.rows is None else tokens[self.rows.to(tokens.device)]

    def put(self, values: torch.Tensor) -> torch.Tensor:
        """`[T, ..]` as `[B * queries, ..]`, zero for padding."""
        if self.rows is None:
            return values
        whole = values.new_zeros(len(self.new) * self.queries, *values.shape[1:])
        return whole.index_copy_(0, self.rows.to(values.device), values)

    def bounds(self, device: torch.device) -> torch.Tensor:
        """cu_seqlens_q `[B + 1]` int32."""
        return self.once(("bounds", device), lambda: _bounds(self.new, device))


# No graph of torch.compile, as for `masks.mask`.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def new_tokens(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | NewTokens | None = None,
    local_size: int | None = None,
    **_: Any,
) -> NewTokens:
    """The mask function of `use_mla`; names and meaning of arguments are transformers' own.

    attention_mask  `[B, at least q_offset + q_length]` bool, False for padding, which may be
                    anywhere: it gets no row in the cache

    Raises Unsupported for what is not causal, for windows, and for static caches. Waits for the
    device if there is an attention_mask.
    """
    if isinstance(attention_mask, NewTokens):
        return attention_mask
    check_causal(mask_function, local_size)
    if local_size is not None:
        unsupported(OP, "the mask of MLA", "without a window", f"a window of {local_size}")
    if not isinstance(q_offset, int) or kv_offset:
        unsupported(OP, "past_key_values", "a LatentCache, or none", "another cache", CACHE_HINT)
    if attention_mask is None:
        return NewTokens(q_length, (q_offset,) * batch_size, (q_length,) * batch_size, None)
    check_columns(attention_mask, q_offset + q_length)
    new = attention_mask[:, q_offset : q_offset + q_length]
    counts = torch.stack([attention_mask[:, :q_offset].sum(1), new.sum(1)]).tolist()
    rows = None
    if min(counts[1], default=q_length) < q_length:
        rows = new.flatten().nonzero().squeeze(1)
    return NewTokens(q_length, tuple(counts[0]), tuple(counts[1]), rows)


CACHE_HINT = "Call generate() without a cache of your own, or pass past_key_values=LatentCache()."


class Latents(NamedTuple):
    """What the cache hands to the attention: its layer, and the new latents `[B, 1, S, rank]`."""

    layer: LatentLayer
    new: torch.Tensor


class Pages(NamedTuple):
    """Where the tokens of a forward lie.

    slots    `[T]` int64, of the new tokens in the layer's rows
    table    block_table `[B, n]` int32; lengths  cache_seqlens `[B]` int32
    longest  the most keys of a sequence
    """

    slots: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor
    longest: int


class LatentLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers' classes are untyped
    """The latents of a layer.

    keys    `[B, room, rank + rope]`, whole pages; more room is taken by a quarter of it at least
    cached  tokens of each sequence that have a row; tokens  columns seen, padding included
    """

    is_croppable = True

    def __init__(self, page_size: int) -> None:
        super().__init__()
        self.page_size = page_size
        self.cached: list[int] = []
        self.tokens = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the sizes from new latents `[B, 1, S, rank]` and rope keys `[B, 1, S, rope]`."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, width = len(key_states), key_states.shape[-1] + value_states.shape[-1]
        self.keys = key_states.new_empty(batch, 0, width)
        self.values = value_states.new_empty(0)  # a latent is both
        self.cached = [0] * batch
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Latents, torch.Tensor]:
        """Hand the new latents on to the attention, which knows what is padding and calls `add`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return Latents(self, key_states), value_states

    def add(self, tokens: NewTokens, rows: torch.Tensor) -> Pages:
        """Keep the rows `[T, rank + rope]` of the new tokens."""
        if tuple(self.cached) != tokens.cached:
            expected = f"True for the {self.cached} tokens of each sequence that are cached"
            bad_value(OP, "attention_mask", expected, f"True for {list(tokens.cached)}")
        self.tokens += tokens.queries
        self.cached = [old + new for old, new in zip(self.cached, tokens.new, strict=True)]
        batch, room, width = self.keys.shape
        need = -(-max(self.cached) // self.page_size) * self.page_size
        if need > room:
            more = -(-max(need, room + room // 4) // self.page_size) * self.page_size
            kept, self.keys = (
                self.keys,
                torch.empty((batch, more, width), dtype=self.dtype, device=self.device),
            )
            self.keys[:, :room] = kept
            room = more
        key = "pages", self.device, self.page_size, room
        pages = tokens.once(key, lambda: self._pages(tokens, room))
        self.keys.view(-1, width).index_copy_(0, pages.slots, rows)
        return pages

    def _pages(self, tokens: NewTokens, room: int) -> Pages:
        """Sequence b has the pages from b * room / page_size on."""
        starts = [b * room + old for b, old in enumerate(tokens.cached)]
        per = room // self.page_size
        table = torch.arange(len(starts) * per, dtype=torch.int32, device=self.device)
        lengths = torch.tensor(self.cached, dtype=torch.int32, device=self.device)
        slots = spans(starts, tokens.new, self.device)
        return Pages(slots, table.view(-1, per), lengths, max(self.cached))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask, and the first of them."""
        return self.tokens + query_length, 0

    def get_seq_length(self) -> int:
        """Columns seen, padding included, as positions and masks count them."""
        return self.tokens

    def get_max_length(self) -> int:
        """It grows."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.cached, self.tokens = [0] * len(self.cached), 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove columns, none of which is padding.

        A positive number is how many to keep, as transformers has it up to 5.17.
        """
        asked = int(tokens_to_remove)  # assisted decoding counts them on the device
        removed = self.tokens - asked if asked > 0 else -asked
        if removed > 0:
            self.tokens -= removed
            self.cached = [max(n - removed, 0) for n in self.cached]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """The sequences `beam_idx` in the place of those that are there."""
        self._choose(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times."""
        self._choose(torch.arange(len(self.cached)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Some of the sequences."""
        self._choose(torch.arange(len(self.cached))[indices.cpu()])

    def _choose(self, sequences: torch.Tensor) -> None:
        if self.is_initialized:
            self.keys = self.keys.index_select(0, sequences.to(self.device))
            self.cached = [self.cached[b] for b in sequences.tolist()]


class LatentCache(Cache):  # type: ignore[misc]  # transformers' classes are untyped
    """What `generate()` keeps of a model with MLA: `rank + rope` numbers a token and layer.

    page_size  tokens a page: 1, 16, 32, 64 or 128
    """

    def __init__(self, page_size: int = 64) -> None:
        if page_size not in PAGE_SIZES:
            bad_value(OP, "page_size", f"one of {PAGE_SIZES}", page_size)
        super().__init__(layer_class_to_replicate=partial(LatentLayer, page_size))


def spans(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """`[sum(lengths)]` int64: the numbers from each start on, as many as its length."""
    total = sum(lengths)
    bounds = accumulate(lengths, initial=0)
    offsets = torch.tensor([start - at for start, at in zip(starts, bounds, strict=False)])
    each = torch.tensor(lengths).to(device)
    first = offsets.to(device).repeat_interleave(each, output_size=total)
    return first + torch.arange(total, device=device)


def _bounds(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """cu_seqlens `[B + 1]` int32."""
    bounds = list(accumulate(lengths, initial=0))
    return torch.tensor(bounds, dtype=torch.int32, device=device)
