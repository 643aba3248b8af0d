# SPDX-License-Identifier: Apache-2.0
"""What adapters of Kimi Delta Attention share: whose states a call reads and writes.

Engines keep states in a pool and name slots; most libraries take one state for each sequence. Then
the call takes the states out of the pool first and puts them back last, as an engine has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archkey.bench.peers._refusals import all_covered, require
from archkey.bench.peers._results import joined

__all__ = [
    "TOKENS",
    "States",
    "check_tokens",
    "copied",
    "flat_slots",
    "number_of_sequences",
    "outputs",
    "sequences",
    "v_first_only",
    "wants_states",
]

TOKENS = ("q", "k", "v", "g", "beta")
"""What every call has."""


def flat_slots(inputs: Mapping[str, Any], name: str) -> torch.Tensor | None:
    """Slots `[N]`, or None. Refuses padding: libraries have no rule for it, or their own."""
    slots: torch.Tensor | None = inputs.get(name)
    if slots is None:
        return None
    require(bool((slots >= 0).all()), "negative slots")
    return slots.reshape(-1) if slots.dim() == 1 or slots.shape[1] == 1 else slots


def sequences(inputs: Mapping[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """cu_seqlens as these libraries declare it, int64, on the device and on the host."""
    bounds = inputs.get("cu_seqlens")
    if bounds is None:
        return None, None
    return bounds.long(), bounds.cpu().long()


def number_of_sequences(inputs: Mapping[str, Any]) -> int:
    """N: of cu_seqlens, or one for each row of the batch."""
    bounds = inputs.get("cu_seqlens")
    return len(inputs["v"]) if bounds is None else len(bounds) - 1


def wants_states(inputs: Mapping[str, Any]) -> bool:
    """Whether the call must return final states."""
    return inputs.get("initial_state_indices") is not None or bool(inputs.get("output_final_state"))


def v_first_only(inputs: Mapping[str, Any]) -> None:
    """Refuse states that have K before V."""
    stateless = inputs.get("initial_state") is None and not wants_states(inputs)
    require(stateless or inputs.get("state_v_first"), "states with V first only")


def check_tokens(inputs: Mapping[str, Any]) -> None:
    """Refuse what no library but ours computes: zeros in rows of no sequence."""
    all_covered(inputs.get("cu_seqlens"), inputs["q"].shape[1])


def copied(inputs: Mapping[str, Any]) -> str:
    """What `contiguous()` copies in every call, for `Bound.how`."""
    names = [name for name in TOKENS if not inputs[name].is_contiguous()]
    return f"{', '.join(names)} copied to be contiguous" if names else ""


def outputs(result: tuple[torch.Tensor, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """o and final_state, if the call has one, by their names."""
    o, final = result
    return {"o": o} if final is None else {"o": o, "final_state": final}


class States:
    """States before and after a call of a library that takes one for each sequence.

    dtype    that the library wants them in; None: as they are
    wanted   whether the call must return final states
    how      what that costs, for `Bound.how`
    """

    def __init__(self, inputs: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        self._source: torch.Tensor | None = inputs.get("initial_state")
        slots = flat_slots(inputs, "initial_state_indices")
        self._slots = None if slots is None else slots.long()
        self._dtype = dtype
        self.wanted = wants_states(inputs)
        pool = "" if slots is None else "states taken from the pool and put back in the call"
        converted = self._source is not None and dtype not in (None, self._source.dtype)
        self.how = joined(pool, f"states converted to {dtype}" if converted else "")

    def before(self) -> torch.Tensor | None:
        """The states that the call starts from, `[N, ..]`; a copy if they come from a pool."""
        if self._source is None:
            return None
        states = self._source
        if self._slots is not None:
            states = states.index_select(0, self._slots)
        return states if self._dtype is None else states.to(self._dtype)

    def after(self, final: torch.Tensor | None) -> torch.Tensor | None:
        """What the operator's final_state is: the pool with `final` in its slots, or `final`."""
        if self._slots is None or self._source is None or final is None:
            return final
        return self._source.index_copy_(0, self._slots, final.to(self._source.dtype))
