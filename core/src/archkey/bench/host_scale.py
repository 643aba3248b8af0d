# SPDX-License-Identifier: Apache-2.0
"""For scale: what the common ways from a public function to a kernel cost, beyond the launch.

Each leads to the same function that does nothing, with the arguments of `rmsnorm(x, weight, eps,
out=out)`, in inference mode. None of them checks its arguments or chooses; archkey's call does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pluggy

from archkey.bench.host_row import Row, best, do_nothing, ratio

__all__ = ["rows"]

_SCHEMA = "(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()"


def rows(repeats: int, ours: Callable[[], float]) -> Iterator[Row]:
    """A row for each way; `ours` measures archkey's functional call [microseconds]."""
    import torch

    x, weight = torch.randn(4, 512).bfloat16(), torch.ones(512).bfloat16()
    out = torch.empty_like(x)

    def cost(call: Callable[[], object]) -> float:
        with torch.inference_mode():  # as engines call it
            return best(call, repeats)

    direct = cost(lambda: do_nothing(x, weight, 1e-6, out))
    for what, call, note in _ways(x, weight, out):
        beyond = max(cost(call) - direct, 0.0)
        yield Row(f"for scale: {what}", beyond, "us", None, note, ratio(beyond, ours()))
    yield Row("for scale: torch.empty_like", cost(lambda: torch.empty_like(x)), "us")


def _ways(x: Any, weight: Any, out: Any) -> Iterator[tuple[str, Callable[[], object], str]]:
    key = ("rmsnorm", x.dtype, 512)
    ready = {key: do_nothing}
    yield (
        "a dict lookup on a ready key",
        lambda: ready[key](x, weight, 1e-6, out),
        "the least that any dispatch costs",
    )
    hook = _hook()
    yield (
        "a pluggy hook, one implementation",
        lambda: hook(x=x, weight=weight, eps=1e-6, out=out),
        "archkey asks hooks when it loads plugins, never in a call",
    )
    defined, decorated = _operators()
    for name, operator in (("Library.define and impl", defined), ("custom_op", decorated)):
        yield (
            f"torch.library, {name}",
            lambda operator=operator: operator(x, weight, 1e-6, out),  # type: ignore[misc]
            "a Python function as a torch operator that writes `out`, CPU key",
        )


def _hook() -> Callable[..., object]:
    """A hook of the arguments above that one plugin implements."""
    name = "archkey_bench"

    class Spec:
        @pluggy.HookspecMarker(name)(firstresult=True)
        def nothing(self, x: Any, weight: Any, eps: float, out: Any) -> None: ...

    class Plugin:
        @pluggy.HookimplMarker(name)
        def nothing(self, x: Any, weight: Any, eps: float, out: Any) -> None: ...

    manager = pluggy.PluginManager(name)
    manager.add_hookspecs(Spec)
    manager.register(Plugin())
    return manager.hook.nothing


@cache
def _operators() -> tuple[Callable[..., object], Callable[..., object]]:
    """The function as a torch operator, in both ways; a process can define a name once."""
    import torch

    library = torch.library.Library("archkey_bench", "FRAGMENT")
    library.define("defined" + _SCHEMA)
    library.impl("defined", do_nothing, "CPU")
    _ALIVE.append(library)
    decorated = torch.library.custom_op(
        "archkey_bench::decorated", do_nothing, mutates_args=("out",), schema=_SCHEMA
    )
    return torch.ops.archkey_bench.defined, decorated


_ALIVE: list[Any] = []
"""Libraries of torch take their operators with them when they go."""
