# SPDX-License-Identifier: Apache-2.0
"""Loads, stores and atomics against the pseudocode of AMD's ISA reference: see `pseudocode`."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tests.emulation.machine import LANE, run, wave

pytest.importorskip("tinygrad", reason="tinygrad, of the development requirements")

from tests.emulation import pseudocode
from tests.emulation.isa_cases import known, memory_names, scalar_load_names, words
from tests.emulation.isa_numbers import N
from tests.emulation.pseudocode import TEXTS

from archkey.conformance.emulation.memory import Room


def _registers(text: str, *names: str) -> int:
    """How many registers a variable of the pseudocode fills."""
    sizes = [32]
    for name in names:
        found = re.findall(rf"\b{name}(?:\[(\d+) :|\.[a-z]+(\d+))", text)
        sizes += [int(high) + 1 if high else int(size) for high, size in found]
    return -(-max(sizes) // 32)


def _memory_line(name: str, data: int, result: int) -> str:
    """Addresses stand in v[20:21] or v20, data in v[10:13] and v[14:17], results go to v[0:3]."""
    space, _, rest = name.partition("_")
    to, given = (
        f"v[{at}:{at + n - 1}]" if n > 1 else f"v{at}" for at, n in ((0, result), (10, data))
    )
    if space == "ds":
        more = " offset0:1 offset1:2" if re.match(r"(read|write)2", rest) else ""
        other = given.replace("v10", "v14").replace("[10:11]", "[14:15]")
        both = f"{given}, {other}" if re.match("write2|cmpst", rest) else given
        if not re.match("read|write", rest):
            return f"{name} {f'{to}, ' if 'rtn' in rest else ''}v20, {both}"
        return f"{name} {to}, v20{more}" if "read" in rest else f"{name} v20, {both}{more}"
    where = {"global": "v[20:21]", "scratch": "v20", "buffer": "v20, s[4:7], 0 offen"}[space]
    if space == "buffer":
        returns = " sc0" if "atomic" in rest else ""
        return f"{name} {to if 'load' in rest else given}, {where}{returns}"
    if "load" in rest:
        return f"{name} {to}, {where}, off"
    if "store" in rest:
        return f"{name} {where}, {given}, off"
    return f"{name} {to}, {where}, {given}, off sc0"


SPAN = 32 * 64
"""Bytes of a lane: the two addresses of ds_read2st64_b64 are 512 apart."""


@pytest.mark.parametrize("name", [*memory_names()])
def test_memory_instructions(name: str) -> None:
    """Registers and memory afterwards."""
    text = TEXTS[name]
    data, result = (
        _registers(text, "DATA", "VDATA", "DATA2"),
        _registers(text, "RETURN_DATA", "VDATA"),
    )
    floats = re.search(r"_f(32|64|16)$|bf16$", name)
    random = np.random.default_rng(len(name))
    lanes = range(16 if "2st64" in name else 64)
    span = SPAN if "2st64" in name else 64
    memory = random.integers(0, 256, len(lanes) * span, dtype=np.uint8)
    given = [words(n, bool(floats), "16" in name) for n in range(8)]
    if floats:
        kind = {"32": np.float32, "64": np.float64}.get(floats[1] or "", np.float16)
        values = random.standard_normal(len(memory) // np.dtype(kind).itemsize)
        memory = values.astype(kind).view(np.uint8).copy()
        raw = random.standard_normal(64 * 4).astype(kind).view(np.uint32)
        given = [raw[n * 64 : n * 64 + 64] for n in range(2)] * 4
        if kind is np.float64:
            given = [*raw[:128].reshape(64, 2).T] * 4
    at = np.arange(64, dtype=np.int64) * span % len(memory)
    if "cmpswap" in name:  # half of the lanes find what they look for
        half = data // 2
        for n in range(half):
            held = memory.view(np.uint32)[at // 4 + n]
            given[half + n] = np.where(LANE % 2 == 0, held, given[half + n])
    if "cmpst" in name:
        for n in range(data):
            held = memory.view(np.uint32)[at // 4 + n]
            given[n] = np.where(LANE % 2 == 0, held, given[n])
    registers = {f"v{10 + n}": words for n, words in enumerate(given)}
    old = [words(40 + n, False, False) for n in range(4)]
    registers |= {f"v{n}": words for n, words in enumerate(old)}
    space = name.partition("_")[0]
    base = memory.ctypes.data if space == "global" else 0
    registers |= {
        "v20": (base + at & 0xFFFFFFFF).astype("u4"),
        "v21": (base + at >> 32).astype("u4"),
    }
    start = memory.ctypes.data
    buffer = {"s4": start & 0xFFFFFFFF, "s5": start >> 32, "s6": len(memory), "s7": 0x27000}
    own = Room.at("data", start, memory.nbytes)
    mask = (1 << len(lanes)) - 1
    on = wave(exec_mask=mask, lds=len(memory), rooms=(own,), **buffer, **registers)
    before = memory.copy()
    if space == "ds":
        on.group.lds.write(0, np.arange(len(memory)), memory[None])
    if space == "scratch":
        on.scratch = memory.reshape(64, span).copy()
        for lane in lanes:
            on.u32[20][lane] = 0
    run(on, _memory_line(name, data, result), target=known()[name])
    after = memory
    if space == "ds":
        after = on.group.lds.read(0, np.arange(len(memory)), 1, 1)[0]
    if space == "scratch":
        after = on.scratch.reshape(-1)
    for lane in lanes:
        place = int(at[lane])
        held = {place + n: int(byte) for n, byte in enumerate(before[place : place + span])}
        loads = "load" in name or "read" in name
        env = pseudocode.run(
            name,
            {
                **{"MEM": held, "ADDR": N(place, "u", 32), "OFFSET": N(0, "u", 32)},
                **dict.fromkeys(("SADDR", "SRSRC", "SOFFSET", "VADDR"), N(place, "u", 32)),
                **{"OFFSET0": N(1, "u", 32), "OFFSET1": N(2, "u", 32)},
                **{"DATA": _lane(given[:4], lane), "DATA2": _lane(given[4:], lane)},
                **{"VDATA": _lane(old if loads else given[:4], lane)},
                "RETURN_DATA": _lane(old, lane),
            },
        )
        for n in range(span):
            assert after[place + n] == env["MEM"][place + n], (name, lane, n)
        if loads or "atomic" in name or "rtn" in name:
            at_result = 10 if space == "buffer" and "atomic" in name else 0
            returned = env["VDATA" if re.search(r"VDATA(\.|\[)[^=;]*=", text) else "RETURN_DATA"]
            found = [int(on.u32[at_result + n][lane]) for n in range(result)]
            want = [returned.bits >> 32 * n & 0xFFFFFFFF for n in range(result)]
            assert found == want, (name, lane)


def _lane(rows: list[np.ndarray], lane: int) -> N:
    return N(sum(int(row[lane]) << 32 * n for n, row in enumerate(rows)), "b", 128)


@pytest.mark.parametrize("name", [*scalar_load_names()])
def test_scalar_loads(name: str) -> None:
    memory = np.arange(1, 65, dtype=np.uint8)
    count = int(name.partition("dword")[2].lstrip("x") or 1)
    start = memory.ctypes.data
    own = Room.at("data", start, memory.nbytes)
    on = wave(rooms=(own,), s0=start & 0xFFFFFFFF, s1=start >> 32)
    run(on, f"{name} {f's[40:{39 + count}]' if count > 1 else 's40'}, s[0:1], 0x0")
    held = {n: int(byte) for n, byte in enumerate(memory)}
    zero = N(0, "u", 32)
    places = dict.fromkeys(("SBASE", "SOFFSET", "OFFSET"), zero)
    env = pseudocode.run(name, {"MEM": held, "SDATA": N(0, "b", 32 * count), **places})
    assert on.s[40 : 40 + count] == [env["SDATA"].bits >> 32 * n & 0xFFFFFFFF for n in range(count)]
