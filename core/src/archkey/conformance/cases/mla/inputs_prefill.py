# SPDX-License-Identifier: Apache-2.0
"""Calls of `mla_prefill` as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import (
    DEEPSEEK_SCALE,
    GAIN,
    descale_kind,
    real_values,
    stored,
)
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import (
    bounds,
    dtype_of,
    empty,
    factor,
    head_major,
    spread,
)

__all__ = ["Prefill", "Ragged"]


class Ragged(NamedTuple):
    """Queries `[q_len, H, dqk]` of a sequence, its keys `[n, Hk, dqk]` and values `[n, Hk, dv]`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class Prefill:
    """A call of `mla_prefill`.

    widths      of q and k, and of v
    kv_heads    0 for as many as heads
    projection  k and v are views of one tensor `[Tk, Hk, dqk + dv]`
    spare       rows of q, and poisoned ones of k and v, after the last sequence
    far         "q", "k", "v", "out" or "lse": by token; "q heads", "k heads": by head

    The others are those of `Decode`; max_seqlen_* are never left out. Keys of a sequence without
    queries are poisoned.
    """

    heads: int
    q_lens: tuple[int, ...]
    k_lens: tuple[int, ...]
    widths: tuple[int, int] = (192, 128)
    kv_heads: int = 0
    dtype: str = "bf16"
    q_descale: float | None = None
    k_descale: float | None = None
    v_descale: float | None = None
    tensors: str = ""
    causal: bool = True
    projection: bool = False
    gap: int = 0
    spare: int = 0
    out: str = ""
    lse: str = "new"
    longest: str = "tight"
    far: str = ""
    scale: float = DEEPSEEK_SCALE
    level: float = 0.0
    invariant: bool = False

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        return self.of(make, self.drawn(make))

    def drawn(self, make: Maker) -> list[Ragged]:
        """The sequences; none depends on those after it."""
        return list(self._sequences(make))

    def of(self, make: Maker, sequences: Sequence[Ragged]) -> Mapping[str, Any]:
        """Keyword arguments for sequences of these lengths."""
        rows, given = sum(self.q_lens) + self.spare, dict[str, Any]()
        queries = [sequence.q for sequence in sequences]
        q = torch.cat([*queries, self._of_nobody(make)])
        k, v = self._keys(make, sequences)
        if self.out:
            out = empty(make, rows, self.heads, self.widths[1], dtype=DTYPES[self.out])
            given["out"] = self._laid(make, "out", out)
        if self.lse == "head-major":
            given["lse"] = head_major(make, rows, self.heads)
        elif self.far == "lse":
            given["lse"] = make.far(empty(make, rows, self.heads, dtype=torch.float32))
        loose = 0 if self.longest == "tight" else 70
        return {
            "q": self._laid(make, "q", q),
            "k": self._laid(make, "k", k),
            "v": self._laid(make, "v", v),
            "cu_seqlens_q": bounds(make, self.q_lens),
            "cu_seqlens_k": bounds(make, self.k_lens),
            "max_seqlen_q": max(self.q_lens) + loose,
            "max_seqlen_k": max(self.k_lens) + loose,
            "softmax_scale": self.scale,
            "causal": self.causal,
            "return_lse": bool(self.lse),
            **({"batch_invariant": True} if self.invariant else {}),
            **{
                f"{name}_descale": factor(make, descale, descale_kind(self.tensors, name))
                for name, descale in zip("qkv", self._descales(), strict=True)
            },
            **given,
        }

    def _of_nobody(self, make: Maker) -> torch.Tensor:
        """Queries after those of the last sequence."""
        q = real_values(make, self.spare, self.heads, self.widths[0], gain=GAIN)
        return stored(q, dtype_of(make, self.dtype), self.q_descale)

    def _descales(self) -> tuple[float | None, float | None, float | None]:
        return self.q_descale, self.k_descale, self.v_descale

    def _laid(self, make: Maker, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` with the strides that the call gives it."""
        if self.far.partition(" ")[0] == name:
            return make.far(tensor, dim=1 if self.far.endswith(" heads") else 0)
        if self.projection and name in "kv":
            return tensor  # its strides are those of the projection
        return spread(make, tensor, self.gap)

    def _sequences(self, make: Maker) -> Iterator[Ragged]:
        """Sequence by sequence."""
        (d, dv), dtype = self.widths, dtype_of(make, self.dtype)
        heads = self.kv_heads or self.heads
        for q_len, k_len in zip(self.q_lens, self.k_lens, strict=True):
            q = real_values(make, q_len, self.heads, d, gain=GAIN)
            k, v = (real_values(make, k_len, heads, width) for width in (d, dv))
            if self.level:
                k, q = k + 0.1, q + self.level / (0.1 * d * self.scale)
            numbers = zip((q, k, v), self._descales(), strict=True)
            yield Ragged(*(stored(x, dtype, descale) for x, descale in numbers))

    def _keys(self, make: Maker, sequences: Sequence[Ragged]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all, and rows of nobody."""
        (d, dv), dtype = self.widths, dtype_of(make, self.dtype)
        heads, total = self.kv_heads or self.heads, sum(self.k_lens)
        room = empty(make, total + self.spare, heads, d + dv, dtype=dtype)
        ends = pairwise(accumulate(self.k_lens, initial=0))
        for (start, end), (q, k, v) in zip(ends, sequences, strict=True):
            if len(q):
                room[start:end, :, :d], room[start:end, :, d:] = k, v
        k, v = room[..., :d], room[..., d:]
        return (k, v) if self.projection else (k.contiguous(), v.contiguous())
