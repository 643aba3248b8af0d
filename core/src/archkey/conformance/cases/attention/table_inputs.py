# SPDX-License-Identifier: Apache-2.0
"""Calls that fill page tables, as data.

Page 0 of the pool is nobody's: the window map has an index far outside there, so that a negative
slot must not be looked up as 0. Tables start stale; entries of nobody in the request table and
around a ragged list name no slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.spec import INTEGERS
from archkey.conformance.cases.tensors import NOWHERE, bounds, nowhere, spread

__all__ = ["Ragged", "Requests"]


@dataclass(frozen=True)
class _Tables:
    """What both operators have.

    lens       tokens of each sequence, drafts included
    slots, lengths   dtypes of the slots, and of kv_indptr or seq_lens
    swa        a table of the window pool, too; evicted  pages at a sequence's start that left it
    negative   slots of every third page of a sequence; 0: none
    base       added to every slot (without swa) or to every slot of the window pool
    columns, rows   what the tables have more than is needed
    gap        stale entries after each row; beside  both tables are halves of one tensor
    far        "page_table", "swa_page_table", or "req_to_token": its last row, past element 2^31
    """

    lens: tuple[int, ...]
    page: int = 16
    swa: bool = False
    fill_tail: bool = True
    slots: str = "int32"
    lengths: str = "int32"
    evicted: int = 0
    negative: int = 0
    base: int = 0
    columns: int = 2
    rows: int = 1
    gap: int = 0
    beside: bool = False
    far: str = ""

    def _slots(self, make: Maker) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """Token slots of each sequence on shuffled pages, and the arguments of both operators."""
        pages = [-(-n // self.page) for n in self.lens]
        order = 1 + make.permutation(sum(pages), torch.int64)
        offsets = torch.arange(self.page, device=make.device)
        mine = order.split(pages)
        slots = []
        for n, numbers in zip(self.lens, mine, strict=True):
            each = numbers[:, None] * self.page + offsets + (0 if self.swa else self.base)
            if self.negative:
                each[1::3] = self.negative
            slots.append(each.flatten()[:n].to(INTEGERS[self.slots]))
        tables = self._tables(make, max(pages, default=0) + self.columns)
        if self.swa:
            swa_page = 1 + make.permutation(len(order) + 1, torch.int64)
            swa_slots = swa_page[:, None] * self.page + offsets + self.base
            swa_slots[0] = nowhere(make)
            for i, numbers in enumerate(mine):
                swa_slots[numbers[: self.evicted]] = -(i % 2)
            tables["full_to_swa"] = swa_slots.flatten()
        options = {"page_size": self.page, "fill_tail": self.fill_tail}
        return slots, {**tables, **options}

    def _tables(self, make: Maker, columns: int) -> dict[str, torch.Tensor]:
        """Stale tables."""
        rows = len(self.lens) + self.rows
        stale = make.tensor([nowhere(make)]).repeat(rows, 2 * columns)
        halves = (
            (stale[:, :columns], stale[:, columns:])
            if self.beside
            else (stale[:, :columns].clone() for _ in range(2))
        )
        names = ("page_table", "swa_page_table") if self.swa else ("page_table",)
        return {
            name: self._laid(make, name, table) for name, table in zip(names, halves, strict=False)
        }

    def _laid(self, make: Maker, name: str, table: torch.Tensor) -> torch.Tensor:
        if self.far == name:
            return make.far(table)
        return table if self.beside else spread(make, table, self.gap)


@dataclass(frozen=True)
class Ragged(_Tables):
    """A call of ragged_kv_indices_to_page_table.

    around  entries of nobody before the first sequence's and after the last one's
    """

    around: int = 0

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        slots, shared = self._slots(make)
        nobody = make.tensor([nowhere(make)] * self.around, INTEGERS[self.slots])
        return {
            "kv_indices": torch.cat([nobody, *slots, nobody]),
            "kv_indptr": bounds(make, self.lens, INTEGERS[self.lengths], self.around),
            **shared,
        }


@dataclass(frozen=True)
class Requests(_Tables):
    """A call of req_to_token_to_page_table.

    draft    of the tokens, as many are drafts: seq_lens does not count them
    indices  dtype of req_pool_indices
    """

    draft: int = 0
    indices: str = "int64"

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        slots, shared = self._slots(make)
        sequences = len(self.lens)
        nobody = make.tensor([NOWHERE, -1] if make.poisons else [0, 0], INTEGERS[self.slots])
        table = nobody.repeat(2 * sequences + 1, max(self.lens, default=0) // 2 + 1)
        rows = 2 * sequences - 2 * make.permutation(sequences, torch.int64)  # the last is used
        for row, mine in zip(rows.tolist(), slots, strict=True):
            table[row, : len(mine)] = mine
        return {
            "req_to_token": self._laid(make, "req_to_token", table),
            "req_pool_indices": rows.to(INTEGERS[self.indices]),
            "seq_lens": make.tensor([n - self.draft for n in self.lens], INTEGERS[self.lengths]),
            "num_draft_tokens": self.draft,
            **shared,
        }
