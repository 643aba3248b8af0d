# SPDX-License-Identifier: Apache-2.0
"""Kernels in plain torch: the reference, but for one mistake."""

from __future__ import annotations

import ctypes
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from archkey.kernel import resolve
from archkey.reference.mla import softmax_lse

Given = dict[str, Any]
Builder = Callable[[Any, Any], Callable[..., None]]


def lie(
    before: Callable[[Given], Given] = lambda given: given,
    after: Callable[[Given, Given], None] = lambda given, results: None,
    write: Callable[[torch.Tensor, torch.Tensor, Given], None] = lambda out, r, _: out.copy_(r),
) -> Builder:
    """A builder of the reference with its inputs, its results or the writing of them changed."""

    def builder(problem: Any, build: Any) -> Callable[..., None]:
        operator = build.operator
        reference = resolve(operator.reference)

        def run(*arguments: Any) -> None:
            given = dict(zip(operator.inputs, arguments, strict=False))
            values = reference(**before(dict(given)))
            results = dict(zip(operator.outputs, values, strict=True))
            after(given, results)
            for name, out in zip(operator.outputs, arguments[len(operator.inputs) :], strict=True):
                if out is not None:
                    write(out, results[name], given)

        return run

    return builder


def _window(by: int) -> Builder:
    def before(given: Given) -> Given:
        left = given["window_left"]
        return {**given, "window_left": left + by if left + by >= 0 and left >= 0 else left}

    return lie(before)


window_one_more = _window(1)
window_one_less = _window(-1)


def _in_base_2(given: Given, results: Given) -> None:
    results["lse"] = results["lse"] / math.log(2)


lse_in_base_2 = lie(after=_in_base_2)


def _skip_empty(out: torch.Tensor, result: torch.Tensor, given: Given) -> None:
    """Rows of sequences without keys are left as they were."""
    starts = given["cu_seqlens_q"].tolist()
    for b, length in enumerate(given["seqused_k"].tolist()):
        if length:
            out[starts[b] : starts[b + 1]] = result[starts[b] : starts[b + 1]].to(out.dtype)
    out[starts[-1] :] = result[starts[-1] :].to(out.dtype)


row_left_unwritten = lie(write=_skip_empty)


def unmasked_values(problem: Any, build: Any) -> Callable[..., None]:
    """mla_decode over whole pages: scores are masked, and 0 x NaN is still NaN."""

    def run(*arguments: Any) -> None:
        given = dict(zip(build.operator.inputs, arguments, strict=False))
        out, lse = arguments[len(given) :]
        q, cache, width = given["q"].float(), given["kv_cache"], given["head_dim_v"]
        page, lengths = cache.shape[1], given["cache_seqlens"].tolist()
        if given["cu_seqlens_q"] is not None:
            starts = given["cu_seqlens_q"].tolist()
            q = q.flatten(0, -3)
        else:
            starts = [b * q.shape[1] for b in range(len(lengths) + 1)]
            q = q.flatten(0, 1)
        q = q * _number(given["q_descale"])
        flat_out = out.view(-1, *out.shape[-2:])
        for b, (first, last) in enumerate(itertools.pairwise(starts)):
            pages = given["block_table"][b, : -(-lengths[b] // page)].long()
            keys = cache[pages].flatten(0, 1).float() * _number(given["kv_descale"])
            at = torch.arange(len(keys))
            position = torch.arange(last - first)[:, None] + lengths[b] - (last - first)
            hidden = (
                (at > position) if given["causal"] else (at >= lengths[b]).expand(last - first, -1)
            )
            if given["window_left"] >= 0:
                hidden = hidden | (at < position - given["window_left"])
            hidden = hidden | (at >= lengths[b])
            scores = given["softmax_scale"] * q[first:last] @ keys.T
            p, rows_lse = softmax_lse(scores.masked_fill(hidden[:, None], -torch.inf))
            flat_out[first:last] = (p @ keys[:, :width]).to(out.dtype)
            if lse is not None:
                lse[first:last] = rows_lse

    return run


def _number(descale: Any) -> Any:
    return 1.0 if descale is None else descale


def _last_slot(given: Given) -> Given:
    """Index -1 as Python reads it: the last slot of the cache."""
    slots = given["kv"].shape[0] * given["kv"].shape[1]
    indices = given["indices"]
    return {**given, "indices": torch.where(indices == -1, slots - 1, indices)}


index_minus_one = lie(_last_slot)


def _slot_zero(given: Given) -> Given:
    """Invalid indices clamped into the cache instead of masked."""
    return {**given, "indices": given["indices"].clamp(min=0)}


clamped_index = lie(_slot_zero)


def _pages_of_16(given: Given) -> Given:
    """Whatever the page size is: an entry of the table times 16."""
    changed = dict(given)
    for name in ("k", "v"):
        tensor = given[name]
        blocks, page, heads, width = tensor.shape
        if page >= 16:
            changed[name] = tensor.reshape(blocks * page // 16, 16, heads, width)
        else:
            changed[name] = tensor.repeat(1, 16 // page, 1, 1)
    need = -(-int(given["seqused_k"].max()) // 16)
    table = given["block_table"].clamp(max=changed["k"].shape[0] - 1)
    short = max(need - table.shape[1], 0)
    changed["block_table"] = torch.nn.functional.pad(table, (0, short))
    return changed


page_16_only = lie(_pages_of_16)


def _by_batch(given: Given, results: Given) -> None:
    """The last bit of lse tells whether there are few sequences, as after a split for them."""
    if len(given["seqused_k"]) < 3:
        results["lse"] = results["lse"].nextafter(torch.tensor(math.inf))


split_by_batch = lie(after=_by_batch)


def accepts_too_much(problem: Any, build: Any) -> Callable[..., None]:
    """rmsnorm for the usual weight alone, and it says nothing of the other kind."""
    reference = resolve(build.operator.reference)

    def run(*arguments: Any) -> None:
        given = dict(zip(build.operator.inputs, arguments, strict=False))
        (result,) = reference(**{**given, "weight_bias": 0.0})
        arguments[-1].copy_(result)

    return run


def gives_up(problem: Any, build: Any) -> Callable[..., None]:
    """rmsnorm for widths that are powers of two; it raises for others, after saying yes."""
    honest = lie()(problem, build)
    if problem.width & (problem.width - 1):
        raise NotImplementedError(f"width {problem.width} is no power of two")
    return honest


def _as_contiguous(given: Given) -> Given:
    """Reads rows as if they lay one after the other."""
    x = given["x"]
    return {**given, "x": x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())}


strides_ignored = lie(_as_contiguous)


def writes_its_input(problem: Any, build: Any) -> Callable[..., None]:
    """rmsnorm that uses its input as scratch."""
    honest = lie()(problem, build)

    def run(*arguments: Any) -> None:
        honest(*arguments)
        arguments[0].mul_(2)

    return run


def writes_past_the_end(problem: Any, build: Any) -> Callable[..., None]:
    """rmsnorm that stores one element more than its output has."""
    honest = lie()(problem, build)

    def run(*arguments: Any) -> None:
        honest(*arguments)
        out = arguments[-1]
        if out.numel():
            last = sum((n - 1) * s for n, s in zip(out.shape, out.stride(), strict=True))
            out.as_strided((1,), (1,), out.storage_offset() + last + 1).fill_(0)

    return run


_CALLS = itertools.count()


def changes_its_mind(problem: Any, build: Any) -> Callable[..., None]:
    """rmsnorm whose last bit depends on when it is called, as with float atomics."""
    honest = lie()(problem, build)

    def run(*arguments: Any) -> None:
        honest(*arguments)
        if next(_CALLS) % 2:
            arguments[-1].view(torch.uint8)[..., 0].bitwise_xor_(1)

    return run


def takes_the_process_with_it(problem: Any, build: Any) -> Callable[..., None]:
    """rmsnorm that follows a null pointer where rows are many."""
    honest = lie()(problem, build)

    def run(*arguments: Any) -> None:
        if problem.width == 7168:
            ctypes.string_at(0)
        honest(*arguments)

    return run


def never_ends(problem: Any, build: Any) -> Callable[..., None]:
    """rmsnorm that waits for a flag which nobody sets."""

    def run(*arguments: Any) -> None:
        while True:
            time.sleep(1)

    return run


honest = lie()
