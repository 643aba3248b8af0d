# SPDX-License-Identifier: Apache-2.0
"""What an import, or a session, pulls into a fresh process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

LIGHT = (
    "archkey",
    "archkey.ops",
    "archkey.plugins",
    "archkey.session",
    "archkey.diagnosis",
    "archkey.models",
    "archkey.bench.compare",
    "archkey.kernels.catalogue",
    "archkey.kernels.tunings",
    "archkey_cuda_sm90.plugin",
    "archkey_cuda_sm100.plugin",
    "archkey_rocm_gfx942.plugin",
    "archkey_rocm_gfx950.plugin",
)

REPORT = "import sys; print(*sys.modules)"

OPEN = "import archkey; archkey.open(); archkey.open().capabilities"


@pytest.mark.parametrize("module", LIGHT)
def test_neither_torch_nor_triton(module: str, run_python: Callable[..., str]) -> None:
    loaded = run_python(f"import {module}; {REPORT}").split()
    assert module in loaded
    assert not {"torch", "triton", "numpy"} & set(loaded)


def test_public_names_are_loaded_on_first_use(run_python: Callable[..., str]) -> None:
    loaded = run_python(f"import archkey; {REPORT}").split()
    assert [name for name in loaded if name.partition(".")[0] == "archkey"] == ["archkey"]


def test_opening_a_session_and_deciding_need_neither(run_python: Callable[..., str]) -> None:
    code = """
import archkey
from archkey.ops import OPERATORS
for target in ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950", "cpu"):
    session = archkey.open(target)
    for operator in OPERATORS.values():
        for problem in operator.examples.values():
            session.explain(problem)
"""
    loaded = run_python(code + REPORT).split()
    assert not {"torch", "triton"} & set(loaded)


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("cuda_sm90", "archkey_cuda_sm90"),
        ("cuda_sm100", "archkey_cuda_sm100"),
        ("cuda_sm103", "archkey_cuda_sm100"),
        ("rocm_gfx942", "archkey_rocm_gfx942"),
        ("rocm_gfx950", "archkey_rocm_gfx950"),
    ],
)
def test_only_the_plugin_of_this_target_is_imported(
    target: str, own: str, run_python: Callable[..., str]
) -> None:
    loaded = run_python(f"{OPEN}; {REPORT}", ARCHKEY_TARGET=target).split()
    assert {name.partition(".")[0] for name in loaded if name.startswith("archkey_")} == {own}


def test_a_machine_without_a_gpu_imports_no_plugin(run_python: Callable[..., str]) -> None:
    loaded = run_python(f"{OPEN}; {REPORT}", ARCHKEY_TARGET="cpu").split()
    assert not [name for name in loaded if name.startswith("archkey_")]
