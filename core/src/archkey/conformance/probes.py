# SPDX-License-Identifier: Apache-2.0
"""Capability probes: is what a plugin says of a target true of the code compiled for it?

A small body is compiled for the target, by the real compiler, and its machine code is searched for
the instruction that the claim is about. What no machine code shows is told as such. That claims
agree with each other and with the platform needs no compiler: see `implications`.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from archkey.conformance.instructions import INSTRUCTIONS
from archkey.conformance.machine_code import MachineCode, read
from archkey.launch import Program, compile_for, interpreting
from archkey.probe import Device

__all__ = ["Probed", "probe_capability"]


class Probed(NamedTuple):
    """proved: True, False (the claim is wrong), or None: it cannot be told here, for `reason`."""

    proved: bool | None
    reason: str


@dataclass(frozen=True)
class _Shape:
    """One program: a body of `archkey.kernels.probe_bodies`, its types, constants and options."""

    text: str
    body: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...] = ()
    refusal: str = ""
    """Matches the compiler's error if the target has no such thing; other errors tell nothing."""

    def program(self) -> Program:
        """The Program; imports triton."""
        from archkey.kernels import probe_bodies

        body, types = getattr(probe_bodies, self.body), dict(self.types)
        return Program(body, types, dict(self.constants), frozenset(types), dict(self.options))


def _moving(text: str, body: str, size: int, refusal: str = "", **options: Any) -> _Shape:
    types = (("x", "*bf16"), ("y", "*bf16"))
    return _Shape(text, body, types, (("N", size),), tuple(options.items()), refusal)


def _product(text: str, dtype: str, refusal: str = "", **options: Any) -> _Shape:
    types = (("x", f"*{dtype}"), ("y", f"*{dtype}"), ("out", "*fp32"))
    precision = "tf32" if dtype == "fp32" else None
    constants = (("M", 128), ("N", 64), ("K", 64), ("PRECISION", precision))
    return _Shape(text, "product_body", types, constants, tuple(options.items()), refusal)


def _scaled(text: str, scale: str, group: int) -> _Shape:
    names = {"x": "u8", "x_scale": scale, "y": "u8", "y_scale": scale, "out": "fp32"}
    types = tuple((name, f"*{dtype}") for name, dtype in names.items())
    constants = (("M", 128), ("N", 64), ("K", 128), ("GROUP", group))
    return _Shape(text, "scaled_body", types, constants, (), r"Unsupported DotScaleOp")


# Triton's names of the flavours: fp8e4nv is OCP's e4m3fn, fp8e4b8 is e4m3fnuz.
_NO_FP8 = r"type fp8\w+ not supported in this architecture"
_FP8 = {
    "e4m3fn": _product("a product of e4m3fn", "fp8e4nv", _NO_FP8),
    "e4m3fnuz": _product("a product of e4m3fnuz", "fp8e4b8", _NO_FP8),
}
_COPY = _moving("a copy by one warp", "copy_body", 256, num_warps=1)
_BF16 = _product("a product of bfloat16", "bf16")
_TF32 = _product("a product of float32 as TF32", "fp32", r"input_precision")
_MXFP4 = _scaled("a product of MXFP4", "u8", 32)
_NVFP4 = _scaled("a product of NVFP4", "fp8e4nv", 16)
_TILE = _moving("a copy by tensor descriptors", "descriptor_body", 64)
_PAIR = _product("a product on two blocks a cluster", "bf16", r"num_ctas > 1 not sup", num_ctas=2)
_WAITING = _moving(
    "a copy with launch_pdl",
    "dependent_body",
    256,
    r"grid_dependency|griddepcontrol",
    launch_pdl=True,
)


@dataclass(frozen=True)
class _Probe:
    """The claim `claimed` is true exactly if the program contains the instruction."""

    shape: _Shape
    instruction: str
    claimed: Any = True


_PROBES: Mapping[str, _Probe] = MappingProxyType(
    {
        **{name: _Probe(_BF16, name) for name in ("wgmma", "tcgen05", "mfma", "bf16")},
        "lds_transpose": _Probe(_BF16, "lds_transpose"),
        "tf32": _Probe(_TF32, "tf32"),
        "scaled_mfma": _Probe(_MXFP4, "scaled_mfma"),
        "mxfp4": _Probe(_MXFP4, "block_scaled", "native"),
        "nvfp4": _Probe(_NVFP4, "block_scaled", "native"),
        "tma": _Probe(_TILE, "tma"),
        "cluster": _Probe(_PAIR, "cluster"),
        "pdl": _Probe(_WAITING, "pdl"),
    }
)

_UNTOLD = {
    "shared_memory_bytes": "the driver checks it when a kernel is launched, no compiler does",
    "cuda_graph": "what the driver can capture does not show in machine code",
    **dict.fromkeys(("compute_units", "l2_bytes", "memory_bytes"), "a card's own, not its code's"),
}


def probe_capability(name: str, claimed: Any, device: Device) -> Probed:
    """Whether the capability `name` of the device's target has the value `claimed`.

    Needs no GPU, but Triton with a backend for the target, and a process that does not interpret.
    """
    why = _UNTOLD.get(name) or _no_compiler(device)
    if not why and name not in {*_PROBES, "fp8", "warp_size"}:
        why = f"no probe is known for {name}"
    if why:
        return Probed(None, why)
    copy = _compile(_COPY, device)
    if copy.code is None:
        return Probed(None, f"nothing compiles for {device.target.key}: {copy.error}")
    if name == "warp_size":
        lanes = copy.code.threads
        return Probed(claimed == lanes, f"{_COPY.text} has {lanes} threads, {claimed} are claimed")
    if name == "fp8":
        return _fp8(claimed, device)
    probe = _PROBES[name]
    seen, said = _look(probe.shape, probe.instruction, device)
    if seen is None:
        return Probed(None, said)
    return Probed(seen == (claimed == probe.claimed), f"{said}; {name} = {claimed} is claimed")


def _fp8(claimed: Any, device: Device) -> Probed:
    """The claimed flavour has an instruction, and the other one has none."""
    seen = {flavour: _look(shape, "fp8", device) for flavour, shape in _FP8.items()}
    said = "; ".join(text for _, text in seen.values())
    if any(found is None for found, _ in seen.values()):
        return Probed(None, said)
    proved = all(found == (flavour == claimed) for flavour, (found, _) in seen.items())
    return Probed(proved, f"{said}; fp8 = {claimed} is claimed")


def _look(shape: _Shape, instruction: str, device: Device) -> tuple[bool | None, str]:
    """Whether the program contains the instruction, None if that is unknown; and what was seen."""
    made, named = _compile(shape, device), f"{instruction} ({INSTRUCTIONS[instruction].text})"
    if made.code is not None:
        count = made.code.instructions.get(instruction, 0)
        dialect = INSTRUCTIONS[instruction].dialect(made.code.searched)
        where = f"in its {dialect} for {device.target.key}"
        return count > 0, f"{shape.text} has {count or 'no'} {named} {where}"
    if made.refused:
        return False, f"{shape.text} is refused by Triton for {device.target.key}: {made.error}"
    return None, f"{shape.text} does not compile for {device.target.key}: {made.error}"


class _Made(NamedTuple):
    code: MachineCode | None
    error: str = ""
    refused: bool = False


@functools.cache
def _compile(shape: _Shape, device: Device) -> _Made:
    """The program's machine code, or what the compiler said."""
    printed = io.StringIO()  # of what ptxas refuses, Triton prints pages
    with _stderr() as written:
        try:
            with redirect_stdout(printed), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "deprecated" is an answer, too
                return _Made(read(compile_for(shape.program(), device)))
        except Exception as error:  # MLIR, LLVM and ptxas raise what they like
            said = written() + printed.getvalue()
            refused = bool(shape.refusal and re.search(shape.refusal, f"{said}\n{error}"))
            return _Made(None, _essence(error, said), refused)


def _essence(error: Exception, written: str) -> str:
    """One line: the compiler's own first error if it wrote one, and the exception."""
    said = re.search(r"(?i)(?:error|fatal *): (.*)", written)
    text = " ".join(str(error).split())
    start = f"{said[1][:200]}; " if said else ""
    line = f"{start}{type(error).__name__}: {text[-200:]}"
    return re.sub(r"(?<!\S)/\S+", "FILE", line)  # records travel; temporary names tell nobody


@contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """Catch what compilers write to file descriptor 2, pages of it, past sys.stderr.

    Of the whole process: another thread's words in the meantime are caught as well.
    """
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def written() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield written
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _no_compiler(device: Device) -> str:
    """Why nothing can be compiled for the device's target in this process; "" if it can."""
    if device.target.triton_backend is None:
        return f"Triton has no backend for {device.target.key}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return "this process interprets (TRITON_INTERPRET=1); ask one that compiles"
    return ""
