# SPDX-License-Identifier: Apache-2.0
"""What is easily done wrong in attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
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
    written_in_32_bits,
)

from archkey.reference import attention as reference

LN2 = math.log(2)


mutant = partial(_wrong.mutant, reference.unified_attention)


def results(change: Callable[[Any, Any, dict[str, Any]], tuple[Any, Any]]) -> Wrong:
    """`change(out, lse, inputs)` of what is right."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        return dict(zip(outputs, change(*right(**inputs).values(), inputs), strict=True))

    return wrong


def nan_where(rows: Callable[[Any, dict[str, Any]], torch.Tensor]) -> Wrong:
    """Rows `[T]` or `[T, H]` that a kernel leaves as they were."""

    def change(out: Any, lse: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        unwritten = rows(lse, inputs)
        unwritten = unwritten if unwritten.ndim == 2 else unwritten[:, None].expand(lse.shape)
        out = out.masked_fill(unwritten[..., None], math.nan)
        return out, lse.masked_fill(unwritten, math.nan)

    return results(change)


def _in_no_sequence(lse: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return torch.arange(len(lse)) >= inputs["cu_seqlens_q"][-1]


def _after_an_empty_sequence(lse: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """A kernel whose programs stop at the first sequence without queries."""
    starts = inputs["cu_seqlens_q"]
    empty = starts[:-1][starts.diff() == 0]
    return torch.arange(len(lse)) >= (empty[0] if len(empty) else len(lse))


def adds_zero_times_v(columns: Callable[[int, int], Sequence[int]]) -> Wrong:
    """Weights of 0 for values that are read anyhow: all slots of the pages in `columns`.

    columns  of a sequence's pages and the table's width
    """

    def change(out: Any, lse: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        table, v, starts = inputs["block_table"], inputs["v"].float(), inputs["cu_seqlens_q"]
        out = out.clone()
        for i, kv_len in enumerate(inputs["seqused_k"].tolist()):
            wanted = list(columns(-(-kv_len // v.shape[1]), table.shape[1]))
            pages = table[i, wanted].clamp(0, len(v) - 1).long()
            out[starts[i] : starts[i + 1]] += 0 * v[pages].sum()
        return out, lse

    return results(change)


def page_of_16(right: Right, inputs: Values, outputs: Values) -> Values:
    """The page size is 16, whatever the cache says."""
    k, v, table = inputs["k"], inputs["v"], inputs["block_table"]
    slots = k.shape[0] * k.shape[1] // 16 * 16
    k, v = (x.flatten(0, 1)[:slots].unflatten(0, (-1, 16)) for x in (k, v))
    table = table.repeat_interleave(16, 1).clamp(0, len(k) - 1)
    return right(**inputs | {"k": k, "v": v, "block_table": table})


def narrower(right: Right, inputs: Values, outputs: Values) -> Values:
    """Head dims up to the last power of two."""
    d, dv = (1 << (inputs[name].shape[-1].bit_length() - 1) for name in "kv")
    results = right(**inputs | {"q": inputs["q"][..., :d], "k": inputs["k"][..., :d]})
    results["out"][..., dv:] = math.nan
    return results


def first_of_16(lse: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Heads past the last multiple of 16."""
    heads = torch.arange(lse.shape[1]) >= lse.shape[1] // 16 * 16
    return heads.expand(lse.shape)


def power_of_two(scale: Any) -> Any:
    return 2.0 ** round(math.log2(scale))


def nan_at_limit(out: Any, lse: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """What a conversion gives that does not saturate."""
    return out.masked_fill(out.abs() >= inputs["out_limit"], math.nan), lse


def first(descale: Any) -> torch.Tensor:
    return torch.as_tensor(descale).flatten()[0]


def another_entry(block_table: torch.Tensor) -> torch.Tensor:
    return block_table.roll(1, 0).clamp(0, 3)


def descales_exchanged(right: Right, inputs: Values, outputs: Values) -> Values:
    swapped = {"k_descale": inputs["v_descale"], "v_descale": inputs["k_descale"]}
    return right(**inputs | swapped)


def only_decode(mistake: Wrong) -> Wrong:
    """Wrong where a call has one query a sequence."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        return (mistake if inputs["max_seqlen_q"] == 1 else given())(right, inputs, outputs)

    return wrong


def sink_in_each_segment(right: Right, inputs: Values, outputs: Values) -> Values:
    parts = inputs["segments"][1].shape[2]
    sinks = inputs["sinks"]
    return right(**inputs | {"sinks": None if sinks is None else sinks + math.log(parts)})


def no_sink_in_lse(right: Right, inputs: Values, outputs: Values) -> Values:
    return right(**inputs) | {"lse": right(**inputs | {"sinks": None})["lse"]}


def capped_sink(right: Right, inputs: Values, outputs: Values) -> Values:
    cap = inputs["softcap"]
    return right(**inputs | {"sinks": cap * torch.tanh(inputs["sinks"] / cap)})


def alibi_from_context(out: Any, lse: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """vLLM's constant: j - (kv_len - q_len) where ours is j - p."""
    starts = inputs["cu_seqlens_q"]
    t = torch.cat([torch.arange(n) for n in starts.diff()])
    return out, lse + t[:, None] * inputs["alibi_slopes"].float()


_SOFTCAP = """            if softcap > 0:
                s = softcap * torch.tanh(s / softcap)
"""
_MASK = "            hidden = "
_CAP_LATE = ((_SOFTCAP, ""), (_MASK, _SOFTCAP + _MASK))
_TANH = "torch.tanh(s / softcap)"
_RATIO = (
    "(torch.exp(s / softcap) - torch.exp(-s / softcap))"
    " / (torch.exp(s / softcap) + torch.exp(-s / softcap))"
)
_GROUPS = ".view(len(t), kv_heads, group, -1)"
_INTERLEAVED = ".view(len(t), group, kv_heads, -1).transpose(1, 2)"
_LOGSUMEXP = "s.logsumexp(-1, keepdim=True)"
_BIAS_FROM_0 = ("(j - context).clamp(min=0)", "j.clamp(max=qq_bias.shape[1] - 1)")

_INVARIANT = "same bits in any batch: page=20"
_WHOLE = """            mixed = torch.einsum("kgtj,jkd->kgtd", weights, values)
"""
_IN_TWO = """            mixed = torch.einsum("kgtj,jkd->kgtd", weights[..., :cut], values[:cut])
            mixed = mixed + torch.einsum("kgtj,jkd->kgtd", weights[..., cut:], values[cut:])
"""


def split_at(cut: str) -> Wrong:
    """Values are added up in two parts; `cut` is how many keys the first one has."""
    return mutant((_WHOLE, f"            cut = {cut}\n{_IN_TWO}"))


WINDOW_WIDER = given(window_left=lambda w: w + 1 if w >= 0 else w)
WINDOW_NARROWER = given(window_left=lambda w: w - 1 if w > 0 else w)

_ROWS: tuple[tuple[str, str, Wrong], ...] = (
    ("one key more than the window", "window of one key", WINDOW_WIDER),
    ("one key more than the window", "window of 16 keys", WINDOW_WIDER),
    ("one key less than the window", "window of 16 keys", WINDOW_NARROWER),
    ("another window of decodes alone", "decode alone", only_decode(WINDOW_NARROWER)),
    (
        "another window of decodes alone",
        "equal results under every bound",
        only_decode(WINDOW_NARROWER),
    ),
    ("top-left causal", "causal to the bottom right", mutant(("p = context + t", "p = t"))),
    ("LSE in base 2", "LSE to base e", results(lambda out, lse, _: (out, lse / LN2))),
    ("rows without keys", "sequence without keys", nan_where(lambda lse, _: lse == -math.inf)),
    ("rows without keys", "more queries than keys", nan_where(lambda lse, _: lse == -math.inf)),
    ("rows of nobody", "rows past the last sequence", nan_where(_in_no_sequence)),
    ("rows of nobody", "no sequences", nan_where(_in_no_sequence)),
    ("stop at q_len 0", "sequence without queries", nan_where(_after_an_empty_sequence)),
    (
        "-inf - -inf",
        "more queries than keys",
        mutant(("total.masked_fill(total == -torch.inf, 0)", "total")),
    ),
    (
        "no maximum",
        "scores far above 0",
        mutant((_LOGSUMEXP, "s.exp().sum(-1, keepdim=True).log()")),
    ),
    ("V of a page's other slots", "NaN in unused slots", adds_zero_times_v(lambda n, _: range(n))),
    ("V past the table's end", "unused entries of the block table", adds_zero_times_v(range)),
    (
        "V before the window",
        "keys before the window are gone",
        adds_zero_times_v(lambda n, _: range(n)),
    ),
    ("FP8 of another device", "FP8 codes of the device", codes_of_the_other_flavour("k", "v")),
    (
        "FP8 of another device",
        "FP8 cache of unquantised queries",
        codes_of_the_other_flavour("k", "v"),
    ),
    *(("pages of 16", f"page {n}", page_of_16) for n in (1, 20, 32, 64, 100, 528)),
    *(("powers of two", f"head dim {n}", narrower) for n in (3, 80, 192)),
    ("powers of two", "head dims 192 and 128", narrower),
    *(
        ("16 heads", f"{n} heads over {hk}", nan_where(first_of_16))
        for n, hk in ((1, 1), (5, 1), (40, 8))
    ),
    ("heads of another group", "6 heads over 2", mutant((_GROUPS, _INTERLEAVED))),
    ("another entry's keys", "batch entries of unlike lengths", given(block_table=another_entry)),
    ("softcap left out", "softcap", given(softcap=0.0)),
    ("softcap by exponentials", "softcap of huge scores", mutant((_TANH, _RATIO))),
    ("softcap after the biases", "softcap before ALiBi", mutant(*_CAP_LATE)),
    ("softcap after the biases", "softcap before the bias", mutant(*_CAP_LATE)),
    ("softcap of the sink", "softcap spares the sink", capped_sink),
    ("ALiBi left out", "ALiBi counts from the query", given(alibi_slopes=lambda x: 0 * x)),
    ("ALiBi by vLLM's constant", "ALiBi counts from the query", results(alibi_from_context)),
    ("ALiBi of the wrong sign", "ALiBi of 5 heads", given(alibi_slopes=torch.neg)),
    ("sink left out", "sink counts once", given(sinks=lambda x: x - math.inf)),
    ("sink twice", "sink counts once", given(sinks=lambda x: x.float() + LN2)),
    ("sink in base 2", "sink counts once", given(sinks=lambda x: x.float() / LN2)),
    ("sink not in LSE", "sink counts in LSE", no_sink_in_lse),
    ("sink in each segment", "more segments than keys", sink_in_each_segment),
    ("bias left out", "bias between queries", given(qq_bias=torch.zeros_like)),
    ("bias turned", "bias between queries", given(qq_bias=torch.t)),
    ("bias left out", "bias is a tree", given(qq_bias=torch.zeros_like)),
    ("bias from key 0", "bias between queries", mutant(_BIAS_FROM_0)),
    *(
        (f"{name}_descale {mistake}", f"descale of {name}", given(**{f"{name}_descale": change}))
        for name in "qkv"
        for mistake, change in (
            ("dropped", lambda x: 1.0),
            ("twice", lambda x: x * x),
            ("rounded to a power of two", power_of_two),
        )
    ),
    *(
        (
            "one descale for all",
            "descales of sequence and KV head",
            given(**{f"{name}_descale": first}),
        )
        for name in "qkv"
    ),
    ("descales exchanged", "descales differ", descales_exchanged),
    (
        "descale as if contiguous",
        "descales differ: kinds=transposed-transposed-transposed",
        contiguous("k_descale"),
    ),
    ("output scale multiplies", "output scale divides", given(output_scale=lambda x: 1 / x)),
    ("output scale left out", "FP8 output", given(output_scale=1.0)),
    ("NaN for what is too large", "FP8 output saturates", results(nan_at_limit)),
    *(("as if contiguous", "rows apart", contiguous(name)) for name in ("q", "k", "v")),
    ("as if contiguous", "FP8 rows apart", contiguous("v")),
    ("as if contiguous", "bias rows apart", contiguous("qq_bias")),
    ("HND as NHD", "cache HND", contiguous("k", "v")),
    ("as if contiguous", "K and V of one tensor", contiguous("v")),
    ("batch_invariant ignored", _INVARIANT, given(batch_invariant=False)),
    ("split by the batch", _INVARIANT, split_at("len(j) // len(starts)")),
    ("split by the bound of keys", _INVARIANT, split_at("max_seqlen_k // 2")),
    ("split by the bound of queries", _INVARIANT, split_at("len(j) // (1 + max_seqlen_q)")),
    ("split by the page", _INVARIANT, split_at("int(block_table[i, 0]) % max(len(j), 1)")),
    *(
        ("32-bit offsets", f"far {at}", read_in_32_bits(at[0]))
        for at in ("k", "k slots", "k heads", "v", "v slots", "v heads", "q", "q heads")
    ),
    ("32-bit offsets", "far table", read_in_32_bits("block_table")),
    ("32-bit offsets", "far bias", read_in_32_bits("qq_bias")),
    ("32-bit offsets", "far FP8 cache", read_in_32_bits("k", "v")),
    *(
        ("32-bit offsets", f"far descales: far={name}_descale", read_in_32_bits(f"{name}_descale"))
        for name in "qkv"
    ),
    *(
        ("32-bit offsets", f"far {at}", written_in_32_bits(at.split()[0]))
        for at in ("out", "out heads", "lse", "lse heads")
    ),
)

MISTAKES: tuple[Mistake, ...] = tuple(("unified_attention", *row) for row in _ROWS)
