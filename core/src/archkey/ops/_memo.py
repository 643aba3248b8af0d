# SPDX-License-Identifier: Apache-2.0
"""Problems by the metadata of a call.

Checks read metadata only, so a call whose metadata passed once passes again and comes to the same
Problem. Reading the metadata and looking it up takes half the time of checking it.

    key = ("rmsnorm", metadata(x, weight, out), flag)
    problem = session.problems.get(key)
    if problem is None:
        problem = remember(session.problems, key, _check(x, weight, out, flag))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["metadata", "remember"]

K = TypeVar("K")
V = TypeVar("V")

_MOST = 4096  # batch sizes differ from call to call; the shapes of a long run would pile up


def metadata(*tensors: torch.Tensor | None) -> tuple[Any, ...] | None:
    """dtype, shape, strides and device of each, and whether all pointers are multiples of 16.

    An output that is left to its default follows from the inputs: pass None for it. None if one
    of them is not a tensor: let the checks say so.
    """
    facts: list[Any] = []
    bits = 0
    try:
        for tensor in tensors:
            if tensor is None:
                facts.append(None)
            else:
                facts += (tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
                bits |= tensor.data_ptr()
    except AttributeError:
        return None
    facts.append(bits & 15 == 0)
    return tuple(facts)


def remember(known: dict[K, V], key: K, value: V) -> V:
    """Keep what a key came to; forget all when there are too many."""
    if len(known) >= _MOST:
        known.clear()
    known[key] = value
    return value
