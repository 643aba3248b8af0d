# SPDX-License-Identifier: Apache-2.0
"""For scale: what other kernel registries cost from an operator's name to the kernel.

Each is measured if it is installed, in a process of its own: nothing of it stays in ours, and one
that cannot be imported costs its own rows only. Their registries are asked for operators of ours,
with the arguments of `rmsnorm(x, weight, eps, out=out)`, whose kernels do nothing. Only the
registry's modules are imported, without the package around them, which wants a whole engine.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from archkey.bench.host_row import Row, best, do_nothing, in_new_process, ratio
from archkey.requirements import installed_versions

__all__ = ["RIVALS", "Rival", "Way", "measured", "rows"]

TIMEOUT = 300.0
"""Seconds that a rival may take; importing torch and all repeats take some ten."""


@dataclass(frozen=True)
class Way:
    """A call of a rival's; `launches` if it also calls the kernel that it finds."""

    what: str
    call: Callable[[], object]
    launches: bool
    note: str


@dataclass(frozen=True)
class Rival:
    """Another registry.

    package       what it imports
    distribution  whose version is stated
    install       how to get it
    ways          makes its calls, from x, weight and out
    """

    name: str
    package: str
    distribution: str
    install: str
    ways: Callable[[Any, Any, Any], Iterator[Way]]


def rows(repeats: int, ours: Callable[[], float]) -> Iterator[Row]:
    """The rows of every rival; `ours` measures archkey's functional call [microseconds]."""
    for rival in RIVALS:
        yield from _rows_of(rival, repeats, ours)


def _rows_of(rival: Rival, repeats: int, ours: Callable[[], float]) -> Iterator[Row]:
    what = f"for scale: {rival.name}"
    if not _there(rival.package):
        yield Row(what, None, "us", note=f"not installed: {rival.install}")
        return
    version = installed_versions([rival.distribution]).get(rival.distribution, "")
    code = (
        "import json; from archkey.bench.host_rivals import measured; "
        f"print(json.dumps(measured({rival.name!r}, {repeats})))"
    )
    try:
        found = json.loads(in_new_process(code, TIMEOUT).splitlines()[-1])
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit {error.returncode}"]
        yield Row(what, None, "us", note=f"cannot be measured: {last[0]}")
        return
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        yield Row(what, None, "us", note=f"cannot be measured: {error}")
        return
    beside = ours()
    for name, cost, launches, note in found:
        told = ", ".join(filter(None, [version, note]))
        yield Row(
            f"{what} {name}", cost, "us", None, told, ratio(cost, beside) if launches else None
        )


def measured(name: str, repeats: int) -> list[tuple[str, float, bool, str]]:
    """Measure a rival in this process: for each way what, microseconds, launches, note."""
    import torch

    (rival,) = (r for r in RIVALS if r.name == name)
    _without_its_package(rival.package)
    x, weight = torch.randn(4, 512).bfloat16(), torch.ones(512).bfloat16()
    out = torch.empty_like(x)
    found = []
    with torch.inference_mode():
        direct = best(lambda: do_nothing(x, weight, 1e-6, out), repeats)
        for way in rival.ways(x, weight, out):
            cost = best(way.call, repeats) - (direct if way.launches else 0.0)
            found.append((way.what, max(cost, 0.0), way.launches, way.note))
    return found


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _without_its_package(package: str) -> None:
    """Let modules of `package` be imported without running its `__init__`."""
    spec = importlib.util.find_spec(package)
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules[package] = bare


def _tokenspeed(x: Any, weight: Any, out: Any) -> Iterator[Way]:
    """Eight kernels registered, on a made-up sm90: the real one is not asked in a cached call."""
    platform: Any = importlib.import_module("tokenspeed_kernel.platform")
    registry: Any = importlib.import_module("tokenspeed_kernel.registry")
    select: Any = importlib.import_module("tokenspeed_kernel.selection").select_kernel
    signature: Any = importlib.import_module("tokenspeed_kernel.signature")

    sm90 = platform.PlatformInfo("nvidia", platform.ArchVersion(9, 0), "", 1, 0, 0.0, 1, 1, 1)
    platform.Platform.override(sm90)

    def signed() -> Any:
        return signature.format_signature(
            x=signature.dense_tensor_format(x.dtype),
            weight=signature.dense_tensor_format(weight.dtype),
        )

    ready, traits = signed(), {"width": 512, "inplace": False}
    for number in range(8):
        registry.register_kernel(
            "archkey_bench",
            "nothing",
            name=f"nothing_{number}",
            solution="nothing",
            signatures={ready},
            traits={"width": frozenset({512}), "inplace": frozenset({False})},
            priority=number,
        )(do_nothing)
    yield Way(
        "select_kernel, cached",
        lambda: select("archkey_bench", "nothing", ready, traits=traits)(x, weight, 1e-6, out),
        True,
        "2 traits; its format signature is made before",
    )
    yield Way(
        "select_kernel, cached, as its operators call it",
        lambda: select("archkey_bench", "nothing", signed(), traits=traits)(x, weight, 1e-6, out),
        True,
        "2 traits; its format signature is made in the call",
    )


def _sglang(x: Any, weight: Any, out: Any) -> Iterator[Way]:
    """Four backends registered, one of which runs on this machine's device."""
    kernels: Any = importlib.import_module("sglang.kernels")

    here = kernels.PlatformInfo.detect().device
    others = [device for device in kernels.DeviceType if device != here]
    backends = list(kernels.KernelBackend)
    target, name = f"{do_nothing.__module__}:{do_nothing.__name__}", "archkey_bench.nothing"
    for backend, device in zip(backends, [here, *others[:3]], strict=False):
        need = frozenset({kernels.CapabilityRequirement(device)})
        kernels.register_kernel(kernels.KernelSpec(name, backend, target, need))
    yield Way(
        "get_kernel",
        lambda: kernels.get_kernel(name)(x, weight, 1e-6, out),
        True,
        "keyed by the operator's name alone",
    )
    yield Way(
        "select_kernel",
        lambda: kernels.select_kernel(name),
        False,
        "the choice alone, which is not kept: 4 backends, filtered by device",
    )


RIVALS = (
    Rival(
        "tokenspeed-kernel",
        "tokenspeed_kernel",
        "tokenspeed-kernel",
        "from https://github.com/lightseekorg/tokenspeed",
        _tokenspeed,
    ),
    Rival("sglang", "sglang", "sglang", "pip install sglang", _sglang),
)
