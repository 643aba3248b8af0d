# SPDX-License-Identifier: Apache-2.0
"""What archkey costs on the host: import, discovery, a decision, a bound plan, a functional call.

    archkey bench --host

Each row is the best of several repeats (the least disturbed one), beside its limit. A kernel
that does nothing stands for the launch, so that what remains is archkey's own. Rows "for scale"
do the same through others (`host_scale`, `host_rivals`), and ours is measured again beside each.
Times of a busy or virtual machine are upper bounds: read the ratios, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from archkey.bench import host_rivals, host_scale
from archkey.bench.host_row import Row, best, do_nothing, in_new_process
from archkey.kernel import Kernel, Run
from archkey.ops._contract import SESSIONS
from archkey.plugins import Loaded, Plugin
from archkey.session import Session, open

__all__ = ["measure", "nothing"]


def measure(repeats: int = 7) -> Iterator[Row]:
    """All rows, each as soon as it is known: archkey's, then others for scale."""
    yield from _fresh_process(repeats)
    yield from _calls(repeats)


def nothing(problem: Any, build: Any) -> Run:
    """Builder of a kernel that does nothing."""
    return do_nothing


_IMPORT = """
import time; start = time.perf_counter(); import archkey
print(time.perf_counter() - start)
import sys; assert not {"torch", "triton"} & set(sys.modules)
"""
_TORCH = """
import time; start = time.perf_counter(); import torch
print(time.perf_counter() - start)
"""
_DISCOVER = """
import time, archkey.plugins
start = time.perf_counter(); archkey.plugins.discover()
print(time.perf_counter() - start)
"""
_OPEN = """
import time, archkey.session
start = time.perf_counter(); archkey.open("cpu")
print(time.perf_counter() - start)
import sys; assert not {"torch", "triton"} & set(sys.modules)
"""


def _fresh_process(repeats: int) -> Iterator[Row]:
    """Costs that are paid once a process, measured in new ones."""
    ours = _milliseconds(_IMPORT, repeats)
    yield Row("import archkey, without torch and triton", ours, "ms", 60.0)
    for what, code, limit in (
        ("find the installed plugins", _DISCOVER, 20.0),
        ("probe, load plugins and open a session", _OPEN, None),
    ):
        yield Row(what, _milliseconds(code, repeats), "ms", limit)
    torch = _milliseconds(_TORCH, min(repeats, 3))  # each takes seconds
    yield Row("for scale: import torch", torch, "ms", ratio=torch / ours)


def _milliseconds(code: str, repeats: int) -> float:
    return min(float(in_new_process(code)) for _ in range(repeats)) * 1e3


def _calls(repeats: int) -> Iterator[Row]:
    """Costs of every call, on small CPU tensors and a kernel that does nothing."""
    import torch

    from archkey.ops.rmsnorm import RmsNormProblem, fused_add_rmsnorm, fused_qk_rmsnorm, rmsnorm

    x, residual, row = (torch.randn(4, n, dtype=torch.bfloat16) for n in (512, 512, 2112))
    weight, q_weight = (torch.ones(n, dtype=torch.bfloat16) for n in (512, 1536))
    out, q_out = torch.empty_like(x), torch.empty(4, 1536, dtype=torch.bfloat16)
    q, k = row[:, :1536], row[:, 1536:2048]
    session = _session_of_nothing()
    problem = RmsNormProblem("bfloat16", "bfloat16", "bfloat16", 512)
    run = session.plan(problem).run
    direct = best(lambda: do_nothing(x, weight, 1e-6, 0.0, False, out), repeats)
    bound = best(lambda: run(x, weight, 1e-6, 0.0, False, out), repeats)
    decide = best(lambda: session.decide(problem), repeats, 2_000)
    yield Row("decide, with every reason", decide, "us")
    yield Row("a bound plan, beyond the kernel's function", max(bound - direct, 0.0), "us", 0.3)
    before = SESSIONS.get(x.device)
    SESSIONS[x.device] = session
    try:
        for what, call in (
            ("rmsnorm(x, weight, out=...)", lambda: rmsnorm(x, weight, 1e-6, out=out)),
            ("fused_add_rmsnorm(x, residual, ...)", lambda: fused_add_rmsnorm(x, residual, weight)),
            (
                "fused_qk_rmsnorm(q, ..., q_out=..., k_out=...)",
                lambda: fused_qk_rmsnorm(
                    q, q_weight, 1e-6, k, weight, 1e-6, q_out=q_out, k_out=out
                ),
            ),
            *_attention_calls(),
            *_paged_and_kda_calls(),
        ):
            with torch.inference_mode():  # as engines call it
                cost = best(call, repeats) - direct
            yield Row(f"{what}, beyond the launch", cost, "us", 5.0)

        def ours() -> float:
            with torch.inference_mode():
                return best(lambda: rmsnorm(x, weight, 1e-6, out=out), repeats) - direct

        yield from host_scale.rows(repeats, ours)
        yield from host_rivals.rows(repeats, ours)
    finally:
        SESSIONS.pop(x.device)
        if before is not None:
            SESSIONS[x.device] = before


def _attention_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Decode calls as engines make them: with a buffer for the output."""
    import torch

    from archkey.ops.mla import mla_decode
    from archkey.ops.sparse_mla import sparse_mla_decode

    q, out = torch.zeros(2, 1, 16, 576).bfloat16(), torch.zeros(2, 1, 16, 512).bfloat16()
    cache, packed = torch.zeros(4, 64, 576).bfloat16(), torch.zeros(4, 64, 656).byte()
    table, lengths, indices = (torch.zeros(*n).int() for n in ((2, 3), (2,), (2, 1, 64)))
    yield (
        "mla_decode(q, ..., out=...)",
        lambda: mla_decode(q, cache, table, lengths, softmax_scale=0.1, out=out),
    )
    yield (
        "sparse_mla_decode(q, ..., out=...)",
        lambda: sparse_mla_decode(
            q, packed, indices, softmax_scale=0.1, kv_format="fp8_v32", out=out
        ),
    )


def _paged_and_kda_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Decode calls of eight and nine tensors, whose metadata alone takes 3 us to read."""
    import torch

    from archkey.ops.attention import unified_attention
    from archkey.ops.kda import kda_packed_decode

    q, out = (torch.zeros(2, 8, 256).bfloat16() for _ in range(2))
    cache, pool = torch.zeros(4, 16, 1, 256).bfloat16(), torch.zeros(3, 8, 128, 128)
    starts, lengths, slots = (torch.zeros(n).int() for n in (3, 2, 2))
    table, none = torch.zeros(2, 3).int(), (-1, -1)
    yield (
        "unified_attention(q, ...)",
        lambda: unified_attention(
            q, cache, cache, out, starts, 1, lengths, 48, 0.1, True, none, table
        ),
    )
    mixed, a, b = (torch.zeros(2, n * 8).bfloat16() for n in (384, 128, 1))
    o, rate, bias = torch.zeros(2, 1, 8, 128).bfloat16(), torch.zeros(8), torch.zeros(1024)
    yield (
        "kda_packed_decode(mixed_qkv, ...)",
        lambda: kda_packed_decode(
            mixed, a, b, A_log=rate, dt_bias=bias, scale=0.1, initial_state=pool,
            ssm_state_indices=slots, out=o,
        ),
    )  # fmt: skip


def _session_of_nothing() -> Session:
    """A session of the CPU in which every kernel does nothing."""
    cpu = open("cpu")
    plugins = tuple(replace(plugin, kernels=_empty(plugin)) for plugin in cpu.plugins)
    from archkey.settings import settings

    return Session(cpu.device, settings(), loaded=Loaded(plugins, cpu.report))


def _empty(plugin: Plugin) -> tuple[Kernel, ...]:
    return tuple(replace(k, build="archkey.bench.host:nothing") for k in plugin.kernels)
