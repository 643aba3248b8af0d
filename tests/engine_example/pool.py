# SPDX-License-Identifier: Apache-2.0
"""Pages of the caches: who holds which, and the tables on the device that say so.

A *slot* is a token's place in the cache, `page * page_size + offset`. `req_to_token` has a row of
slots for each request. Layers with a window have a second, smaller pool: `full_to_swa` gives for
each slot the one that these layers use, and pages that every later query has left behind go back.

The host decides and keeps lists; the device's tables are written in place, so a captured graph
finds what changed since its capture. Page 0 of both pools belongs to nobody: tokens that pad a
batch write there, and an evicted slot is mapped there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Pages:
    """The free pages of one pool, and how many of all are promised to requests."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = list(range(count - 1, 0, -1))
        self.promised = 0

    def promise(self, pages: int) -> None:
        """Set pages aside (or, with a negative number, no more), so that taking cannot fail."""
        self.promised += pages

    def spare(self, pages: int) -> bool:
        """Whether so many can be promised now."""
        return self.promised + pages <= self.count - 1


@dataclass
class Holding:
    """What one request has: its row of `req_to_token`, and its pages in order.

    evicted  leading pages whose part in the window pool was given back; window_pages has the rest
    """

    row: int
    promised: tuple[int, int]
    pages: list[int] = field(default_factory=list)
    window_pages: list[int] = field(default_factory=list)
    evicted: int = 0


class Pool:
    """Token slots for all requests.

    pages, window_pages  sizes of the two pools, page 0 included
    context  longest sequence [tokens]
    window   keys that a query of a window layer sees, itself included; 0: there is no such layer
    stride   most tokens that a request gains in a step
    """

    def __init__(
        self,
        *,
        page_size: int,
        pages: int,
        window_pages: int,
        requests: int,
        context: int,
        window: int,
        stride: int,
        device: torch.device,
    ) -> None:
        self.page_size, self.window, self.stride = page_size, window, stride
        self.columns = -(-context // page_size)
        self.full, self.swa = Pages(pages), Pages(window_pages)
        # Row 0, like page 0, is for padding.
        self.rows = list(range(requests, 0, -1))
        width = self.columns * page_size
        self.req_to_token = torch.zeros(requests + 1, width, dtype=torch.int32, device=device)
        slots = pages * page_size
        self.full_to_swa = torch.zeros(slots, dtype=torch.int64, device=device) if window else None
        self._offsets = torch.arange(page_size, device=device)

    def need(self, tokens: int) -> tuple[int, int]:
        """Pages of either pool that a sequence of `tokens` holds at most."""
        pages = self._pages(tokens)
        if not self.window:
            return pages, 0
        # At worst a run of `kept` tokens starts on the last slot of a page.
        kept = self.window - 1 + self.stride
        return pages, min(pages, self._pages(kept - 1) + 1)

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of `tokens` could ever be held."""
        full, swa = self.need(tokens)
        within = self._pages(tokens) <= self.columns
        return within and full < self.full.count and (swa < self.swa.count or not self.window)

    def admit(self, tokens: int) -> Holding | None:
        """Promise a request the pages of `tokens`; None: it has to wait."""
        full, swa = self.need(tokens)
        if not (self.rows and self.full.spare(full) and self.swa.spare(swa)):
            return None
        self.full.promise(full)
        self.swa.promise(swa)
        return Holding(self.rows.pop(), (full, swa))

    def grow(self, holding: Holding, tokens: int) -> None:
        """Give the first `tokens` tokens their slots."""
        for block in range(len(holding.pages), self._pages(tokens)):
            page = self.full.free.pop()
            holding.pages.append(page)
            slots = page * self.page_size + self._offsets
            first = block * self.page_size
            self.req_to_token[holding.row, first : first + self.page_size] = slots
            if self.full_to_swa is not None:
                window_page = self.swa.free.pop()
                holding.window_pages.append(window_page)
                self._map(page, window_page * self.page_size + self._offsets)

    def settle(self, holding: Holding, tokens: int) -> None:
        """Keep `tokens` tokens: give back what lies past them, and what the window has left."""
        while len(holding.pages) > self._pages(tokens):
            self.full.free.append(holding.pages.pop())
            if self.window:
                self.swa.free.append(holding.window_pages.pop())
        if not self.window:
            return
        # The next query is at position `tokens`.
        left_behind = max(tokens - (self.window - 1), 0) // self.page_size
        while holding.evicted < left_behind:
            self.swa.free.append(holding.window_pages.pop(0))
            self._map(holding.pages[holding.evicted], 0)
            holding.evicted += 1

    def release(self, holding: Holding) -> None:
        """Take everything back."""
        self.full.free += holding.pages
        self.swa.free += holding.window_pages
        full, swa = holding.promised
        self.full.promise(-full)
        self.swa.promise(-swa)
        self.rows.append(holding.row)

    def slots(self, rows: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Slots by kind of layer, int64, of the tokens at `positions` of `rows`."""
        full = self.req_to_token[rows, positions].flatten().long()
        if self.full_to_swa is None:
            return {"full": full}
        return {"full": full, "window": self.full_to_swa[full]}

    def tables(self, sequences: int) -> tuple[Tensor, Tensor | None]:
        """New page tables for `sequences`: of the full layers, and of those with a window."""
        full = self._offsets.new_zeros(sequences, self.columns, dtype=torch.int32)
        return full, None if self.full_to_swa is None else full.clone()

    def _map(self, page: int, slots: Tensor | int) -> None:
        if self.full_to_swa is not None:
            first = page * self.page_size
            self.full_to_swa[first : first + self.page_size] = slots

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)


def by_kind(tables: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The two page tables by kind of layer."""
    return {k: t for k, t in zip(("full", "window"), tables, strict=True) if t is not None}
