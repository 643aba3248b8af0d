# SPDX-License-Identifier: Apache-2.0
"""Machine code from the store: no compiler runs, Triton's cache and knobs are left alone.

What compiles runs in processes of their own; see tests/conftest.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Python = Callable[..., str]

_COUNT = """
import json, sys
import archkey
from triton import knobs
ran = []
knobs.compilation.listener = lambda **facts: ran.append(facts["cache_hit"])
"""
_PLAN = (
    _COUNT
    + """
session = archkey.open({target!r}, strict=True)
problem = next(iter(session.operators["rmsnorm"].examples.values()))
{change}
plan = session.plan(problem)
made, = plan.compiled
assert type(made.kernel).__module__ == "triton.compiler.compiler"
print(json.dumps([ran, made.kernel.hash, made.binary.hex(), sorted(made.kernel.asm)]))
"""
)


def plan(run_python: Python, folder: Path, target: str = "cuda_sm90", **rest: str) -> list[Any]:
    """[listener's cache_hits, hash, binary, stages] of a bound rmsnorm, in a new process."""
    change = rest.pop("change", "")
    rest = {"ARCHKEY_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0", **rest}
    found = run_python(_PLAN.format(target=target, change=change), **rest)
    return json.loads(found)  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", ["cuda_sm90", "rocm_gfx942"])
def test_a_new_process_loads_what_another_one_compiled(
    target: str, run_python: Python, tmp_path: Path
) -> None:
    triton = tmp_path / "triton"
    first = plan(run_python, tmp_path, target, TRITON_CACHE_DIR=str(triton))
    second = plan(run_python, tmp_path, target, TRITON_CACHE_DIR=str(triton))
    assert first[0] == [False], "compiled once"
    assert second[0] == [], "not even asked"
    assert second[1:] == first[1:]
    assert not triton.exists(), "Triton's own cache is neither read nor written"


def test_with_a_triton_cache_that_nobody_can_write(run_python: Python, tmp_path: Path) -> None:
    """A user without a home: Triton's own compile raises."""
    (tmp_path / "file").write_text("")
    rest = {"TRITON_CACHE_DIR": str(tmp_path / "file/cache"), "HOME": "/nonexistent"}
    assert plan(run_python, tmp_path, **rest)[0] == [False]
    assert plan(run_python, tmp_path, **rest)[0] == []


def test_damage_is_compiled_anew(run_python: Python, tmp_path: Path) -> None:
    first = plan(run_python, tmp_path)
    (binary,) = tmp_path.rglob("*.cubin")
    good = binary.read_bytes()
    binary.write_bytes(good[:100] + bytes([good[100] ^ 255]) + good[101:])
    again = plan(run_python, tmp_path)
    assert again == first and again[0] == [False]
    assert binary.read_bytes() == good
    assert plan(run_python, tmp_path)[0] == []


@pytest.mark.parametrize(
    ("rest", "ran"),
    [
        ({"DISABLE_PTXAS_OPT": "1"}, [False]),
        ({"change": "knobs.compilation.disable_line_info = True"}, [False]),
        ({"change": "problem = problem._replace(pdl=session.pdl)"}, [False]),
        ({"target": "cuda_sm90a"}, [False]),
        ({"TRITON_ALWAYS_COMPILE": "1"}, [False]),
        ({"ARCHKEY_CACHE": "0"}, [False]),
        ({"TRITON_DEFAULT_FP_FUSION": "0"}, []),  # the options say it
        ({"TRITON_PRINT_AUTOTUNING": "1"}, []),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_may_change_machine_code_is_in_the_key(
    rest: dict[str, str], ran: list[bool], run_python: Python, tmp_path: Path
) -> None:
    plan(run_python, tmp_path)
    assert plan(run_python, tmp_path, **rest)[0] == ran


_BODIES = (
    _COUNT
    + """
import importlib.util, pathlib
from archkey.launch import Program, compile_for
from archkey.locate import find_device

def load(name, text):
    path = pathlib.Path({folder!r}) / f"{{name}}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

load("called", '''
import triton
@triton.jit
def called(x):
    return x + {added}
''')
body = load("body", '''
import {imports}
from called import called
@{jit}
def body(x, N: tl.constexpr):
    tl.store(x, called(N))
''').body
program = Program(body, {{"x": "*i32"}}, {{"N": {constant}}})
made = compile_for(program, find_device("cuda_sm90"))
print(json.dumps([ran, made.kernel.hash]))
"""
)
_TRITON = {"imports": "triton; import triton.language as tl", "jit": "triton.jit"}
_GLUON = {
    "imports": "triton; from triton.experimental import gluon; "
    "from triton.experimental.gluon import language as tl",
    "jit": "gluon.jit",
}


@pytest.mark.parametrize("dialect", [_TRITON, _GLUON], ids=["triton", "gluon"])
def test_a_body_is_known_with_all_that_it_calls_and_its_constants(
    dialect: dict[str, str], run_python: Python, tmp_path: Path
) -> None:
    def made(added: str, constant: str) -> tuple[list[bool], str]:
        code = _BODIES.format(folder=str(tmp_path), added=added, constant=constant, **dialect)
        found = run_python(code, TRITON_INTERPRET="0", ARCHKEY_CACHE_DIR=str(tmp_path))
        ran, hashed = json.loads(found)
        return ran, hashed

    first = made("1", "3")
    assert first[0] == [False]
    assert made("1", "3") == ([], first[1])
    others = [made("2", "3"), made("1", "4"), made("1", "True")]
    assert [ran for ran, _ in others] == [[False]] * 3
    assert len({first[1], *(hashed for _, hashed in others)}) == 4


_ENGINE = (
    _COUNT
    + """
import threading, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
session = archkey.open("cuda_sm90", strict=True)
problem = next(iter(session.operators["rmsnorm"].examples.values()))
before = {name: str(value) for name, value in vars(knobs.compilation).items()}
plan = session.plan(problem)
made, = plan.compiled
assert {name: str(value) for name, value in vars(knobs.compilation).items()} == before
source = made.kernel.src
theirs = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
print(json.dumps([ran, sorted(p.suffix for p in Path(sys.argv[1]).rglob("*.cubin"))]))
"""
)


def test_an_engines_own_compilations_go_where_they_went(run_python: Python, tmp_path: Path) -> None:
    code = _ENGINE.replace("sys.argv[1]", repr(str(tmp_path / "triton")))
    places = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "ARCHKEY_CACHE_DIR": str(tmp_path)}
    ran, kept = json.loads(run_python(code, TRITON_INTERPRET="0", **places))
    assert ran == [False, False]
    assert kept == [".cubin"], "theirs alone is in Triton's cache"


def test_a_full_disk_costs_the_entry_and_not_the_call(run_python: Python, tmp_path: Path) -> None:
    change = """
from archkey import artefacts
def full(path, content):
    raise OSError(28, "No space left on device")
artefacts._write = full
"""
    first = plan(run_python, tmp_path, change=change)
    assert first[0] == [False] and len(first[2]) > 1000
    assert not list(tmp_path.rglob("*.cubin"))
