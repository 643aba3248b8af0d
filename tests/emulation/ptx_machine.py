# SPDX-License-Identifier: Apache-2.0
"""Runs lines of PTX on the emulator, and single instructions on a row of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from archkey.conformance.emulation.ptx.launcher import execute, ordered
from archkey.conformance.emulation.ptx.machine import Order
from archkey.conformance.emulation.ptx.parameters import MAP, Described
from archkey.conformance.emulation.wave import Array

NAMES = "abcdefgh"

HEADER = """.version 8.7
.target {target}
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry body(
    {parameters}
)
.reqntid {threads}{cluster}
{{
    .reg .pred %p<16>;
    .reg .b16 %rs<64>;
    .reg .b32 %r<300>;
    .reg .b64 %rd<64>;
"""


def text(
    lines: Sequence[str],
    pointers: int = 1,
    threads: int = 128,
    target: str = "sm_90a",
    maps: int = 0,
    cluster: int = 1,
    before: str = "",
) -> str:
    """A kernel of `pointers` parameters, in %rd0 and on; %r0 is the thread, %rd9 four times it.

    maps     tensor maps as parameters after them, whose addresses are in %rd40 and on
    cluster  workgroups of one
    before   the kernel: functions and variables
    """
    kinds = [".u64 body_param_{}"] * pointers + [".align 64 .b8 body_param_{}[128]"] * maps
    kinds += [".u64 body_param_{}"] * 2  # Triton's own two
    parameters = ",\n    ".join(f".param {kind.format(n)}" for n, kind in enumerate(kinds))
    many = f"\n.explicitcluster\n.reqnctapercluster {cluster}" if cluster > 1 else ""
    head = HEADER.format(target=target, parameters=parameters, threads=threads, cluster=many)
    start = [f"ld.param.b64 %rd{n}, [body_param_{n}];" for n in range(pointers)]
    for n in range(maps):
        start += [f"mov.b64 %rd{40 + n}, body_param_{pointers + n};"]
        start += [f"cvta.param.u64 %rd{40 + n}, %rd{40 + n};"]
    start += ["mov.u32 %r0, %tid.x;", "mul.wide.u32 %rd9, %r0, 4;", "mov.b32 %r1, global_smem;"]
    head = head.replace(".visible .entry", f"{before}.visible .entry")
    return head + "\n".join(f"    {line}" for line in [*start, *lines, "ret;"]) + "\n}\n"


def launch(
    lines: Sequence[str],
    *tensors: torch.Tensor,
    threads: int = 128,
    shared: int = 0,
    target: str = "sm_90a",
    order: Order | None = None,
    maps: Sequence[Described] = (),
    cluster: int = 1,
    before: str = "",
) -> None:
    """Run the lines in one workgroup or cluster; the tensors are a, b, c, .., then come maps."""
    given = dict(zip(NAMES, (*tensors, *maps), strict=False))
    signature = {n: MAP if isinstance(v, Described) else "*i32" for n, v in given.items()}
    source = text(lines, len(tensors), threads, target, len(maps), cluster, before)
    with ordered(order or Order()):
        execute(source, (1, 1, 1), signature, given, shared)


_LOAD = {"b16": "%rs", "b32": "%r", "b64": "%rd"}


def apply(
    line: str, kinds: str, *operands: Array, result: str = "b32", target: str = "sm_90a"
) -> Array:
    """Registers after one instruction on as many threads as the operands are long.

    line  with D for its result and A, B, C for the operands, whose widths are in `kinds`: "b32 b16"
    """
    n = len(operands[0])
    threads = (n + 31) // 32 * 32
    body, tensors = [], []
    widths = [*kinds.split(), result]
    for letter, width, values in zip("ABC", kinds.split(), operands, strict=False):
        size = int(width[1:]) // 8
        data = np.zeros(threads, f"u{size}")
        data[:n] = np.asarray(values).view(f"u{size}")
        tensors.append(torch.from_numpy(data.view(f"i{size}").copy()))
        at = len(tensors) - 1
        register = f"{_LOAD[width]}{20 + at}"
        body += _at(at, size) + [f"ld.global.{width} {register}, [%rd8];"]
        line = line.replace(letter, register)
    if result == "pred":
        line = line.replace("D", "%p1")
        body += [line, "selp.b32 %r30, 1, 0, %p1;"]
        widths[-1], source = "b32", "%r30"
    else:
        source = f"{_LOAD[result]}30"
        body += [line.replace("D", source)]
    size = int(widths[-1][1:]) // 8
    tensors.append(torch.zeros(threads, dtype=getattr(torch, f"int{8 * size}")))
    body += [*_at(len(tensors) - 1, size), f"st.global.{widths[-1]} [%rd8], {source};"]
    launch(body, *tensors, threads=threads, target=target)
    return tensors[-1].numpy()[:n].view(f"u{size}")


def _at(pointer: int, size: int) -> list[str]:
    return [f"mad.wide.u32 %rd8, %r0, {size}, %rd{pointer};"]


def anything(dtype: Any, n: int = 64, seed: int = 0) -> Array:
    """Random bits, the edges of integers and floats first."""
    random = np.random.default_rng(seed)
    size = np.dtype(dtype).itemsize
    bits = (
        random.integers(0, 1 << 8 * size, n, np.uint64, endpoint=False)
        if size < 8
        else (random.integers(0, 1 << 63, n, np.uint64) * 2 + random.integers(0, 2, n, np.uint64))
    )
    bits = bits.astype(f"u{size}")
    top = 1 << 8 * size - 1
    edges = [0, 1, 2, top - 1, top, top + 1, 2 * top - 1, 31, 32, 33]
    bits[: len(edges)] = np.array(edges, np.uint64).astype(f"u{size}")
    return bits.view(dtype)
