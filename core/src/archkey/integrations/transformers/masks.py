# SPDX-License-Identifier: Apache-2.0
"""What transformers calls a mask: here, which key slots each sequence has.

transformers asks the mask function once a forward for each kind of layer, and hands what it
returns to the attention of these layers, whatever it is. So this is the place for what all of
them share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from archkey.integrations.transformers.refusals import HINT, OP
from archkey.ops._checks import bad_value, unsupported

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch


@dataclass(frozen=True, eq=False)
class Spans:
    """The keys of each sequence of a batch, for all layers of one kind.

    slots    `[B, L]` int32: which of its L key slots a sequence attends to, in order; what comes
             after the first `lengths` of them means nothing
    lengths  `[B]` int32: the query tokens included
    queries  query tokens a sequence, the same for all; the last one belongs to the last slot
    window   keys that a query sees at most, itself included; None: all
    """

    slots: torch.Tensor
    lengths: torch.Tensor
    queries: int
    window: int | None
    _tables: dict[Any, Any] = field(default_factory=dict)

    # transformers asks it of what generate() prepared; 2 would be the mask of a tokenizer.
    ndim: ClassVar[int] = 4

    def table(
        self, device: torch.device, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(block_table [B, L], seqused_k [B], cu_seqlens_q [B + 1])`, all int32, on `device`.

        step  slots from one sequence's first slot to the next one's

        Made once, and kept: all layers ask for the same.
        """
        known = self._tables.get((device, step))
        if known is None:
            number = torch.arange(len(self.lengths) + 1, dtype=torch.int32, device=device)
            table = self.slots.to(device) + number[:-1, None] * step
            known = table, self.lengths.to(device), number * self.queries
            self._tables[device, step] = known
        return known


# No graph of torch.compile: what runs is looked up by a call's metadata, which tracing would pin.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | Spans | None = None,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Spans:
    """The mask function that transformers calls; names and meaning of arguments are its own.

    kv_length       L, the key slots of the layer's cache, used or not
    q_offset        position of the first query token; a tensor for a static cache
    kv_offset       position of the first slot: a window's cache forgets what came before
    attention_mask  `[B, at least q_offset + q_length]` bool, False for padding: at the left, at the
                    right, and in a call of one token anywhere

    Raises Unsupported for what is neither causal nor a causal window, and for padding between the
    tokens of a call with several. Waits for the device if there is an attention_mask, as
    transformers does for flash attention.
    """
    if isinstance(attention_mask, Spans):
        return attention_mask  # generate() makes it before the forward if the cache is static
    check_causal(mask_function, local_size)
    slot = torch.arange(kv_length, dtype=torch.int32, device=device)
    end = q_offset + q_length - kv_offset
    if attention_mask is None or bool(attention_mask.all()):
        lengths = torch.zeros(batch_size, dtype=torch.int32, device=device) + end
        return Spans(slot.expand(batch_size, -1), lengths.int(), q_length, local_size)

    if isinstance(q_offset, int):
        check_columns(attention_mask, q_offset + q_length)
    here = attention_mask[:, kv_offset : kv_offset + kv_length]
    kept = torch.nn.functional.pad(here, (0, kv_length - here.shape[1])) & (slot < end)
    if q_length > 1:
        # Queries count from the last slot backwards. Padding at the right comes after all that
        # is read and keeps its slots, so that they do.
        seen = kept.cumsum(1)
        gaps = ~kept & (seen > 0) & (seen < seen[:, -1:])
        if bool(gaps.any()):
            expected = "without padding between the tokens of a call with several"
            unsupported(OP, "attention_mask", expected, "some", "Pad at the left.")
        kept = (seen > 0) & (slot < end)
    elif local_size is not None:
        kept &= slot >= end - local_size  # a window counts padding, which is left out below
    order = (~kept).byte().argsort(dim=1, stable=True)
    return Spans(order.int(), kept.sum(1, dtype=torch.int32), q_length, local_size)


def check_causal(mask_function: Callable[..., Any], local_size: int | None) -> None:
    """Raise Unsupported unless the mask is causal, or a causal window of `local_size` keys."""
    causal = (
        causal_mask_function
        if local_size is None
        else sliding_window_causal_mask_function(local_size)
    )
    if not _same(mask_function, causal):
        found = getattr(mask_function, "__qualname__", mask_function)
        hint = "Chunks, packed sequences and tokens that see later ones are not implemented."
        unsupported(OP, "the mask", "causal, or a causal window", found, f"{hint} {HINT}")


def check_columns(attention_mask: torch.Tensor, tokens: int) -> None:
    """`attention_mask` says of each token, cached or new, whether it is padding."""
    if attention_mask.shape[1] < tokens:
        expected = f"of {tokens} columns, for what is cached and what is new"
        bad_value(OP, "attention_mask", expected, attention_mask.shape[1])


def _same(one: Any, other: Any) -> bool:
    """Whether two mask functions have the same code over the same captured values."""
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        captured = [
            tuple(cell.cell_contents for cell in function.__closure__ or ())
            for function in (one, other)
        ]
        return one.__code__ is other.__code__ and _same(*captured)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)
