# SPDX-License-Identifier: Apache-2.0
"""nvcc 13.0 and the headers that the peers' sources include, from wheels; no root, no GPU."""

from __future__ import annotations

import fnmatch
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["TOOLS", "TORCH", "stand_in", "toolkit", "unpack"]

TOOLS: tuple[tuple[str, str, str], ...] = (
    ("nvidia-cuda-nvcc", "13.0.88", "*"),
    ("nvidia-nvvm", "13.0.88", "*"),
    ("nvidia-cuda-crt", "13.0.88", "*"),
    ("nvidia-cuda-runtime", "13.0.96", "*"),
    ("nvidia-cuda-cccl", "13.0.85", "*"),
    # Of these only headers: cublasLt.h (FlashInfer's norm), curand_kernel.h (CUTLASS's utilities),
    # cusparse.h and cusolverDn.h (torch's CUDAContext.h).
    ("nvidia-cublas", "13.1.2.11", "*/include/*"),
    ("nvidia-curand", "10.4.5.25", "*/include/*"),
    ("nvidia-cusparse", "12.6.3.3", "*/include/*"),
    ("nvidia-cusolver", "12.0.9.81", "*/include/*"),
)
"""Distribution, version, and the members that are unpacked."""

TORCH = ("torch", "2.11.0", "torch/include/*")
"""The machine's torch, for its headers alone."""


def unpack(wheel: Path, into: Path, pattern: str = "*") -> None:
    """The members of `wheel` that match, executables made executable."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if fnmatch.fnmatchcase(info.filename, pattern):
                path = Path(archive.extract(info, into))
                if "/bin/" in info.filename and path.is_file():
                    path.chmod(0o755)


def stand_in(name: str, path: Path) -> None:
    """An empty library for the linker, which notes `name` as needed by the result."""
    line = ["gcc", "-shared", "-x", "c", "-", f"-Wl,-soname,{name}", "-o", str(path)]
    subprocess.run(line, input=b"int nothing_here;", check=True)


def toolkit(into: Path, wheel_of: Callable[[str, str], Path]) -> Path:
    """A CUDA_HOME below `into`, made once.

    wheel_of  gives the wheel of a distribution and version
    """
    home = into / "nvidia/cu13"
    if (home / "lib64/stubs/libcuda.so").exists():
        return home
    for distribution, version, pattern in TOOLS:
        unpack(wheel_of(distribution, version), into, pattern)
    stubs = home / "lib64/stubs"
    stubs.mkdir(parents=True, exist_ok=True)
    for library in (home / "lib").iterdir():
        link = home / "lib64" / library.name
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    runtime = home / "lib64/libcudart.so"
    runtime.unlink(missing_ok=True)
    runtime.symlink_to(home / "lib/libcudart.so.13")
    stand_in("libcuda.so.1", stubs / "libcuda.so")  # the driver is not installed here
    return home
