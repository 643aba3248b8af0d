# SPDX-License-Identifier: Apache-2.0
"""Kernels that are no shared Triton body: in Gluon, in plain torch, of a library of their own."""

from __future__ import annotations

import importlib
import os
import textwrap
from pathlib import Path

import pytest
from tests.core._fakes import World, kernels

from archkey.conformance import exam
from archkey.conformance.levels import Item, Level, Outcome
from archkey.conformance.pool import Terms, Worker
from archkey.conformance.sources import _imported, _path

GLUON = """
    import triton
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from archkey.launch import Program


    @gluon.jit
    def row_body(x, weight, out, x_stride, out_stride, eps, N: gl.constexpr, LANES: gl.constexpr,
                 WARPS: gl.constexpr):
        layout: gl.constexpr = gl.BlockedLayout([N // (LANES * WARPS)], [LANES], [WARPS], [0])
        row = gl.program_id(0).to(gl.int64)
        columns = gl.arange(0, N, layout=layout)
        value = gl.load(x + row * x_stride + columns).to(gl.float32)
        scale = gl.rsqrt(gl.sum(value * value, axis=0) / N + eps)
        factor = gl.load(weight + columns).to(gl.float32)
        gl.store(out + row * out_stride + columns, (value * scale * factor).to(gl.bfloat16))


    def build(problem, build):
        lanes = build.capabilities.warp_size
        launch = build.compile(Program(
            row_body,
            {**dict.fromkeys(("x", "weight", "out"), "*bf16"),
             **dict.fromkeys(("x_stride", "out_stride"), "i64"), "eps": "fp32"},
            {"N": problem.width, "LANES": lanes, "WARPS": 4},
            options={"num_warps": 4},
        ))

        def run(x, weight, eps, bias, cast, out):
            launch((x.shape[0], 1, 1), x, weight, out, x.stride(0), out.stride(0), eps)

        return run
"""

LIBRARY = """
    def build(problem, build):
        import acme_runtime
        return acme_runtime.rmsnorm
"""

WRONG = """
    def build(problem, build):
        from archkey.reference.rmsnorm import rmsnorm

        def run(x, weight, eps, bias, cast, out):
            out.copy_(rmsnorm(x, weight, eps + 1.0, bias, cast)[0])

        return run
"""

TERMS = Terms(jobs=1, timeout=120.0, examples=1, seed=0)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world that worker processes see, too."""
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *([before] if before else [])])
    )
    _path.cache_clear()
    _imported.cache_clear()
    return World(tmp_path, monkeypatch)


def install(world: World, entry: str, code: str, accepts: str = "()") -> None:
    """A plugin with one kernel of rmsnorm, whose builder is in a module of its own."""
    name = f"kernels_of_{world.prefix}{entry.replace('.', '_')}"
    line = f'"rmsnorm", "own", "{name}:build", accepts={accepts}'
    (world.root / f"{name}.py").write_text(textwrap.dedent(code))
    world.install(entry, kernels(line))
    importlib.invalidate_caches()


def ask(target: str, level: Level, kernel: str, case: str) -> Outcome:
    worker = Worker(target, level, TERMS)
    outcome = worker.ask(Item(level.value, "rmsnorm", kernel, case))
    worker.close()
    return outcome


PLAIN = (
    '(one_of("width", (512, 2048, 4096)), is_("heads", 1), is_("cast_before_weight", False), '
    'is_("dtype", "bfloat16"), is_("out_dtype", "bfloat16"), is_("weight_dtype", "bfloat16"))'
)


@pytest.mark.parametrize("target", ["cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950"])
def test_gluon_becomes_machine_code(target: str, plugin: World) -> None:
    install(plugin, f"{target}.gluon", GLUON, PLAIN)
    outcome = ask(target, Level.COMPILED, f"{target}.gluon:own", "example: Qwen3.5 hidden")
    assert outcome.outcome == "passed", outcome.reason
    for code in outcome.details["programs"]:
        assert (code["target"], code["spills"], code["early"]) == (target, 0, False)


def test_gluon_is_not_interpreted(plugin: World) -> None:
    install(plugin, "rocm_gfx950.gluon", GLUON, PLAIN)
    subject = exam.find("rocm_gfx950.gluon")
    items, (row,) = exam.questions(subject, Level.INTERPRETED, ["rmsnorm"])
    assert not items
    assert row.reason == "Gluon does not run in Triton's interpreter"


def test_a_library_of_its_own_is_for_the_device(plugin: World) -> None:
    install(plugin, "rocm_gfx950.library", LIBRARY)
    subject = exam.find("rocm_gfx950.library")
    items, (row,) = exam.questions(subject, Level.INTERPRETED, ["rmsnorm"])
    assert not items
    assert row.reason == "acme_runtime runs on the device alone"


def test_plain_torch_is_examined_without_the_card(plugin: World) -> None:
    install(plugin, "rocm_gfx950.wrong", WRONG)
    subject = exam.find("rocm_gfx950.wrong")
    items, rows = exam.questions(subject, Level.INTERPRETED, ["rmsnorm"])
    assert items
    assert not rows
    outcome = ask("rocm_gfx950", Level.INTERPRETED, "rocm_gfx950.wrong:own", items[0].case)
    assert outcome.outcome == "failed"
    assert outcome.reason == "out"
