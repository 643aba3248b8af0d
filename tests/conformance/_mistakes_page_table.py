# SPDX-License-Identifier: Apache-2.0
"""What builders of page tables easily do wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tests.conformance._wrong import (
    Mistake,
    Right,
    Values,
    Wrong,
    contiguous,
    given,
    read_in_32_bits,
    written_in_32_bits,
)


def _first_slots(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    page = inputs["page_size"]
    if "kv_indptr" in inputs:
        starts = inputs["kv_indptr"].tolist()
        pairs = zip(starts, starts[1:], strict=False)
        return [inputs["kv_indices"][a:b:page] for a, b in pairs]
    lens = (inputs["seq_lens"] + inputs["num_draft_tokens"]).tolist()
    rows = inputs["req_pool_indices"].tolist()
    return [inputs["req_to_token"][r, :n:page] for r, n in zip(rows, lens, strict=True)]


def pages(name: str, page_of: Callable[[torch.Tensor, Any], torch.Tensor]) -> Wrong:
    """One table by another rule: `page_of(first slots, inputs)` of each sequence."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        tables = right(**inputs)
        for row, slots in enumerate(_first_slots(inputs)):
            if tables[name] is not None:
                tables[name][row, : len(slots)] = page_of(slots, inputs)
        return tables

    return wrong


def _floor(slots: torch.Tensor, inputs: Any) -> torch.Tensor:
    return slots // inputs["page_size"]


def _truncated(slots: torch.Tensor, inputs: Any) -> torch.Tensor:
    return torch.div(slots, inputs["page_size"], rounding_mode="trunc")


def _through_slot_0(slots: torch.Tensor, inputs: Any) -> torch.Tensor:
    return inputs["full_to_swa"][slots.clamp(min=0).long()].clamp(min=0) // inputs["page_size"]


def _evicted_by_floor(slots: torch.Tensor, inputs: Any) -> torch.Tensor:
    return inputs["full_to_swa"][slots.clamp(min=0).long()] // inputs["page_size"]


def _int32(slots: torch.Tensor, inputs: Any) -> torch.Tensor:
    return slots.int() // inputs["page_size"]


def _mapped_in_int32(slots: torch.Tensor, inputs: Any) -> torch.Tensor:
    return inputs["full_to_swa"].int()[slots.long()] // inputs["page_size"]


def no_drafts(right: Right, inputs: Values, outputs: Values) -> Values:
    return right(**inputs | {"num_draft_tokens": 0})


def whole_tables(right: Right, inputs: Values, outputs: Values) -> Values:
    """Tails are written in the rows of nobody, too."""
    tables = right(**inputs)
    sequences = len(_first_slots(inputs))
    for table in tables.values():
        if table is not None:
            table[sequences:] = 0
    return tables


def first_1024(right: Right, inputs: Values, outputs: Values) -> Values:
    tables = right(**inputs)
    for name, table in tables.items():
        if table is not None:
            table[:, 1024:] = outputs[name][:, 1024:]
    return tables


def one_page_short(right: Right, inputs: Values, outputs: Values) -> Values:
    """Pages by floor(len / page_size)."""
    tables = right(**inputs)
    full = tables["page_table"]
    for row, slots in enumerate(_first_slots(inputs)):
        full[row, max(len(slots) - 1, 0) : len(slots)] = 0
    return tables


_BOTH: tuple[tuple[str, str, Wrong], ...] = (
    ("negative slots by floor", "negative slots are page 0", pages("page_table", _floor)),
    ("negative slots by truncation", "negative slots are page 0", pages("page_table", _truncated)),
    ("map entry of slot 0", "negative slots are page 0", pages("swa_page_table", _through_slot_0)),
    (
        "evicted slots by floor",
        "evicted slots are page 0",
        pages("swa_page_table", _evicted_by_floor),
    ),
    ("window table not mapped", "four sequences: swa", pages("swa_page_table", _floor)),
    ("slots in 32 bits", "slots past 2^31", pages("page_table", _int32)),
    (
        "window slots in 32 bits",
        "window slots past 2^31",
        pages("swa_page_table", _mapped_in_int32),
    ),
    ("tail stays", "stale tail", given(fill_tail=False)),
    ("tail goes", "tail is kept", given(fill_tail=True)),
    ("rows of nobody are written", "rows past the last sequence are kept", whole_tables),
    ("one block of columns", "more columns than a block", first_1024),
    ("one block of columns", "more columns of tail than a block", first_1024),
    ("last page left out", "pages just full", one_page_short),
    ("32-bit offsets", "far page_table", written_in_32_bits("page_table")),
    ("32-bit offsets", "far swa_page_table", written_in_32_bits("swa_page_table")),
)

_RAGGED: tuple[tuple[str, str, Wrong], ...] = (
    ("list from entry 0", "sequences do not start at entry 0", given(kv_indptr=lambda x: x - x[0])),
)

_REQUESTS: tuple[tuple[str, str, Wrong], ...] = (
    ("drafts left out", "draft tokens count", no_drafts),
    ("rows in order", "four sequences", given(req_pool_indices=lambda x: x.sort().values)),
    ("as if contiguous", "rows apart", contiguous("req_to_token")),
    ("32-bit offsets", "far req_to_token", read_in_32_bits("req_to_token")),
)

_NAMES = ("ragged_kv_indices_to_page_table", "req_to_token_to_page_table")
MISTAKES: tuple[Mistake, ...] = (
    *((name, *row) for name in _NAMES for row in _BOTH),
    *((_NAMES[0], *row) for row in _RAGGED),
    *((_NAMES[1], *row) for row in _REQUESTS),
)
