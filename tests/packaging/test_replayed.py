# SPDX-License-Identifier: Apache-2.0
"""Libraries that broke kernels, replayed: what their users' environments say, decide and compile.

Each environment is a real one, with a distribution in it that is known to be bad. Rules are judged
by what is installed, so metadata is all that there is of it.
"""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.packaging._venv import Venv

TRITON = version("triton")
GOOD, BAD = "2.3.1", "2.3.0"  # of Acme's library

PLUGIN = """
import archkey
from archkey.conditions import at_most
from archkey.kernel import Kernel
from archkey.kernels.catalogue import rmsnorm_kernels
from archkey.kernels.tunings import RmsNormTuning
from archkey.requirements import Requirement
from archkey.tuning import Row, Table

ARCHKEY_API = (1, 1)

RUNTIME = Requirement(
    "acme-runtime", ">=2.1,!=2.3.0", "2.3.0 drops the last tile", "accuracy", "acme/runtime#77"
)
EIGHT_WARPS = Requirement("triton", "!={bad}", "wrong sums with 8 warps", "accuracy", "acme#12")
ROWS = Table((
    Row(RmsNormTuning(tile=4096, num_warps=8), requires=(EIGHT_WARPS,)),
    Row(RmsNormTuning(tile=4096, num_warps=4)),
))

@archkey.hookimpl
def archkey_kernels(target):
    yield Kernel("merge_attn_states", "library", "acme.merge:build", requires=(RUNTIME,))
    yield Kernel("kda_gate", "library", "acme.gate:build", requires=(RUNTIME,))
    yield rmsnorm_kernels(ROWS, ROWS)[0]
"""


def environment(folder: Path, runtime: str = GOOD, bad_triton: str = "0.1") -> Venv:
    """A variant of cuda_sm90 from Acme, whose rows are bad with that Triton, and its library."""
    made = Venv(folder)
    (made.site / "acme_plugin.py").write_text(PLUGIN.replace("{bad}", bad_triton))
    made.add("acme", "1.0", "[archkey.plugins]\ncuda_sm90.acme = acme_plugin\n")
    if runtime:
        made.add("acme-runtime", runtime)
    return made


def rule_of(report: Any, package: str, severity: str) -> Any:
    found = [r for r in report["rules"] if (r["package"], r["severity"]) == (package, severity)]
    assert len(found) == 1, "a rule is one entry, however many rest on it"
    return found[0]


# ---- a library with a known-bad release


def test_a_bad_library_disables_its_kernels_and_the_next_run(tmp_path: Path) -> None:
    venv = environment(tmp_path, BAD)
    decision = venv.archkey("explain merge_attn_states --target cuda_sm90")
    assert decision["chosen"] == "cuda_sm90:triton" and not decision["degraded"]
    (against,) = [r for r in decision["rejected"] if r["kernel"] == "cuda_sm90.acme:library"]
    assert against == {
        "kernel": "cuda_sm90.acme:library",
        "code": "requirement",
        "required": "acme-runtime>=2.1,!=2.3.0",
        "found": "acme-runtime 2.3.0",
        "severity": "accuracy",
        "why": "2.3.0 drops the last tile",
        "reference": "acme/runtime#77",
        "remedy": "install acme-runtime>=2.1,!=2.3.0",
    }

    report = venv.archkey("doctor cuda_sm90", code=1)
    rule = rule_of(report, "acme-runtime", "accuracy")
    assert (rule["state"], rule["version"], rule["matters"]) == ("violated", BAD, True)
    assert (rule["why"], rule["reference"]) == (against["why"], against["reference"])
    merge, gate = rule["dependents"]
    assert (merge["operator"], merge["effect"]) == ("merge_attn_states", "changed")
    assert [other["kernel"] for other in merge["instead"]] == ["cuda_sm90:triton"]
    assert [(o["kernel"], o["degraded"]) for o in gate["instead"]] == [("cuda_sm90:triton", False)]
    assert report["healthy"] is False
    (finding,) = report["findings"]
    assert finding == (
        "acme-runtime 2.3.0, needed is acme-runtime>=2.1,!=2.3.0; "
        "accuracy: 2.3.0 drops the last tile (acme/runtime#77); "
        "cuda_sm90.acme:library of merge_attn_states, kda_gate -> cuda_sm90:triton; "
        "install acme-runtime>=2.1,!=2.3.0"
    )
    alone = {"ARCHKEY_DISABLE_PLUGINS": "cuda_sm90"}  # nothing but the reference is left then
    rule = rule_of(venv.archkey("doctor cuda_sm90", code=1, **alone), "acme-runtime", "accuracy")
    _, gate = rule["dependents"]
    assert [(o["kernel"], o["degraded"]) for o in gate["instead"]] == [("cpu:torch", True)]
    for columns in ("80", "200"):
        alone["COLUMNS"] = columns
        out = venv.run("-m", "archkey", "doctor", "cuda_sm90", code=1, **alone)
        assert max(map(len, out.splitlines())) <= int(columns)
        row = " ".join(out.partition("rules, judged for cuda_sm90")[2].split())
        for said in ("violated", "acme-runtime 2.3.0", "2.3.0 drops", "cpu:torch*", "* degraded"):
            assert said in row, (said, out)


def test_a_good_library_is_no_finding(tmp_path: Path) -> None:
    venv = environment(tmp_path)
    assert venv.archkey("explain kda_gate --target cuda_sm90")["chosen"] == "cuda_sm90.acme:library"
    report = venv.archkey("doctor cuda_sm90")
    assert report["healthy"] and not report["findings"]
    rule = rule_of(report, "acme-runtime", "accuracy")
    assert rule["state"] == "ok" and {d["effect"] for d in rule["dependents"]} == {"none"}
    assert "acme-runtime" in report["machine"]["distributions"]


def test_an_override_does_not_bring_a_bad_library_back(tmp_path: Path) -> None:
    venv = environment(tmp_path, BAD)
    asked = {"ARCHKEY_OVERRIDE_MERGE_ATTN_STATES": "library"}
    line = "explain merge_attn_states --target cuda_sm90"
    decision = venv.archkey(line, code=1, **asked)
    codes = {r["kernel"]: r["code"] for r in decision["rejected"]}
    assert decision["chosen"] is None and codes["cuda_sm90.acme:library"] == "requirement"
    report = venv.archkey("doctor cuda_sm90", code=1, **asked)
    assert "library of merge_attn_states -> no kernel" in report["findings"][0]
    assert report["machine"]["environment"].items() >= asked.items()


def test_an_option_that_nobody_took_matters_where_nothing_else_is_left(tmp_path: Path) -> None:
    """Acme's kernels give way to ours, and where these are disabled to the torch reference."""
    venv = environment(tmp_path, "")
    report = venv.archkey("doctor cuda_sm90", code=1, ARCHKEY_DISABLE_PLUGINS="cuda_sm90")
    rule = rule_of(report, "acme-runtime", "accuracy")
    assert (rule["state"], rule["found"]) == ("not installed", "acme-runtime not installed")
    assert "drops" not in report["findings"][0], "what is not there is not a bad version"
    report = venv.archkey("doctor cuda_sm90")
    rule = rule_of(report, "acme-runtime", "accuracy")
    assert (rule["state"], rule["matters"], report["healthy"]) == ("not installed", False, True)


# ---- a Triton with a fenced tuning


def test_a_fenced_row_is_passed_over_and_said(tmp_path: Path) -> None:
    venv = environment(tmp_path, bad_triton=TRITON)
    tuning = venv.archkey("explain rmsnorm --target cuda_sm90")["tuning"]
    assert tuning["row"] == 2 and "num_warps=4" in tuning["values"]
    (fence,) = tuning["fenced"]
    assert (fence["row"], fence["required"]) == (1, f"triton!={TRITON}")
    assert (fence["severity"], fence["why"]) == ("accuracy", "wrong sums with 8 warps")
    assert (fence["reference"], fence["found"]) == ("acme#12", f"triton {TRITON}")

    report = venv.archkey("doctor cuda_sm90", code=1)
    rule = rule_of(report, "triton", "accuracy")
    (row,) = rule["dependents"]
    assert (rule["state"], row["row"], row["effect"]) == ("violated", 1, "changed")
    assert row["instead"] == [{"kernel": "cuda_sm90.acme:triton", "row": 2, "degraded": False}]
    assert "cuda_sm90.acme:triton of rmsnorm, row 1 -> row 2" in report["findings"][0]

    case = json.loads(venv.run("-c", COMPILED))
    assert (case["kernel"], case["outcome"]) == ("cuda_sm90.acme:triton", "passed")
    (said,) = case["details"]["fenced"]
    assert said.startswith("row 1, ") and said.endswith("wrong sums with 8 warps (acme#12)")
    threads = {program["threads"] for program in case["details"]["programs"]}
    assert threads == {4 * 32}, "compiled with the next row's warps"


COMPILED = """
import json, archkey
from archkey.conformance.examine import EXAMPLE, Options, examine
from archkey.conformance.levels import Item
session = archkey.open("cuda_sm90")
examples = session.operators["rmsnorm"].examples
label = min(examples, key=lambda name: examples[name].width)
item = Item("compiled", "rmsnorm", "cuda_sm90.acme:triton", EXAMPLE + label)
print(json.dumps(examine(session, item, Options(0), lambda case: None).to_json()))
"""


# ---- Triton's own releases, and what our kernels rest on

RELEASES = {
    "3.6.0": "cuda_sm90:wgmma",
    "3.6.0+rocm7.2": "cuda_sm90:wgmma",
    "3.6.1.dev20261101": "cuda_sm90:wgmma",
    "3.7.0": "cuda_sm90:triton",
    "3.7.0.dev20261101": "cuda_sm90:triton",
    "3.7.0a0+gitabc": "cuda_sm90:triton",
    "3.5.1": "cpu:torch",
    "main-4f2c": "cpu:torch",
}


DECIDED = """
import importlib, sys, archkey
problem = next(iter(archkey.open("cuda_sm90").operators["mla_decode"].examples.values()))
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    print(archkey.open("cuda_sm90").decide(problem).chosen.id)
"""


def test_each_build_of_triton_gets_the_kernel_that_is_right_with_it(tmp_path: Path) -> None:
    venv = Venv(tmp_path / "venv")
    for number in RELEASES:
        venv.add("triton", number, folder=tmp_path / number)
    out = venv.run("-c", DECIDED, *(str(tmp_path / number) for number in RELEASES))
    assert dict(zip(RELEASES, out.split(), strict=True)) == RELEASES


def test_doctor_judges_every_target(tmp_path: Path) -> None:
    venv = Venv(tmp_path)
    venv.add("triton", "3.7.0.dev20261101")
    report = venv.archkey("doctor --all", code=1)
    assert report["machine"]["distributions"]["triton"] == {"triton": "3.7.0.dev20261101"}
    gluon = [rule for rule in report["rules"] if rule["state"] == "violated"]
    assert [rule["required"] for rule in gluon] == ["triton>=3.6,<3.7"]
    shared = [rule for rule in report["rules"] if rule["required"] == "triton>=3.6"]
    assert len(shared) == 1 and shared[0]["state"] == "ok"
    on = {dependent["target"] for dependent in shared[0]["dependents"]}
    assert on >= {"cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950"}


# ---- where hardly anything is installed

LIGHT = ("click", "rich", "pluggy", "packaging", "platformdirs", "filelock", "pygments")


def test_it_works_without_torch_and_triton(root: Path, tmp_path: Path) -> None:
    venv = Venv(tmp_path)
    (venv.site / "beside.pth").write_text(
        f"{root / 'core/src'}\n{root / 'plugins/cuda_sm90/src'}\n"
    )
    for name in (*LIGHT, "markdown_it", "mdurl"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        (venv.site / name).symlink_to(Path(spec.origin).parent)
    venv.add("archkey", "0.1.0", "[archkey.plugins]\ncpu = archkey.reference.plugin\n")
    venv.add(
        "archkey-cuda-sm90", "0.1.0", "[archkey.plugins]\ncuda_sm90=archkey_cuda_sm90.plugin\n"
    )
    report = venv.archkey("doctor cuda_sm90", code=1)
    assert report["machine"]["distributions"]["torch"] == {}
    assert report["findings"][0].startswith("torch is not installed")
    rule = rule_of(report, "triton", "crash") if len(report["rules"]) == 1 else report["rules"][0]
    assert (rule["state"], rule["matters"]) == ("not installed", True)
    assert {o["kernel"] for d in rule["dependents"] for o in d["instead"]} == {"cpu:torch"}
    out = venv.run("-m", "archkey", "doctor", code=1)
    assert "torch" in out and "not installed" in out
