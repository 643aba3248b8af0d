# SPDX-License-Identifier: Apache-2.0
"""The cases of sparse MLA: right kernels pass all, a wrong one fails the case named for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from tests.conformance import _wrong_mla as _wrong
from tests.conformance._wrong_mla import Right, Values, Wrong

import archkey
from archkey.conformance.case import Case
from archkey.conformance.cases import sparse_mla as family
from archkey.conformance.judge import judge
from archkey.formats.sparse_kv import packed

EDGES = [case for case in family.CASES if case.edge]
PREFILL, DECODE = "sparse_mla_prefill", "sparse_mla_decode"
QUANTIZE, DEQUANTIZE = "quantize_sparse_kv", "dequantize_sparse_kv"
LOGICAL = "logical_to_physical_indices"
OPERATORS = (PREFILL, DECODE, QUANTIZE, DEQUANTIZE, LOGICAL)


def test_names_are_unique() -> None:
    names = [(case.operator, case.name) for case in family.CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_edges_pass(operator: str, fp8: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = archkey.open("cpu")
    monkeypatch.setattr(session, "fp8", fp8)
    results = [judge(session, case) for case in EDGES if case.operator == operator]
    assert len(results) > 10
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("operator", OPERATORS)
def test_random_calls_pass(operator: str) -> None:
    strategy = family.random(operator)
    assert strategy is not None
    session = archkey.open("cpu")

    @settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=HealthCheck)
    @given(strategy)
    def check(case: Case) -> None:
        result = judge(session, case)
        assert result.passed, (case.name, result)

    check()


# ---- wrong kernels


def _cache(inputs: Values) -> torch.Tensor:
    cache: torch.Tensor = inputs["kv"] if "kv" in inputs else inputs["kv_cache"]
    return cache


def _listed(change: Callable[[torch.Tensor, int], torch.Tensor]) -> Wrong:
    """Other index lists, made of the lists and the capacity of the cache."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        cache = _cache(inputs)
        capacity = cache.shape[0] * cache.shape[1]
        return right(**inputs | {"indices": change(inputs["indices"], capacity)})

    return wrong


def _clamped(indices: torch.Tensor, capacity: int) -> torch.Tensor:
    """Slot 0 is read in place of -1."""
    return indices.clamp_min(0)


def _minus_one_only(indices: torch.Tensor, capacity: int) -> torch.Tensor:
    """Any other number is taken into the cache."""
    return torch.where(indices == -1, -1, indices.clamp(0, capacity - 1))


def _up_to_the_first(indices: torch.Tensor, capacity: int) -> torch.Tensor:
    """The list ends at its first invalid entry."""
    valid = (indices >= 0) & (indices < capacity)
    return torch.where(valid.int().cumprod(-1).bool(), indices, -1)


def _once(indices: torch.Tensor, capacity: int) -> torch.Tensor:
    """An index that occurs twice counts once."""
    same = indices[..., :, None] == indices[..., None, :]
    again = same.tril(-1).any(-1)
    return indices.masked_fill(again, -1)


def _whole_tiles(indices: torch.Tensor, capacity: int) -> torch.Tensor:
    """The tail of a list is no tile of 64."""
    whole = indices.shape[-1] // 64 * 64
    return torch.where(torch.arange(indices.shape[-1]) < whole, indices, -1)


def _all_but_the_last_slot(indices: torch.Tensor, capacity: int) -> torch.Tensor:
    return torch.where(indices == capacity - 1, -1, indices)


def _pages_of_64(right: Right, inputs: Values, outputs: Values) -> Values:
    """Slot i lies in block i // 64."""
    page, indices = _cache(inputs).shape[1], inputs["indices"]
    slots = indices // 64 * page + (indices % 64).clamp_max(page - 1)
    return right(**inputs | {"indices": torch.where(indices < 0, indices, slots)})


def _empty_rows_unwritten(right: Right, inputs: Values, outputs: Values) -> Values:
    results = right(**inputs)
    empty = (results["lse"] == -torch.inf).view(results["out"].shape[:-1])
    return results | {"out": results["out"].masked_fill(empty[..., None], torch.nan)}


def _heads_by_16(right: Right, inputs: Values, outputs: Values) -> Values:
    """Writes whole tiles of 16 heads only."""
    results = right(**inputs)
    whole = results["out"].shape[-2] // 16 * 16
    results["out"][..., whole:, :] = torch.nan
    return results


def _columns_of_a_power_of_two(out: torch.Tensor) -> torch.Tensor:
    whole = 1 << (out.shape[-1].bit_length() - 1)
    return out.index_fill(-1, torch.arange(whole, out.shape[-1]), torch.nan)


def _rows_by_head(out: torch.Tensor) -> torch.Tensor:
    batch, q_len, heads, width = out.shape
    return out.view(batch, heads, q_len, width).transpose(1, 2)


def _lengths_by_remainder(right: Right, inputs: Values, outputs: Values) -> Values:
    """Row r takes the length of sequence r % B."""
    length = inputs["topk_length"].repeat(inputs["q"].shape[1])
    return right(**inputs | {"topk_length": length})


def _lengths_of_the_first_rows(right: Right, inputs: Values, outputs: Values) -> Values:
    """Lengths by row are taken by sequence."""
    return right(**inputs | {"topk_length": inputs["topk_length"][: inputs["q"].shape[0]]})


def _sink_in_lse(right: Right, inputs: Values, outputs: Values) -> Values:
    results = right(**inputs)
    return results | {"lse": torch.logaddexp(results["lse"], inputs["attn_sink"])}


def _scales_of_powers_of_two(right: Right, inputs: Values, outputs: Values) -> Values:
    """float32 scales are rounded up to powers of two before they are used (sglang#22723)."""
    name = "kv" if "kv" in inputs else "kv_cache"
    layout = packed(inputs.get("kv_format") or inputs["format"])
    cache = inputs[name].clone()
    scales = cache[..., layout.nope_dim : layout.nope_dim + layout.scale_bytes]
    rounded = torch.exp2(scales.contiguous().view(torch.float32).log2().ceil())
    scales.copy_(rounded.view(torch.uint8))
    return right(**inputs | {name: cache})


def _other_flavour(name: str) -> str:
    return name.removesuffix("_fnuz") if name.endswith("_fnuz") else name + "_fnuz"


def _zero_over_zero(right: Right, inputs: Values, outputs: Values) -> Values:
    """A tile of zeros has the scale 0."""
    rows = inputs["k_nope"]
    return right(**inputs | {"k_nope": rows.masked_fill(rows == 0, torch.nan)})


def _clean_slate(right: Right, inputs: Values, outputs: Values) -> Values:
    """Writes a cache of zeros around its rows."""
    return right(**inputs | {"kv_cache": torch.zeros_like(inputs["kv_cache"])})


def _into_slot_0(right: Right, inputs: Values, outputs: Values) -> Values:
    capacity = inputs["kv_cache"].shape[0] * inputs["kv_cache"].shape[1]
    slots = inputs["slot_mapping"]
    slots = torch.where((slots < 0) | (slots >= capacity), 0, slots)
    return right(**inputs | {"slot_mapping": slots})


def _without_signs_of_zeros(codes: torch.Tensor) -> torch.Tensor:
    """-0 becomes +0 in e4m3fn; where +0 is right, the byte 0x80, which e4m3fnuz reads as NaN."""
    return torch.where(codes == 0x80, 0, torch.where(codes == 0, 0x80, codes)).to(torch.uint8)


def _far_block_unwritten(right: Right, inputs: Values, outputs: Values) -> Values:
    """Blocks past byte 2^31 keep what they held."""
    results, cache = right(**inputs)["out"], outputs["out"]
    near = [b for b in range(len(cache)) if b * cache.stride(0) < 2**31]
    assert 0 < len(near) < len(cache)
    cache[near] = results[near]
    return {}


def _page_size(right: Right, inputs: Values, outputs: Values) -> Values:
    return right(**inputs | {"page_size": 16})


def _wrapped(right: Right, inputs: Values, outputs: Values) -> Values:
    """Slots are computed in 32 bits, and every page is taken for one of the cache."""
    page, table = inputs["page_size"], inputs["block_table"]
    indices = inputs["indices"]
    at = indices.flatten(1).clamp(0, table.shape[1] * page - 1).long()
    slots = table.gather(1, at // page) * page + (at % page).int()
    known = (indices >= 0) & (indices < table.shape[1] * page)
    return {"out": torch.where(known, slots.view(indices.shape), -1)}


_LSE_2 = _wrong.stored(lse=lambda lse: lse / math.log(2))
_BOTH: tuple[tuple[str, Wrong], ...] = (
    ("LSE to base e", _LSE_2),
    ("3 heads", _heads_by_16),
    ("126 heads", _heads_by_16),
    ("index -1", _listed(_clamped)),
    ("index -1", _listed(_all_but_the_last_slot)),
    ("indices outside the cache", _listed(_minus_one_only)),
    ("invalid indices between valid ones", _listed(_up_to_the_first)),
    ("the same index many times", _listed(_once)),
    ("rows without a valid index", _empty_rows_unwritten),
    ("no valid index at all", _empty_rows_unwritten),
    ("lists of 7", _listed(_whole_tiles)),
    ("lists of 65", _listed(_whole_tiles)),
    ("topk_length of each row", _wrong.given(topk_length=None)),
    ("sinks", _wrong.given(attn_sink=None)),
    ("sinks", _sink_in_lse),
    ("infinite sinks", _wrong.given(attn_sink=None)),
    ("V is not 512 columns", _wrong.stored(out=_columns_of_a_power_of_two)),
    ("page 2", _pages_of_64),
    ("page 48", _pages_of_64),
    ("scales between powers of two", _scales_of_powers_of_two),
    ("FP8 codes of the device", _wrong.given(kv_format=_other_flavour)),
    ("head-major LSE", _wrong.contiguous("lse")),
    ("scale of the caller", _wrong.given(softmax_scale=576**-0.5)),
    *(("rows apart", _wrong.contiguous(name)) for name in ("q", "indices", "out")),
    *((f"far {name}", _wrong.in_32_bits(name)) for name in ("q", "indices", "out", "lse")),
)
_WRONG: tuple[tuple[str, str, Wrong], ...] = (
    *((operator, about, wrong) for operator in (PREFILL, DECODE) for about, wrong in _BOTH),
    (PREFILL, "rows apart", _wrong.contiguous("kv")),
    (PREFILL, "far kv", _wrong.in_32_bits("kv")),
    (PREFILL, "far packed kv", _wrong.in_32_bits("kv")),
    (PREFILL, "far max_logits", _wrong.in_32_bits("max_logits")),
    (DECODE, "rows apart", _wrong.contiguous("kv_cache")),
    (DECODE, "queries packed with heads", _wrong.stored(out=_rows_by_head)),
    (DECODE, "topk_length of each sequence", _lengths_by_remainder),
    (DECODE, "topk_length of each row", _lengths_of_the_first_rows),
    (DECODE, "second cache", _wrong.given(extra_kv_cache=None)),
    (DECODE, "topk_length of the second cache", _wrong.given(extra_topk_length=None)),
    (DECODE, "two lengths, two caches", _wrong.given(extra_topk_length=None)),
    (DECODE, "two lengths, two caches", _wrong.given(topk_length=None)),
    (DECODE, "far kv_cache", _wrong.in_32_bits("kv_cache")),
    (DECODE, "far extra_kv_cache", _wrong.in_32_bits("extra_kv_cache")),
    (QUANTIZE, "scales between powers of two", _wrong.given(scale_mode="pow2")),
    (QUANTIZE, "scales rounded up to powers of two", _wrong.given(scale_mode="fp32")),
    (QUANTIZE, "tiles of zeros", _zero_over_zero),
    (QUANTIZE, "values that underflow", _wrong.stored(out=_without_signs_of_zeros)),
    (QUANTIZE, "other slots keep their bytes", _clean_slate),
    (QUANTIZE, "slots outside the cache", _into_slot_0),
    (QUANTIZE, "FP8 codes of the device", _wrong.given(format=_other_flavour)),
    (QUANTIZE, "rows apart", _wrong.contiguous("k_nope")),
    (QUANTIZE, "rows apart", _wrong.contiguous("k_rope")),
    (QUANTIZE, "latent and rope of one tensor", _wrong.contiguous("k_rope")),
    *((QUANTIZE, f"far {name}", _wrong.in_32_bits(name)) for name in ("k_nope", "k_rope")),
    (QUANTIZE, "far out", _far_block_unwritten),
    (QUANTIZE, "far planar out", _far_block_unwritten),
    (DEQUANTIZE, "slots outside the cache", _into_slot_0),
    (DEQUANTIZE, "scales between powers of two", _scales_of_powers_of_two),
    (DEQUANTIZE, "FP8 codes of the device", _wrong.given(format=_other_flavour)),
    (DEQUANTIZE, "far cache", _wrong.in_32_bits("kv_cache")),
    (LOGICAL, "index -1", _wrong.given(indices=lambda indices: indices.clamp_min(0))),
    (LOGICAL, "slots past int32", _wrapped),
    (LOGICAL, "page 3", _page_size),
    (LOGICAL, "page 128", _page_size),
    *((LOGICAL, "rows apart", _wrong.contiguous(n)) for n in ("indices", "block_table", "out")),
    *((LOGICAL, f"far {n}", _wrong.in_32_bits(n)) for n in ("indices", "block_table", "out")),
)


@pytest.mark.parametrize(
    ("operator", "about", "wrong"),
    _WRONG,
    ids=[f"{operator} {about} {i}" for i, (operator, about, _) in enumerate(_WRONG)],
)
def test_a_wrong_kernel_fails_the_case_of_its_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, EDGES, operator, about, wrong)


def test_a_pool_far_apart_takes_no_memory() -> None:
    """What lies between the blocks is never touched."""
    resource: Any = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    far = [case for case in EDGES if case.model.startswith("far")]
    session = archkey.open("cpu")
    assert all(judge(session, case).passed for case in far)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 200 * 1024
