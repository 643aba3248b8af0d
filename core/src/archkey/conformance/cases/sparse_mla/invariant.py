# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA with batch_invariant, and the same rows alone, in another order, among many others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from archkey.conformance.case import Arrangement, Case, Maker
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.cases.spec import describe

__all__ = ["CASES"]

Call = SparsePrefill | SparseDecode

_BATCHED = ("q", "indices", "topk_length", "extra_indices", "extra_topk_length", "out")
"""What has an entry a sequence, or a row in prefill."""
_MANY = 35
"""Entries enough to fill an H100 with tiles, where a lone one's list is split over it."""


def _again(call: Call, make: Maker) -> Iterator[Arrangement]:
    inputs = call(make)
    entries = inputs["q"].shape[0]
    each = inputs["q"].shape[:-2].numel() // entries

    def of(about: str, inputs: Mapping[str, Any], chosen: Sequence[int]) -> Arrangement:
        rows = [entry * each + t for entry in chosen for t in range(each)]
        return Arrangement(about, _chosen(inputs, entries, chosen), rows)

    for entry in range(entries):
        yield of("each alone", inputs, [entry])
    yield of("among others, in another order", inputs, [*reversed(range(entries)), 0])
    yield of("among many", inputs, [i % entries for i in range(_MANY)])
    if each > 1:
        yield Arrangement("token by token", _token_by_token(inputs), range(entries * each))


def _chosen(inputs: Mapping[str, Any], entries: int, chosen: Sequence[int]) -> Mapping[str, Any]:
    """The call of some of its entries; an output that is given is another of the same dtype."""
    taken = dict(inputs)
    for name in _BATCHED:
        whole = inputs.get(name)
        if whole is not None:
            parts = whole.view(entries, -1) if whole.dim() == 1 else whole
            part = parts[list(chosen)]
            taken[name] = part.flatten() if whole.dim() == 1 else part
    return taken


def _token_by_token(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A decode whose query tokens are sequences of their own."""
    batch, q_len = inputs["q"].shape[:2]
    taken = dict(inputs)
    for name in _BATCHED:
        whole = inputs.get(name)
        if whole is None:
            continue
        if whole.dim() == 1:
            taken[name] = whole.repeat_interleave(batch * q_len // len(whole))
        else:
            taken[name] = torch.empty_like(whole).copy_(whole).flatten(0, 1).unsqueeze(1)
    return taken


# 16 bits hide most sums in another order: lists of hundreds, and float16, which hides fewer.
_FIELDS: dict[str, Any] = {"k": 260, "out": "fp16", "lists": "tail", "invariant": True}
_P = SparsePrefill(16, 4, **_FIELDS)
_D = SparseDecode(16, 3, **_FIELDS)
_FP8: dict[str, Any] = {"kv_format": "fp8_v32", "form": "paged", "blocks": 4, "page": 32}
_MODEL1: dict[str, Any] = {"kv_format": "fp8_model1", "width": 512}

_EDGES: tuple[Call, ...] = (
    _P,
    replace(_P, tokens=2, heads=35, length=True, sink="finite"),
    replace(_P, tokens=2, heads=3, **_FP8),
    replace(_D, batch=2, q_len=2, length="batch", sink="finite"),
    replace(_D, batch=2, **_MODEL1, extra_k=70, extra_length="batch"),
)
_SERVED: dict[str, Any] = {"k": 2048, "blocks": 66, "lists": "tail", "invariant": True}
_LARGE: tuple[Call, ...] = (
    SparsePrefill(16, 60, **_SERVED | {"blocks": 4097}, length=True),
    SparseDecode(128, 5, q_len=2, page=64, **_SERVED),
    SparseDecode(64, 5, **_MODEL1, extra_k=512, extra_blocks=66, **_SERVED | {"k": 128}),
)


def _case(call: Call, **kind: bool) -> Case:
    operator = "sparse_mla_decode" if isinstance(call, SparseDecode) else "sparse_mla_prefill"
    about, again = "same bits in any batch", partial(_again, call)
    return Case(operator, about, describe(call), call, **kind, again=again)


CASES = (
    *(_case(call, edge=True) for call in _EDGES),
    *(_case(call, large=True) for call in _LARGE),
)
