# SPDX-License-Identifier: Apache-2.0
"""What making inputs takes at full size, from metadata alone: nothing is allocated here."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from archkey.bench.workload import Supply, Workload, workloads_of
from archkey.ops import OPERATORS

GIB = 1 << 30
MOST_OPERATIONS = 10_000
"""Of torch: a loop over sequences has fewer, one over tokens has more."""


class Watch(TorchDispatchMode):
    """Counts operations, and the bytes that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.live = self.peak = 0
        self.dtypes: set[torch.dtype] = set()
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.dtypes.add(tensor.dtype)
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _watched() -> list[Workload]:
    """The last of the quick ones of each operator, and what has the largest inputs of all.

    Not of the request table, whose rows are looked up by number: metadata has none.
    """
    listed = [w for operator in OPERATORS.values() for w in workloads_of(operator)]
    last = {w.operator: w for w in listed if w.quick}
    del last["req_to_token_to_page_table"]
    (largest,) = (w for w in listed if w.sizes == "decode b128 kv32k")
    return [*last.values(), largest]


@pytest.mark.parametrize("workload", _watched(), ids=lambda w: f"{w.operator} {w.name}")
def test_inputs_are_made_in_few_steps_and_little_memory(workload: Workload) -> None:
    with FakeTensorMode(), Watch() as watch:
        inputs = workload.inputs(Supply("cpu", 0))
    assert torch.float64 not in watch.dtypes
    assert watch.operations < MOST_OPERATIONS
    own = [x.numel() * x.element_size() for x in inputs.values() if isinstance(x, torch.Tensor)]
    assert max(own) <= watch.peak < 20 * GIB


def test_watching_sees_what_lives_at_once() -> None:
    with FakeTensorMode(), Watch() as watch:
        for _ in range(3):
            kept = torch.zeros(GIB, dtype=torch.uint8)
            assert (kept + 1).shape == kept.shape
            del kept
    assert (watch.peak, watch.live) == (2 * GIB, 0)
