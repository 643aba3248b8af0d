# SPDX-License-Identifier: Apache-2.0
"""Which source a kernel's evidence is about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import archkey
from archkey.conformance import sources
from archkey.conformance.sources import closure, digest, imports
from archkey.kernel import Kernel
from archkey.ops import OPERATORS

RMSNORM = OPERATORS["rmsnorm"]


def triton_kernel() -> Kernel:
    return archkey.open("rocm_gfx950").kernels("rmsnorm")[0]


def test_the_closure_is_body_builder_and_reference() -> None:
    found = closure(triton_kernel(), RMSNORM)
    assert {"archkey.kernels.rmsnorm", "archkey.kernels.rmsnorm_body"} <= found
    assert "archkey.reference.rmsnorm" in found
    assert not {name for name in found if name.startswith(("archkey.session", "archkey.ops"))}


def test_what_a_kernel_imports() -> None:
    assert "triton" in imports(triton_kernel())
    reference = archkey.open("cpu").kernels("rmsnorm")[0]
    assert not {name for name in imports(reference) if name.startswith("triton")}


def test_the_digest_is_of_numbers_too() -> None:
    kernel = triton_kernel()
    assert digest(kernel, RMSNORM) == digest(kernel, RMSNORM)
    assert digest(replace(kernel, tuning=None), RMSNORM) != digest(kernel, RMSNORM)
    twin = archkey.open("rocm_gfx942").kernels("rmsnorm")[0]
    assert kernel.tuning == twin.tuning or digest(twin, RMSNORM) != digest(kernel, RMSNORM)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution's package: a builder, a body it imports in a function, and a bystander."""
    package = tmp_path / "foreign_kernels"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("")
    (package / "build.py").write_text("def build(p, b):\n    from .deep import body\n")
    (package / "deep" / "body.py").write_text("import triton.experimental.gluon\n")
    (package / "bystander.py").write_text("import json\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    return package


def forget() -> None:
    sources._path.cache_clear()
    sources._imported.cache_clear()


def test_a_plugins_own_modules_count(foreign: Path) -> None:
    kernel = Kernel("rmsnorm", "own", "foreign_kernels.build:build")
    found = closure(kernel, RMSNORM)
    assert {"foreign_kernels.build", "foreign_kernels.deep.body"} <= found
    assert "foreign_kernels.bystander" not in found
    assert "triton.experimental.gluon" in imports(kernel)


def test_a_changed_body_changes_the_digest_and_a_bystander_does_not(foreign: Path) -> None:
    kernel = Kernel("rmsnorm", "own", "foreign_kernels.build:build")
    before = digest(kernel, RMSNORM)
    (foreign / "bystander.py").write_text("import csv\n")
    forget()
    assert digest(kernel, RMSNORM) == before
    (foreign / "deep" / "body.py").write_text("import triton\n")
    forget()
    assert digest(kernel, RMSNORM) != before
