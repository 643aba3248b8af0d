# SPDX-License-Identifier: Apache-2.0
"""Who takes part in a bench: archkey's own kernel, and peers, through one small contract.

An adapter binds the keyword arguments of archkey's public function to another library's call:

    def mla_decode(inputs: Mapping[str, Any]) -> Bound:
        if inputs["kv_cache"].shape[1] != 64:
            raise NotServed("page size 64 only")
        ...
        return Bound(call, lambda: {"out": out, "lse": lse * LN2}, "schedule made once, outside")

What a library makes once for many steps (plans, schedules, layouts of weights) is made while
binding, and said in `how`; what it needs in every step belongs into the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Adapter", "Bound", "NotServed", "only"]


class NotServed(Exception):
    """The library cannot compute this call; the message says why, in a few words."""


@dataclass(frozen=True)
class Bound:
    """A call that is ready to be repeated.

    call     what is timed: no host synchronisation, if the library can do without. It may update
             its inputs in place as the operator does: nobody else has them
    outputs  after a call: results by the names of `Operator.outputs`, in archkey's conventions
             (natural-log LSE, token-major, -inf for empty rows); a subset if the library gives less
    how      what a reader of the time must know: what was left outside, how many launches
    """

    call: Callable[[], object]
    outputs: Callable[[], Mapping[str, torch.Tensor]]
    how: str = ""


Adapter = Callable[[Mapping[str, Any]], Bound]


def only(inputs: Mapping[str, Any], *known: str, **neutral: Any) -> None:
    """Refuse a call with an argument that the library has no counterpart for.

    known    arguments that the adapter passes on or judges itself
    neutral  others with the value that changes nothing: `window_left=-1`; None and False never do

    Raises NotServed.
    """
    for name, value in inputs.items():
        if name in known or value is None or value is False:
            continue
        if name in neutral and not isinstance(value, torch.Tensor) and value == neutral[name]:
            continue
        said = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
        raise NotServed(f"no counterpart for {name} = {said}")
