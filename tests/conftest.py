# SPDX-License-Identifier: Apache-2.0
"""What all tests share.

**Triton.** Whether a body is interpreted is settled when it is defined, so one process has one
answer. This one interprets (TRITON_INTERPRET=1, set below before anything can import triton);
what compiles runs in a process of its own, through `run_python(..., TRITON_INTERPRET="0")`. On a
machine with a GPU, `make gpu` sets it to 0 from outside, and that wins.

**Outputs.** Tensors that archkey allocates start as NaN (integers as their largest value), so an
element that no kernel wrote cannot be right by luck.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")
# Triton announces that the default of this one will change, and it changes results.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import pytest
import torch

from archkey import session
from archkey._torch import torch as archkeys_torch
from archkey.settings import settings

torch.set_num_threads(1)

INTERPRETED = os.environ["TRITON_INTERPRET"]

# A developer's own settings must not reach the tests. archkey has not read them yet.
for _name in [name for name in os.environ if name.startswith("ARCHKEY_")]:
    del os.environ[_name]

# Nor must the records of a developer's own exams, or these tests leave any.
os.environ["ARCHKEY_DATA_DIR"] = tempfile.mkdtemp(prefix="archkey-tests-")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def one_answer() -> None:
    """Whoever changes this changes what every body defined from then on is.

    As did a helper module here called `kernels`, which transformers took for the package.
    """
    assert os.environ.get("TRITON_INTERPRET") == INTERPRETED, "changed while tests were collected"


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """archkey's own `torch.empty` gives poisoned tensors; torch itself is left alone."""

    def empty(*size: Any, **options: Any) -> torch.Tensor:
        tensor = torch.empty(*size, **options)
        if tensor.dtype.is_floating_point:
            return tensor.fill_(float("nan"))
        return tensor.fill_(torch.iinfo(tensor.dtype).max)

    monkeypatch.setattr(archkeys_torch, "empty", empty, raising=False)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`environ(ARCHKEY_TARGET="cuda_sm90")`: archkey reads its environment again, then forgets it.

    Sessions opened before are not used in the test, nor are the test's own afterwards.
    """

    def forget() -> None:
        settings.cache_clear()
        session._SESSIONS.clear()

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    forget()
    yield change
    forget()
    # monkeypatch restores the variables after this; nothing reads them in between.


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """`run_python(code, **variables)`: stdout of `code` in a new interpreter, which must succeed.

    For what has to be judged in a fresh process: what an import pulls in, what is compiled.
    """

    def run(code: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT
