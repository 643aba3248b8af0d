# SPDX-License-Identifier: Apache-2.0
"""The cases of sparse MLA: each wrong kernel fails where it is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.conformance import _wrong
from tests.conformance._wrong import (
    Mistake,
    Right,
    Values,
    Wrong,
    contiguous,
    given,
    read_in_32_bits,
    stored,
    written_in_32_bits,
)

from archkey.formats.sparse_kv import packed

PREFILL, DECODE = "sparse_mla_prefill", "sparse_mla_decode"
QUANTIZE, DEQUANTIZE = "quantize_sparse_kv", "dequantize_sparse_kv"
LOGICAL = "logical_to_physical_indices"


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


def _one_past_the_last(indices: torch.Tensor, capacity: int) -> torch.Tensor:
    """The capacity itself is taken for a slot."""
    return torch.where(indices == capacity, capacity - 1, indices)


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


def _scaled(change: Callable[[torch.Tensor], torch.Tensor]) -> Wrong:
    """Other float32 scales of a packed cache, made of its own `[.., tiles]`."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        name = "kv" if "kv" in inputs else "kv_cache"
        layout = packed(inputs.get("kv_format") or inputs["format"])
        cache = inputs[name].clone()
        scales = cache[..., layout.nope_dim : layout.nope_dim + layout.scale_bytes]
        scales.copy_(change(scales.contiguous().view(torch.float32)).view(torch.uint8))
        return right(**inputs | {name: cache})

    return wrong


def _powers_of_two(scales: torch.Tensor) -> torch.Tensor:
    """Rounded up before they are used (sglang#22723)."""
    return torch.exp2(scales.log2().ceil())


def _of_the_next_tile(scales: torch.Tensor) -> torch.Tensor:
    return scales.roll(-1, -1).contiguous()


def _by_the_batch(right: Right, inputs: Values, outputs: Values) -> Values:
    """A lone entry's list is gone through from its end, so its sums are rounded otherwise."""
    indices = inputs["indices"]
    return right(**inputs | {"indices": indices.flip(-1) if len(indices) == 1 else indices})


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


_LSE_2 = stored(lse=lambda lse: lse / math.log(2))
_BOTH: tuple[tuple[str, str, Wrong], ...] = (
    ("LSE in base 2", "LSE to base e", _LSE_2),
    ("tiles of 16 heads", "3 heads", _heads_by_16),
    ("tiles of 16 heads", "126 heads", _heads_by_16),
    ("slot 0 for -1", "index -1", _listed(_clamped)),
    ("last slot left out", "index -1", _listed(_all_but_the_last_slot)),
    ("only -1 is invalid", "indices outside the cache", _listed(_minus_one_only)),
    ("capacity is a slot", "indices outside the cache", _listed(_one_past_the_last)),
    ("up to the first invalid", "invalid indices between valid ones", _listed(_up_to_the_first)),
    ("each index once", "the same index many times", _listed(_once)),
    ("empty rows unwritten", "rows without a valid index", _empty_rows_unwritten),
    ("empty rows unwritten", "no valid index at all", _empty_rows_unwritten),
    ("whole tiles", "lists of 7", _listed(_whole_tiles)),
    ("whole tiles", "lists of 65", _listed(_whole_tiles)),
    ("topk_length dropped", "topk_length of each row", given(topk_length=None)),
    ("attn_sink dropped", "sinks", given(attn_sink=None)),
    ("sink in LSE", "sinks", _sink_in_lse),
    ("attn_sink dropped", "infinite sinks", given(attn_sink=None)),
    ("powers of two", "V is not 512 columns", stored(out=_columns_of_a_power_of_two)),
    ("pages of 64", "page 2", _pages_of_64),
    ("pages of 64", "page 48", _pages_of_64),
    ("scales rounded up", "scales between powers of two", _scaled(_powers_of_two)),
    ("scales of the next tile", "scales between powers of two", _scaled(_of_the_next_tile)),
    ("sums by the batch", "same bits in any batch: heads=16", _by_the_batch),
    ("FP8 of another device", "FP8 codes of the device", given(kv_format=_other_flavour)),
    ("as if contiguous", "head-major LSE", contiguous("lse")),
    ("default scale", "scale of the caller", given(softmax_scale=576**-0.5)),
    *(("as if contiguous", "rows apart", contiguous(name)) for name in ("q", "indices", "out")),
    *(("32-bit offsets", f"far {name}", read_in_32_bits(name)) for name in ("q", "indices")),
    *(("32-bit offsets", f"far {name}", written_in_32_bits(name)) for name in ("out", "lse")),
)
MISTAKES: tuple[Mistake, ...] = (
    *((operator, *row) for operator in (PREFILL, DECODE) for row in _BOTH),
    (PREFILL, "as if contiguous", "rows apart", contiguous("kv")),
    (PREFILL, "32-bit offsets", "far kv", read_in_32_bits("kv")),
    (PREFILL, "32-bit offsets", "far packed kv", read_in_32_bits("kv")),
    (PREFILL, "32-bit offsets", "far max_logits", written_in_32_bits("max_logits")),
    (DECODE, "as if contiguous", "rows apart", contiguous("kv_cache")),
    (DECODE, "rows by head", "queries packed with heads", stored(out=_rows_by_head)),
    (DECODE, "lengths by remainder", "topk_length of each sequence", _lengths_by_remainder),
    (DECODE, "lengths of the first rows", "topk_length of each row", _lengths_of_the_first_rows),
    (DECODE, "extra_kv_cache dropped", "second cache", given(extra_kv_cache=None)),
    (
        DECODE,
        "extra_topk_length dropped",
        "topk_length of the second cache",
        given(extra_topk_length=None),
    ),
    (DECODE, "extra_topk_length dropped", "two lengths, two caches", given(extra_topk_length=None)),
    (DECODE, "topk_length dropped", "two lengths, two caches", given(topk_length=None)),
    (DECODE, "32-bit offsets", "far kv_cache", read_in_32_bits("kv_cache")),
    (DECODE, "32-bit offsets", "far extra_kv_cache", read_in_32_bits("extra_kv_cache")),
    (QUANTIZE, "other scales", "scales between powers of two", given(scale_mode="pow2")),
    (QUANTIZE, "other scales", "scales rounded up to powers of two", given(scale_mode="fp32")),
    (QUANTIZE, "zero over zero", "tiles of zeros", _zero_over_zero),
    (QUANTIZE, "signs of zeros", "values that underflow", stored(out=_without_signs_of_zeros)),
    (QUANTIZE, "clean slate", "other slots keep their bytes", _clean_slate),
    (QUANTIZE, "slot 0 for none", "slots outside the cache", _into_slot_0),
    (QUANTIZE, "FP8 of another device", "FP8 codes of the device", given(format=_other_flavour)),
    (QUANTIZE, "as if contiguous", "rows apart", contiguous("k_nope")),
    (QUANTIZE, "as if contiguous", "rows apart", contiguous("k_rope")),
    (QUANTIZE, "as if contiguous", "latent and rope of one tensor", contiguous("k_rope")),
    *((QUANTIZE, "32-bit offsets", f"far {n}", read_in_32_bits(n)) for n in ("k_nope", "k_rope")),
    (QUANTIZE, "32-bit offsets", "far out", _far_block_unwritten),
    (QUANTIZE, "32-bit offsets", "far planar out", _far_block_unwritten),
    (DEQUANTIZE, "slot 0 for none", "slots outside the cache", _into_slot_0),
    (DEQUANTIZE, "scales rounded up", "scales between powers of two", _scaled(_powers_of_two)),
    (DEQUANTIZE, "FP8 of another device", "FP8 codes of the device", given(format=_other_flavour)),
    (DEQUANTIZE, "32-bit offsets", "far cache", read_in_32_bits("kv_cache")),
    (LOGICAL, "slot 0 for -1", "index -1", given(indices=lambda indices: indices.clamp_min(0))),
    (LOGICAL, "slots in 32 bits", "slots past int32", _wrapped),
    (LOGICAL, "pages of 16", "page 3", _page_size),
    (LOGICAL, "pages of 16", "page 128", _page_size),
    *(
        (LOGICAL, "as if contiguous", "rows apart", contiguous(n))
        for n in ("indices", "block_table", "out")
    ),
    *(
        (LOGICAL, "32-bit offsets", f"far {n}", read_in_32_bits(n))
        for n in ("indices", "block_table")
    ),
    (LOGICAL, "32-bit offsets", "far out", written_in_32_bits("out")),
)


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)
