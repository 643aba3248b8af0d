# SPDX-License-Identifier: Apache-2.0
"""The cases of MLA: each wrong kernel fails where it is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import find, settings
from hypothesis.errors import NoSuchExample
from tests.conformance import _wrong
from tests.conformance._wrong import (
    Mistake,
    Right,
    Values,
    Wrong,
    codes_of_the_other_flavour,
    contiguous,
    given,
    read_in_32_bits,
    stored,
    written_in_32_bits,
)

from archkey.conformance.cases import mla


def test_random_of_a_stranger_is_nothing() -> None:
    assert mla.random("rmsnorm") is None


def test_a_larger_size_draws_longer_sequences() -> None:
    def is_long(case: Any) -> bool:
        return max(case.inputs.kv_lens) > 150

    quiet = settings(max_examples=100, derandomize=True, database=None)
    assert find(mla.random("mla_decode", 4), is_long, settings=quiet)
    with pytest.raises(NoSuchExample):
        find(mla.random("mla_decode", 1), is_long, settings=quiet)


# ---- wrong kernels


def _twice(descale: Any) -> Any:
    return descale * descale


def _empty_rows_unwritten(right: Right, inputs: Values, outputs: Values) -> Values:
    results = right(**inputs)
    empty = results["lse"] == -torch.inf
    out = results["out"].flatten(0, -3)
    results["out"] = out.masked_fill(empty[..., None], torch.nan).view_as(results["out"])
    return results


def _stops_at_an_idle_sequence(right: Right, inputs: Values, outputs: Values) -> Values:
    """Returns where it should have gone on."""
    results = right(**inputs)
    bounds = inputs["cu_seqlens_q"].tolist()
    first = next(b for b in range(len(bounds) - 1) if bounds[b] == bounds[b + 1])
    for name in results:
        results[name][bounds[first] :] = torch.nan
    return results


def _spare_rows_unwritten(right: Right, inputs: Values, outputs: Values) -> Values:
    results = right(**inputs)
    results["out"][int(inputs["cu_seqlens_q"][-1]) :] = torch.nan
    return results


def _v_unmasked(right: Right, inputs: Values, outputs: Values) -> Values:
    """Adds 0 * V of the slots that follow in the last page."""
    results = right(**inputs)
    page = inputs["kv_cache"].shape[1]
    for b, length in enumerate(inputs["cache_seqlens"].tolist()):
        if length % page:
            block = inputs["kv_cache"][int(inputs["block_table"][b, length // page])]
            rest = block[length % page :, : inputs["head_dim_v"]]
            results["out"][b] += (0 * rest.float()).sum(0)
    return results


def _reads_the_whole_table(right: Right, inputs: Values, outputs: Values) -> Values:
    """Masks what it read of pages that do not exist, but reads it."""
    inputs["kv_cache"].index_select(0, inputs["block_table"].flatten())
    return right(**inputs)


def _pages_of_16(right: Right, inputs: Values, outputs: Values) -> Values:
    """Looks for position j in the page at j // 16."""
    cache, table = inputs["kv_cache"], inputs["block_table"]
    page = cache.shape[1]
    j = torch.arange(table.shape[1] * page)
    blocks = table[:, (j // 16).clamp_max(table.shape[1] - 1)].clamp(0, len(cache) - 1)
    slots = blocks * page + (j % 16).clamp_max(page - 1)
    return right(**inputs | {"kv_cache": cache.flatten(0, 1)[:, None], "block_table": slots})


def _low_columns(count: int) -> Any:
    def cut(q: torch.Tensor) -> torch.Tensor:
        return torch.cat([q[..., :count], torch.zeros_like(q[..., count:])], dim=-1)

    return cut


def _columns_of_a_power_of_two(out: torch.Tensor) -> torch.Tensor:
    whole = 1 << (out.shape[-1].bit_length() - 1)
    return out.index_fill(-1, torch.arange(whole, out.shape[-1]), torch.nan)


def _heads_by_16(right: Right, inputs: Values, outputs: Values) -> Values:
    """Writes whole tiles of 16 heads only."""
    results = right(**inputs)
    whole = results["out"].shape[-2] // 16 * 16
    results["out"][..., whole:, :] = torch.nan
    return results


def _rows_by_head(out: torch.Tensor) -> torch.Tensor:
    """Packed rows unpacked as if heads came first."""
    batch, q_len, heads, width = out.shape
    return out.view(batch, heads, q_len, width).transpose(1, 2)


def _top_left(right: Right, inputs: Values, outputs: Values) -> Values:
    """Query i sees the keys up to i, which are those of the first n when there are n queries."""
    if "kv_cache" in inputs:
        queries = inputs["q"].shape[1]
        return right(**inputs | {"cache_seqlens": inputs["cache_seqlens"].clamp_max(queries)})
    q_bounds, k_bounds = inputs["cu_seqlens_q"].tolist(), inputs["cu_seqlens_k"].tolist()
    kept, bounds = [], [0]
    for b in range(len(q_bounds) - 1):
        count = min(q_bounds[b + 1] - q_bounds[b], k_bounds[b + 1] - k_bounds[b])
        kept += range(k_bounds[b], k_bounds[b] + count)
        bounds.append(len(kept))
    parts = {"k": inputs["k"][kept], "v": inputs["v"][kept], "cu_seqlens_k": torch.tensor(bounds)}
    return right(**inputs | parts)


def _longest_for_all(right: Right, inputs: Values, outputs: Values) -> Values:
    longest = torch.full_like(inputs["cache_seqlens"], inputs["max_seqlen_k"])
    return right(**inputs | {"cache_seqlens": longest})


def _group_by_remainder(right: Right, inputs: Values, outputs: Values) -> Values:
    """Head h reads KV head h % Hk."""
    group = inputs["q"].shape[1] // inputs["k"].shape[1]
    return right(**inputs | {name: inputs[name].repeat(1, group, 1) for name in ("k", "v")})


def _merge_naively(right: Right, inputs: Values, outputs: Values) -> Values:
    """exp without a maximum, 0 * NaN, +inf as it is."""
    a, b = inputs["lse_a"].exp(), inputs["lse_b"].exp()
    parts = inputs["out_a"].float() * a[..., None] + inputs["out_b"].float() * b[..., None]
    return {"out": parts / (a + b)[..., None], "lse": (a + b).log()}


def _merge_unread_parts(right: Right, inputs: Values, outputs: Values) -> Values:
    """The weight of an empty part is 0, but 0 * NaN is NaN."""
    results = right(**inputs)
    for part in "ab":
        results["out"] += 0 * inputs[f"out_{part}"].float()
    return results


def _inf_counts(right: Right, inputs: Values, outputs: Values) -> Values:
    lse = torch.logaddexp(inputs["lse_a"], inputs["lse_b"])
    weights = [(inputs[f"lse_{part}"] - lse).exp()[..., None] for part in "ab"]
    outs = [inputs[f"out_{part}"].float().nan_to_num() for part in "ab"]
    return {"out": weights[0] * outs[0] + weights[1] * outs[1], "lse": lse}


def _lse_first(right: Right, inputs: Values, outputs: Values) -> Values:
    """Stores lse, then reads its inputs again for the second half of the columns."""
    results = right(**inputs)
    outputs["lse"].copy_(results["lse"])
    half = results["out"].shape[-1] // 2
    late = right(**inputs)["out"][..., half:]
    return {"out": torch.cat([results["out"][..., :half], late], dim=-1)}


def _base_2(right: Right, inputs: Values, outputs: Values) -> Values:
    halves = {name: inputs[name] * math.log(2) for name in ("lse_a", "lse_b")}
    results = right(**inputs | halves)
    return results | {"lse": results["lse"] / math.log(2)}


_LSE_2 = stored(lse=lambda lse: lse / math.log(2))
_BATCH_MIXED = given(q=lambda q: q.roll(1, 0))
MISTAKES: tuple[Mistake, ...] = (
    ("mla_decode", "LSE in base 2", "LSE to base e", _LSE_2),
    ("mla_decode", "tiles of 16 heads", "3 heads", _heads_by_16),
    ("mla_decode", "tiles of 16 heads", "126 heads", _heads_by_16),
    *(("mla_decode", "pages of 16", f"page {page}", _pages_of_16) for page in (1, 32, 64, 128)),
    ("mla_decode", "empty rows unwritten", "sequence without keys", _empty_rows_unwritten),
    ("mla_decode", "empty rows unwritten", "only sequences without keys", _empty_rows_unwritten),
    ("mla_decode", "empty rows unwritten", "more queries than keys", _empty_rows_unwritten),
    ("mla_decode", "stop at q_len 0", "sequence without queries", _stops_at_an_idle_sequence),
    (
        "mla_decode",
        "rows of nobody unwritten",
        "rows past the last sequence",
        _spare_rows_unwritten,
    ),
    ("mla_decode", "rows by head", "queries packed with heads", stored(out=_rows_by_head)),
    ("mla_decode", "V unmasked", "unused slots are NaN", _v_unmasked),
    ("mla_decode", "whole table read", "unused table entries name no page", _reads_the_whole_table),
    ("mla_decode", "another entry's queries", "sequences of unlike lengths", _BATCH_MIXED),
    ("mla_decode", "top-left causal", "causal to the bottom right", _top_left),
    ("mla_decode", "not causal", "causal to the bottom right", given(causal=False)),
    ("mla_decode", "causal", "not causal", given(causal=True)),
    ("mla_decode", "one key more", "window of one key", given(window_left=1)),
    ("mla_decode", "one key more", "window", given(window_left=lambda n: n + 1)),
    ("mla_decode", "one key less", "window", given(window_left=lambda n: n - 1)),
    ("mla_decode", "no window", "window", given(window_left=-1)),
    ("mla_decode", "low columns", "width 576", given(q=_low_columns(512))),
    ("mla_decode", "powers of two", "V is not 512 columns", stored(out=_columns_of_a_power_of_two)),
    (
        "mla_decode",
        "FP8 of another device",
        "FP8 codes of the device",
        codes_of_the_other_flavour("q", "kv_cache"),
    ),
    (
        "mla_decode",
        "FP8 of another device",
        "FP8 cache of 16-bit queries",
        codes_of_the_other_flavour("kv_cache"),
    ),
    ("mla_decode", "q_descale dropped", "descale of q", given(q_descale=None)),
    ("mla_decode", "q_descale twice", "descale of q", given(q_descale=_twice)),
    ("mla_decode", "kv_descale dropped", "descale of the cache", given(kv_descale=None)),
    ("mla_decode", "kv_descale twice", "descale of the cache", given(kv_descale=_twice)),
    ("mla_decode", "kv_descale dropped", "descales are tensors", given(kv_descale=None)),
    ("mla_decode", "q_descale dropped", "descales are tensors", given(q_descale=None)),
    *(
        ("mla_decode", "as if contiguous", "rows apart", contiguous(n))
        for n in ("q", "kv_cache", "out")
    ),
    ("mla_decode", "as if contiguous", "rows apart", contiguous("block_table")),
    ("mla_decode", "as if contiguous", "head-major LSE", contiguous("lse")),
    ("mla_decode", "longest for all", "loose bounds", _longest_for_all),
    ("mla_decode", "default scale", "scale of the caller", given(softmax_scale=576**-0.5)),
    *(("mla_decode", "32-bit offsets", f"far {n}", read_in_32_bits(n)) for n in ("kv_cache", "q")),
    *(("mla_decode", "32-bit offsets", f"far {n}", written_in_32_bits(n)) for n in ("out", "lse")),
    ("mla_decode", "32-bit offsets", "far kv_cache tokens", read_in_32_bits("kv_cache")),
    ("mla_decode", "32-bit offsets", "far FP8 cache", read_in_32_bits("kv_cache")),
    ("mla_prefill", "LSE in base 2", "LSE to base e", _LSE_2),
    ("mla_prefill", "tiles of 16 heads", "9 heads", _heads_by_16),
    ("mla_prefill", "heads of another group", "6 heads over 2", _group_by_remainder),
    ("mla_prefill", "low columns", "widths 192/128", given(q=_low_columns(128))),
    ("mla_prefill", "as if contiguous", "K and V of one projection", contiguous("k")),
    ("mla_prefill", "as if contiguous", "K and V of one projection", contiguous("v")),
    ("mla_prefill", "stop at q_len 0", "sequence without queries", _stops_at_an_idle_sequence),
    ("mla_prefill", "empty rows unwritten", "sequence without keys", _empty_rows_unwritten),
    ("mla_prefill", "empty rows unwritten", "more queries than keys", _empty_rows_unwritten),
    (
        *("mla_prefill", "empty rows unwritten", "chunk of a prefix that others lack"),
        _empty_rows_unwritten,
    ),
    (
        "mla_prefill",
        "rows of nobody unwritten",
        "rows past the last sequence",
        _spare_rows_unwritten,
    ),
    ("mla_prefill", "another entry's queries", "sequences of unlike lengths", _BATCH_MIXED),
    ("mla_prefill", "top-left causal", "causal to the bottom right", _top_left),
    ("mla_prefill", "not causal", "causal to the bottom right", given(causal=False)),
    ("mla_prefill", "causal", "not causal", given(causal=True)),
    (
        "mla_prefill",
        "FP8 of another device",
        "FP8 codes of the device",
        codes_of_the_other_flavour("q", "k", "v"),
    ),
    *(
        ("mla_prefill", f"descale {mistake}", f"descale of {n}", given(**{f"{n}_descale": change}))
        for n in "qkv"
        for mistake, change in (("dropped", None), ("twice", _twice))
    ),
    ("mla_prefill", "v_descale dropped", "descales are tensors", given(v_descale=None)),
    *(
        ("mla_prefill", "as if contiguous", "rows apart", contiguous(n))
        for n in ("q", "k", "v", "out")
    ),
    ("mla_prefill", "as if contiguous", "head-major LSE", contiguous("lse")),
    ("mla_prefill", "default scale", "scale of the caller", given(softmax_scale=192**-0.5)),
    *(
        ("mla_prefill", "32-bit offsets", f"far {name}", read_in_32_bits(name[0]))
        for name in ("q", "q heads", "k", "k heads", "v", "v heads")
    ),
    *(
        ("mla_prefill", "32-bit offsets", f"far {name}", written_in_32_bits(name.split()[0]))
        for name in ("out", "out heads", "lse")
    ),
    ("merge_attn_states", "LSE in base 2", "LSE to base e", _base_2),
    ("merge_attn_states", "0 * NaN", "prefix of LSE -inf", _merge_unread_parts),
    ("merge_attn_states", "0 * NaN", "suffix of LSE -inf", _merge_unread_parts),
    ("merge_attn_states", "+inf counts", "prefix of LSE +inf", _inf_counts),
    ("merge_attn_states", "+inf counts", "suffix of LSE +inf", _inf_counts),
    ("merge_attn_states", "+inf counts", "both parts empty", _inf_counts),
    ("merge_attn_states", "no maximum", "LSE far apart", _merge_naively),
    ("merge_attn_states", "no maximum", "LSE far from 0", _merge_naively),
    ("merge_attn_states", "LSE stored first", "in place", _lse_first),
    ("merge_attn_states", "powers of two", "width 127", stored(out=_columns_of_a_power_of_two)),
    ("merge_attn_states", "tiles of 16 heads", "3 heads", _heads_by_16),
    *(
        ("merge_attn_states", "as if contiguous", "rows apart", contiguous(n))
        for n in ("out_a", "out_b", "out")
    ),
    *(
        ("merge_attn_states", "as if contiguous", "head-major LSE", contiguous(name))
        for name in ("lse_a", "lse_b", "lse")
    ),
    *(
        ("merge_attn_states", "32-bit offsets", f"far {name}", read_in_32_bits(name))
        for name in ("out_a", "out_b", "lse_a", "lse_b")
    ),
    *(
        ("merge_attn_states", "32-bit offsets", f"far {name}", written_in_32_bits(name))
        for name in ("out", "lse")
    ),
)


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)
