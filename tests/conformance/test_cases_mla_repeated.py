# SPDX-License-Identifier: Apache-2.0
"""MLA's cases that compute a row more than once: in any batch, and with every split count."""

from __future__ import annotations

import math
from collections import Counter
from itertools import count

import pytest
import torch
from tests.conformance import _wrong
from tests.conformance._wrong import Mistake, Right, Values, Wrong, given, named

import archkey
from archkey.conformance.case import Maker
from archkey.conformance.judge import judge
from archkey.reference import mla as reference

ANY_BATCH = "same bits in any batch"
DECODES = f"{ANY_BATCH}: kv_lens=260-7-40-4-16, page=1, dtype=fp16"
PREFILLS = f"{ANY_BATCH}: k_lens=130-7-70-33-3, heads=1"
SPLITS = "every split count, time and again: kv_lens=150-0-5"


def decode_in_two(cut: str) -> Wrong:
    """Values are added up in two parts; `cut` is how many keys the first one has."""
    whole = "            out[rows] = p @ kv[:, :head_dim_v]\n"
    parts = (
        f"            cut = {cut}\n"
        "            v = kv[:, :head_dim_v]\n"
        "            out[rows] = p[..., :cut] @ v[:cut] + p[..., cut:] @ v[cut:]\n"
    )
    return _wrong.mutant(reference.mla_decode, (whole, parts))


def prefill_in_two(cut: str) -> Wrong:
    """As `decode_in_two`."""
    product = 'torch.einsum("nhm,mhv->nhv", p{p}, values[used]{v})'.replace("nhm", "hnm")
    whole = f"            out[rows] = {product.format(p='', v='')}\n"
    first = product.format(p="[..., :cut]", v="[:cut]")
    second = product.format(p="[..., cut:]", v="[cut:]")
    parts = f"            cut = {cut}\n            out[rows] = {first} + {second}\n"
    return _wrong.mutant(reference.mla_prefill, (whole, parts))


def in_parts(right: Right, inputs: Values, outputs: Values) -> Values:
    """Each part of the keys divided by its own sum: a part without keys is 0 / 0."""
    results = right(**inputs)
    parts = inputs["num_splits"]
    short = inputs["cache_seqlens"] < parts
    for b in (short & (inputs["cache_seqlens"] > 0)).nonzero().flatten().tolist():
        bounds = inputs["cu_seqlens_q"]
        rows = slice(b, b + 1) if bounds is None else slice(int(bounds[b]), int(bounds[b + 1]))
        results["out"][rows] = math.nan
    return results


def every_other_call(least: int) -> Wrong:
    """Right at first; NaN in every other one of identical calls, with many splits."""
    calls = count()

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = right(**inputs)
        if inputs["num_splits"] >= least and next(calls) % 2:
            results["out"][:1] = math.nan
        return results

    return wrong


def by_arrival(right: Right, inputs: Values, outputs: Values) -> Values:
    """Parts are added by whichever comes first: the last bits are another call's."""
    results = right(**inputs)
    noise = torch.rand(results["lse"].shape) * 1e-6
    return results | {"lse": results["lse"] + noise}


MISTAKES: tuple[Mistake, ...] = (
    ("mla_decode", "batch_invariant ignored", DECODES, given(batch_invariant=False)),
    ("mla_decode", "split by the batch", DECODES, decode_in_two("len(kv) // len(first_rows)")),
    ("mla_decode", "split by the bound of keys", DECODES, decode_in_two("max_seqlen_k // 2")),
    (
        *("mla_decode", "split by the bound of queries", DECODES),
        decode_in_two("len(kv) // (1 + max_seqlen_q)"),
    ),
    (
        *("mla_decode", "split by the page", DECODES),
        decode_in_two("int(block_table[b, 0]) % max(len(kv), 1)"),
    ),
    (
        *("mla_decode", "one split is another kernel", DECODES),
        decode_in_two("0 if num_splits else len(kv) // 2"),
    ),
    (
        *("mla_decode", "what is ragged is another kernel", DECODES),
        decode_in_two("0 if cu_seqlens_q is None else len(kv) // 2"),
    ),
    ("mla_prefill", "batch_invariant ignored", PREFILLS, given(batch_invariant=False)),
    (
        *("mla_prefill", "split by the batch", PREFILLS),
        prefill_in_two("len(keys[used]) // len(cu_seqlens_q)"),
    ),
    ("mla_prefill", "split by the bound of keys", PREFILLS, prefill_in_two("max_seqlen_k // 2")),
    (
        *("mla_prefill", "split by the bound of queries", PREFILLS),
        prefill_in_two("len(keys[used]) // (1 + max_seqlen_q)"),
    ),
    (
        *("mla_prefill", "split by where the sequence begins", PREFILLS),
        prefill_in_two("(q_start + k_start) % (1 + len(keys[used]))"),
    ),
    ("mla_decode", "parts without keys", SPLITS, in_parts),
    ("mla_decode", "NaN in every other call", f"{SPLITS}, splits=16", every_other_call(16)),
    ("mla_decode", "parts by arrival", SPLITS, by_arrival),
)


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)


@pytest.mark.parametrize(("operator", "times"), [("mla_decode", 9), ("mla_prefill", 5)])
def test_arrangements_are_other_calls_for_the_same_rows(operator: str, times: int) -> None:
    """Each row is computed again alone, in another batch, in a chunk and as a decode."""
    case = named(operator, ANY_BATCH)[0]
    own = case.inputs(Maker())
    seen: Counter[int] = Counter()
    assert case.again is not None
    for _, inputs, rows in case.again(Maker()):
        q = inputs["q"].reshape(len(rows), *own["q"].shape[1:])
        assert torch.equal(q, own["q"][list(rows)])
        assert inputs["batch_invariant"]
        seen.update(rows)
    assert set(seen) == set(range(len(own["q"])))
    assert min(seen.values()) == times


def test_what_differs_in_a_call_that_is_not_ragged_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A case of `[B, 4, H, d]`, and one number wrong in each row of its calls of `[T, 1, H, d]`."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = right(**inputs)
        if inputs["q"].dim() == 4 and inputs["q"].shape[1] == 1:
            results["out"][:, 0, 0, 0] *= 1.001
        return results

    _wrong.put_in_place(monkeypatch, wrong)
    [case] = [case for case in named("mla_decode", ANY_BATCH) if "q_lens=4," in case.label]
    result = judge(archkey.open("cpu"), case)
    assert (result.error, result.passed) == (12, False)
    assert result.reason == "out: token by token, not ragged"


def test_split_counts_agree_on_the_same_numbers() -> None:
    """Cases of unlike counts have one truth: what each is near, all are near."""
    calls = [
        case.inputs(Maker())
        for case in named("mla_decode", SPLITS)
        if case.edge and case.label.startswith("heads=16, kv_lens=150-0-5, splits=")
    ]
    assert [call["num_splits"] for call in calls] == [1, 2, 3, 7, 16, 40]
    for call in calls[1:]:
        assert torch.equal(call["q"], calls[0]["q"])
        assert torch.equal(call["cache_seqlens"], calls[0]["cache_seqlens"])
