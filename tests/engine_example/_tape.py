# SPDX-License-Identifier: Apache-2.0
"""A CUDA graph in slow motion, on the CPU: what a function did is recorded and done again.

As in a graph, each recorded operation runs again with the tensors and the numbers of its recording,
into the tensors that it made then. So a length that was read on the host, or a tensor that was made
anew outside, is replayed as it was; and to wait for a value while recording is an error. An
operator of archkey is one operation: on a device with a kernel for it, it is one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.engine_example.engine import Engine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OPERATORS = (
    "rmsnorm", "fused_add_rmsnorm", "unified_attention", "req_to_token_to_page_table",
    "ragged_kv_indices_to_page_table",
)  # fmt: skip
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Tape(TorchDispatchMode):
    """Records within `with`; `replay()` does it again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside:
            return func(*args, **(kwargs or {}))
        if func in WAITS:
            raise RuntimeError(f"{func} waits for the device inside a captured region")
        return self.record(func, args, kwargs or {})

    def record(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        outer, self.inside = self.inside, True
        try:
            out = call(*args, **kwargs)
        finally:
            self.inside = outer
        self.calls.append((call, args, kwargs, out))
        return out

    def replay(self) -> None:
        for call, args, kwargs, out in self.calls:
            pairs = zip(tree_leaves(out), tree_leaves(call(*args, **kwargs)), strict=True)
            for then, now in pairs:
                # The same memory after an operation in place, and of a view.
                if then is not None and then.data_ptr() != now.data_ptr():
                    then.copy_(now)


@torch.no_grad()
def capture(engine: Engine) -> None:
    """What `Replay.capture` does on a device."""
    for size in engine.replay.sizes:
        with Tape() as tape:
            for name in OPERATORS:
                setattr(engine.session, name, _whole(tape, getattr(engine.session, name)))
            outputs = engine.replay.body(size)
        for name in OPERATORS:
            delattr(engine.session, name)  # the class finds the method again
        engine.replay.captured[size] = tape, outputs


def _whole(tape: Tape, method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: tape.record(method, args, kwargs)
