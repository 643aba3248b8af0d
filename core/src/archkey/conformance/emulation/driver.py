# SPDX-License-Identifier: Apache-2.0
"""A driver for Triton whose card is an emulator: `kernel[grid](...)` as it stands, on CPU tensors.

    with driven("rocm_gfx950"):
        add[(4,)](x, y, out, 1000, BLOCK=256)

For any body of Triton or Gluon, compiled by Triton's own just-in-time compiler for the target.
archkey's kernels need none: their device says who launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from archkey.conformance.emulation.device import emulated
from archkey.conformance.emulation.dialects import dialect_of
from archkey.errors import Unsupported
from archkey.target import Target

__all__ = ["driven"]

_MOST = {"max_shared_mem": 1 << 18, "multiprocessor_count": 1, "warpSize": 64}
"""What Triton asks of a card: no limits, since the compiler has them for its targets."""


@contextmanager
def driven(target: str) -> Iterator[None]:
    """Within it Triton compiles for `target` and launches on its emulator."""
    from triton.runtime import driver

    if emulated(target) is None:
        raise Unsupported(f"there is no emulator of {target}")
    before = driver._active
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver.set_active(before)


class _Driver:
    """What the just-in-time compiler asks of `triton.backends.driver.DriverBase`."""

    def __init__(self, target: str) -> None:
        self._target = Target.parse(target)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: _MOST,
            # A module, a function, registers, spills, threads at most.
            load_binary=lambda name, binary, shared, device: (None, name, 0, 0, 1024),
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> Any:
        """Triton's GPUTarget."""
        from triton.backends.compiler import GPUTarget

        backend: Any = self._target.triton_backend
        return GPUTarget(*backend)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """There is one, and launches end before they return."""
        return 0

    def get_active_torch_device(self) -> Any:
        """Where tensors are."""
        import torch

        return torch.device("cpu")

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Launches one compiled kernel, whose text lies in Triton's cache."""
        dialect = dialect_of(self._target.key)
        kinds = {n: "" if kind == "constexpr" else kind for n, kind in source.signature.items()}
        compiled = SimpleNamespace(
            kernel=SimpleNamespace(
                asm={dialect.key: _cached(source.name, metadata.hash, dialect.key)},
                metadata=metadata,
            ),
            program=SimpleNamespace(signature=kinds),
            shared_memory_bytes=metadata.shared,
        )
        launch = dialect.launcher(compiled)

        def run(x: int, y: int, z: int, *rest: Any) -> None:
            stream, function, packed, more, enter, leave, *arguments = rest
            if enter is not None:
                enter(more)
            launch((x, y, z), *arguments)
            if leave is not None:
                leave(more)

        return run


def _cached(name: str, key: str, extension: str) -> str:
    """The text that Triton keeps of a kernel."""
    from triton.runtime.cache import get_cache_manager

    cache = get_cache_manager(key)
    group = cache.get_group(f"{name[:150]}.json") or {}
    path = next((p for p in group.values() if p.endswith(f".{extension}")), None)
    if path is None:
        raise Unsupported(f"Triton's cache keeps no .{extension} of {name}")
    return Path(path).read_text()
