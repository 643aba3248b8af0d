# SPDX-License-Identifier: Apache-2.0
"""Vendors' distributions beside ours: installed from wheels, used by every command, taken away.

`tests/vendor_example` is for hardware that archkey has never heard of, `tests/vendor_variant` adds
a kernel to a target of ours, and `archkey new-plugin acme_x1` writes the third.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.packaging._venv import Venv, build_wheel

KESTREL = {"KESTREL_SIMULATOR": "1"}
ACME = {"ACME_X1_SIMULATED": "2"}

SWIGLU = """
import torch, archkey
session = archkey.open()
assert session.device.target.key == "kestrel_k1"
x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 9
gate, up = x.double().chunk(2, -1)
expected = torch.nn.functional.silu(gate.clamp(max=7)) * up.clamp(-7, 7)
y = session.kestrel_swiglu(x, limit=7.0).double()
torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
archkey.rmsnorm(x, torch.ones(64))
print(*(s.device.target for s in archkey.session._SESSIONS.values()))
"""

JUDGED = """
import torch, archkey
from archkey.conformance.cases.rmsnorm.models import norm
from archkey.conformance.judge import judge
session = archkey.open("cuda_sm90")
for case in (
    norm("rmsnorm", 5, 111, dtype=torch.float32),
    norm("rmsnorm", 7, 1024, dtype=torch.float16, weight_bias=1.0),
    norm("rmsnorm", 3, 256, heads=3, dtype=torch.float32),
):
    result = judge(session, case)
    assert result.passed, result
    print(result.kernel)
"""

COMPILED = """
import archkey
from archkey.ops.rmsnorm import RmsNormProblem
session = archkey.open("cuda_sm90", strict=True)
for dtype in ("bfloat16", "float32"):
    for aligned in (True, False):
        plan = session.plan(RmsNormProblem(dtype, "float32", dtype, 576, aligned=aligned, pdl=True))
        (compiled,) = plan.compiled
        print(plan.decision.chosen.id, compiled.binary[1:4].decode())
"""


@pytest.fixture(scope="module")
def wheels(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each vendor, by the name of its plugin."""
    folder = tmp_path_factory.mktemp("wheels")
    return {
        "kestrel_k1": build_wheel(root / "tests/vendor_example", folder),
        "cuda_sm90.kestrel": build_wheel(root / "tests/vendor_variant", folder),
    }


@pytest.fixture(scope="module")
def venv(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """Both, and acme_x1 as `archkey new-plugin` writes it, installed beside our plugins."""
    made = Venv(tmp_path_factory.mktemp("venv"))
    source = made.folder / "mine"
    made.archkey(f"new-plugin acme_x1 --output {source}")
    made.install(*wheels.values(), build_wheel(source, made.folder / "wheels"))
    return made


def states(venv: Venv, target: str, **environ: str) -> dict[str, str]:
    """State by plugin."""
    listed = venv.archkey(f"plugins --target {target}", **environ)
    return {entry["name"]: entry["state"] for entry in listed}


def explained(venv: Venv, line: str) -> tuple[str, dict[str, str]]:
    """The chosen kernel, and for every other one what it requires."""
    decision = venv.archkey(f"explain {line}")
    return decision["chosen"], {r["kernel"]: r["required"] for r in decision["rejected"]}


# ---- hardware that archkey has never heard of


def test_its_devices_are_found(venv: Venv) -> None:
    assert "kestrel_k1" not in str(venv.archkey("probe"))
    devices = venv.archkey("probe", **KESTREL, **ACME)["devices"]
    found = [(d["target"], d["index"], d["torch_type"]) for d in devices if d["target"] != "cpu"]
    assert found == [("acme_x1", 0, "cpu"), ("acme_x1", 1, "cpu"), ("kestrel_k1", 0, "cpu")]


@pytest.mark.parametrize("target", ["kestrel_k1", "acme_x1"])
def test_its_plugin_is_loaded_and_no_other(venv: Venv, target: str) -> None:
    found = states(venv, target)
    assert {name for name, state in found.items() if state == "loaded"} == {target, "cpu"}
    assert set(found.values()) == {"loaded", "skipped"}


def test_its_capabilities(venv: Venv) -> None:
    facts = venv.archkey("capabilities kestrel_k1", **KESTREL)["capabilities"]
    assert facts["kestrel:scratchpad_bytes"]["value"] == 65536
    assert facts["compute_units"]["source"] == "probe (kestrel_k1)"
    assert venv.archkey("capabilities acme_x1")["capabilities"]["mxfp4"]["value"] == "emulated"


def test_its_kernels_are_chosen_and_say_what_they_refuse(venv: Venv) -> None:
    assert explained(venv, "kestrel_swiglu --target kestrel_k1")[0] == "kestrel_k1:tiles"
    chosen, against = explained(venv, "rmsnorm --target kestrel_k1 width=16384")
    assert (chosen, against["kestrel_k1:tiles"]) == ("cpu:torch", "width <= 8192")
    chosen, against = explained(venv, "rmsnorm --target acme_x1 heads=4")
    assert (chosen, against["acme_x1:row"]) == ("acme_x1:triton", "heads = 1")


def test_coverage_shows_its_own_operator(venv: Venv) -> None:
    rows = venv.archkey("coverage --target kestrel_k1 --target acme_x1")
    own = {(r["target"], r["operator"]) for r in rows if not r["degraded"]}
    family = {"rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm"}
    assert own == {
        *(("acme_x1", name) for name in family),
        *(("kestrel_k1", name) for name in family | {"merge_attn_states", "kestrel_swiglu"}),
    }


def test_demo_judges_its_operators(venv: Venv) -> None:
    names = ("kestrel_swiglu", "merge_attn_states")
    line = "demo " + " ".join(f"--operator {name}" for name in names)
    document = venv.archkey(line, **KESTREL)
    assert document["device"]["target"] == "kestrel_k1"
    assert {(r["operator"], r["kernel"], r["passed"]) for r in document["results"]} == {
        (name, "kestrel_k1:tiles", True) for name in names
    }


def test_its_operator_runs_and_host_memory_stays_the_cpus(venv: Venv) -> None:
    assert venv.run("-c", SWIGLU, **KESTREL).split() == ["cpu"]


def test_it_passes_the_exam(venv: Venv) -> None:
    own = ("kestrel_swiglu", "rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm")
    names = " ".join(f"--operator {name}" for name in (*own, "merge_attn_states"))
    outcome = venv.run("-m", "archkey", "check", "kestrel_k1", *names.split(), **KESTREL)
    assert " passed, 0 failed" in outcome
    assert " passed, 0 failed" in venv.run("-m", "archkey", "check", "cuda_sm90.kestrel")


def test_its_operator_is_measured_on_its_workloads(venv: Venv) -> None:
    """A library that nobody installed is no part of it; the bound and the reference are."""
    line = "bench kestrel_swiglu --quick --kernel torch --samples 3 --seconds 0.05"
    document = venv.archkey(line, **KESTREL)
    assert document["complete"] and document["machine"]["device"]["target"] == "kestrel_k1"
    assert len(document["workloads"]) == 2
    for workload in document["workloads"]:
        ours, torch = workload["entries"]
        assert (ours["kernel"], ours["status"]) == ("kestrel_k1:tiles", "timed")
        assert (torch["kernel"], torch["status"]) == ("cpu:torch", "timed")
        assert ours["gbs"] > 0 and workload["bound_us"] > 0 and workload["bound_by"] == "copy"


def test_what_new_plugin_writes_passes_demo_and_exam(venv: Venv) -> None:
    interpreted = {**ACME, "TRITON_INTERPRET": "1"}
    results = venv.archkey("demo --operator rmsnorm", **interpreted)["results"]
    assert {(r["kernel"], r["passed"]) for r in results} == {("acme_x1:row", True)}
    venv.run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(venv.folder / "mine/tests"))


# ---- a variant


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ("width=1024", None),
        ("width=1025", "width <= 1024"),
        ("heads=2 width=512", "heads = 1"),
        ("cast_before_weight=yes width=512", "cast_before_weight = False"),
    ],
)
def test_a_variant_wins_where_it_accepts(venv: Venv, change: str, refused: str | None) -> None:
    chosen, against = explained(venv, f"rmsnorm {change} --target cuda_sm90")
    mine, base = "cuda_sm90.kestrel:warp-row", "cuda_sm90:triton"
    assert chosen == (base if refused else mine)
    assert against.get(mine) == refused


def test_a_variant_is_right(venv: Venv) -> None:
    out = venv.run("-c", JUDGED, TRITON_INTERPRET="1")
    assert out.split() == ["cuda_sm90.kestrel:warp-row"] * 3


def test_a_variant_is_compiled(venv: Venv) -> None:
    out = venv.run("-c", COMPILED)
    assert out.splitlines() == ["cuda_sm90.kestrel:warp-row ELF"] * 4


def test_a_variant_can_be_turned_off(venv: Venv) -> None:
    found = states(venv, "cuda_sm90", ARCHKEY_DISABLE_PLUGINS="cuda_sm90.kestrel")
    assert (found["cuda_sm90.kestrel"], found["cuda_sm90"]) == ("disabled", "loaded")


# ---- coming and going


def seen(venv: Venv) -> list[Any]:
    """What the commands say where these vendors have no part."""
    lines = ("probe", "plugins --target cuda_sm90", "explain rmsnorm --target cuda_sm90 width=512")
    return [venv.archkey(line, **KESTREL) for line in lines]


def test_after_it_is_uninstalled_all_is_as_before(wheels: dict[str, Path], tmp_path: Path) -> None:
    venv = Venv(tmp_path)
    before = seen(venv)
    venv.install(*wheels.values())
    assert {"kestrel_k1", "cuda_sm90.kestrel"} <= set(states(venv, "cuda_sm90"))
    venv.pip("uninstall", "--yes", "archkey-kestrel-k1", "archkey-cuda-sm90-kestrel")
    assert seen(venv) == before


def test_a_broken_one_does_not_take_the_rest_down(wheels: dict[str, Path], tmp_path: Path) -> None:
    venv = Venv(tmp_path)
    venv.install(*wheels.values())
    before = explained(venv, "rmsnorm --target cuda_sm90")
    package = venv.site / "archkey_kestrel_k1"
    (package / "facts.py").write_text("raise RuntimeError('half a wafer')\n")
    assert explained(venv, "rmsnorm --target cuda_sm90") == before
    (entry,) = [
        e for e in venv.archkey("plugins", **KESTREL) if e["name"] == "kestrel_k1"
    ]  # the simulated device is this machine's first
    assert (entry["state"], entry["reason"]) == ("broken", "RuntimeError: half a wafer")
    assert "facts.py" in entry["traceback"]
    assert explained(venv, "rmsnorm --target kestrel_k1")[0] == "cpu:torch"
    (package / "probe.py").unlink()
    probed = venv.archkey("probe", **KESTREL)
    assert [d["target"] for d in probed["devices"]][-1] == "cpu"
    assert any("kestrel_k1: archkey_kestrel_k1.probe" in note for note in probed["notes"])
