# SPDX-License-Identifier: Apache-2.0
"""Compile beforehand, for sm_90a and without a GPU, what peers would compile on first use.

    python tests/device/build_peers.py BUILT_DIR [--only NAME ...]

FlashInfer's modules are compiled by its own generators, with its own flags; FlashKDA with those of
its setup.py, bound through torch.library. nvcc and headers come from wheels. The interpreter must
have torch (any), ninja, jinja2, requests, tqdm and apache-tvm-ffi. One compilation at a time; an
interrupted one goes on where it was. All but FlashInfer's two `prefill-fa3` take a quarter of an
hour on one core, those an hour each. tests/device/carry_peers.py takes the result.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `tests` importable

from tests.device.carry_peers import WORK, download  # noqa: E402 (after the line above)
from tests.device.peers import table, toolchain  # noqa: E402
from tests.device.peers.flashinfer_module import MODULES  # noqa: E402

HERE = Path(__file__).parent / "peers"
ARCHITECTURE = "90a"

LIMIT_S = 2 * 3600  # for one module

FLASH_KDA_HOME = "https://github.com/MoonshotAI/FlashKDA"
FLASH_KDA_NVCC = (
    *("-std=c++17", "-O3", "-Xcompiler", "-fPIC"),
    *("-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__"),
    *("-U__CUDA_NO_HALF2_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"),
    *("--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math"),
    "--ptxas-options=--register-usage-level=10",
    *("-gencode", f"arch=compute_{ARCHITECTURE},code=sm_{ARCHITECTURE}"),
)
"""As in its setup.py, less what only prints."""
TORCH_LIBRARIES = (
    "libtorch.so",
    "libtorch_cpu.so",
    "libtorch_cuda.so",
    "libc10.so",
    "libc10_cuda.so",
)
FLASH_KDA_CXX = ("-std=c++17", "-O3", "-fPIC", "-Wno-psabi")


def run(line: list[str | Path], limit_s: int, **environment: str) -> str:
    """A command's standard output; it is killed after `limit_s` seconds."""
    print("+", " ".join(map(str, line))[:160], flush=True)
    surroundings = {**os.environ, **environment}
    done = subprocess.run(
        line, timeout=limit_s, check=True, stdout=subprocess.PIPE, text=True, env=surroundings
    )
    return done.stdout


def wheel(distribution: str, version: str, wheels: Path) -> Path:
    """The wheel of a distribution that is needed for building and is not carried."""
    return download(table.Cargo(distribution, distribution, version), wheels)


def unpacked(name: str, work: Path, wheels: Path) -> Path:
    """A peer's whole wheel, unpacked once below `work`."""
    (cargo,) = (cargo for cargo in table.CARGO if cargo.name == name)
    site = work / f"{name}-{cargo.version}"
    if not site.exists():
        toolchain.unpack(download(cargo, wheels), half := site.with_suffix(".part"))
        half.rename(site)
    return site


def flashinfer(name: str, cuda: Path, work: Path, wheels: Path, built: Path) -> None:
    """Compile one module and lay it where FlashInfer looks for modules compiled beforehand."""
    printed = run(
        [sys.executable, HERE / "flashinfer_module.py", name],
        limit_s=LIMIT_S,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja
        PYTHONPATH=str(unpacked("flashinfer", work, wheels)),
        CUDA_HOME=str(cuda),
        FLASHINFER_CUDA_ARCH_LIST=f"9.{ARCHITECTURE[1:]}",
        FLASHINFER_WORKSPACE_BASE=str(work),
        MAX_JOBS="1",
    )
    library = Path(printed.splitlines()[-1])
    target = built / "flashinfer/flashinfer/data/aot" / library.stem / library.name
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["strip", "-o", target, library], 60)


def flash_kda(cuda: Path, work: Path, wheels: Path, built: Path) -> None:
    """Compile FlashKDA's kernels and our registration of them."""
    source, headers = work / "FlashKDA", work / "torch-headers"
    if not source.exists():
        run(["git", "clone", "--quiet", FLASH_KDA_HOME, source], 300)
    run(["git", "-C", source, "checkout", "--quiet", table.FLASH_KDA_COMMIT], 60)
    if not headers.exists():
        distribution, version, pattern = toolchain.TORCH
        toolchain.unpack(wheel(distribution, version, wheels), headers, pattern)
    cutlass = unpacked("flashinfer", work, wheels) / "flashinfer/data/cutlass"
    torch = headers / "torch/include"
    include = [f"-I{HERE / 'flash_kda/shim'}", f"-I{source / 'csrc'}"]
    for folder in (
        *(cutlass / "include", cutlass / "tools/util/include"),
        *(torch, torch / "torch/csrc/api/include", cuda / "include"),
    ):
        include += ["-isystem", str(folder)]
    binding, kernels = work / "flash_kda_binding.o", work / "flash_kda_kernels.o"
    code = HERE / "flash_kda/binding.cpp"
    run(["g++", *FLASH_KDA_CXX, *include, "-c", code, "-o", binding], 300)
    code = source / "csrc/smxx/fwd_launch.cu"
    run([cuda / "bin/nvcc", *FLASH_KDA_NVCC, *include, "-c", code, "-o", kernels], 1200)
    target = built / "flash-kda"
    (target / "flash_kda").mkdir(parents=True, exist_ok=True)
    libraries = [f"-L{cuda / 'lib64'}", "-lcudart", f"-L{cuda / 'lib64/stubs'}", "-lcuda", "-s"]
    line: list[str | Path] = ["g++", "-shared", binding, kernels, *libraries, "-Wl,--no-as-needed"]
    for name in TORCH_LIBRARIES:  # torch keeps its symbols to itself: they are found by name only
        toolchain.stand_in(name, work / name)
        line.append(work / name)
    run([*line, "-o", target / "_flash_kda.so"], 60)
    shutil.copy(HERE / "flash_kda/flash_kda_C.py", target)
    shutil.copy(source / "flash_kda/__init__.py", target / "flash_kda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("built", type=Path, help="folder for the compiled modules")
    known = [*(f"flashinfer:{name}" for name in MODULES), "flash-kda"]
    parser.add_argument("--only", action="append", choices=known, metavar="NAME", help=str(known))
    parser.add_argument("--wheels", type=Path, default=WORK / "wheels", help="downloads are kept")
    parser.add_argument("--work", type=Path, default=WORK / "work", help="unpacked, and objects")
    args = parser.parse_args()
    work, wheels, built = (p.resolve() for p in (args.work, args.wheels, args.built))
    work.mkdir(parents=True, exist_ok=True)
    cuda = toolchain.toolkit(work / "cuda", lambda name, version: wheel(name, version, wheels))
    for name in args.only or known:
        started = time.monotonic()
        if name == "flash-kda":
            flash_kda(cuda, work, wheels, built)
        else:
            flashinfer(name.partition(":")[2], cuda, work, wheels, built)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
