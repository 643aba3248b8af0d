# SPDX-License-Identifier: Apache-2.0
"""The command line: what a person reads, what a script parses, and the exit codes.

A vendor's distribution is laid out on sys.path, so that these tests go through the real door and
do not depend on which of our plugins are installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import archkey
from archkey.cli import COMMANDS, cli
from archkey.cli.explain import pick
from archkey.conformance import evidence, record
from archkey.conformance.levels import Item, Outcome
from archkey.conformance.sources import digest
from archkey.errors import ArchkeyError
from archkey.ops import OPERATORS
from archkey.settings import settings

VENDOR = """
import archkey
from archkey.capabilities import Capability
from archkey.conditions import at_most, is_

ARCHKEY_API = (1, 1)

@archkey.hookimpl
def archkey_capabilities(target):
    yield Capability("warp_size", 8, "Acme manual", "eight lanes [bold]always[/bold]")
    yield Capability("acme:systolic", True, "Acme manual", "it has one")

@archkey.hookimpl
def archkey_kernels(target):
    yield archkey.Kernel("rmsnorm", "wide", "acme.k:wide", needs=(is_("tma", True, "buy an X2"),))
    yield archkey.Kernel("rmsnorm", "fast", "acme.k:fast", accepts=(at_most("width", 4096),))
"""
ENTRIES = "[archkey.plugins]\nacme_x1 = acme_plugin\nacme_x1.bad = acme_bad\n"


@pytest.fixture(autouse=True)
def pipe_of_80_columns(environ: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the output goes; what the developer's own terminal wants does not matter."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed vendor: plugin acme_x1, and acme_x1.bad, which raises."""
    (tmp_path / "acme_plugin.py").write_text(VENDOR)
    (tmp_path / "acme_bad.py").write_text("raise RuntimeError('no [red]licence')\n")
    info = tmp_path / "acme-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    for module in ("acme_plugin", "acme_bad"):  # that of an earlier test
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0, **environ: str) -> Result:
    """Run the command line; it must end with exit `code`."""
    settings.cache_clear()
    result = CliRunner().invoke(cli, arguments, env=environ)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def parsed(*arguments: str, code: int = 0, **environ: str) -> Any:
    """The document that the command prints with --json: all of stdout."""
    return json.loads(run(*arguments, "--json", code=code, **environ).stdout)


# ---- the frame


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("archkey 0.")
    overview = run("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in overview
        assert f"archkey {name}" in run(name, "--help").stdout, "help shows an example"
    assert max(map(len, overview.splitlines())) <= 80
    assert "..." not in overview.partition("Commands:")[2], "a short help was cut off"


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    assert "did you mean 'coverage'" in run("coverag", code=2).stderr


def test_a_misspelt_variable_is_one_message_without_traceback() -> None:
    result = run("probe", code=2, ARCHKEY_STRIKT="1")
    assert "did you mean 'ARCHKEY_STRICT'" in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


@pytest.mark.parametrize("width", [80, 140])
def test_everything_fits_and_is_plain_text(acme: Path, width: int) -> None:
    for line in (
        "probe",
        "plugins -t acme_x1",
        "capabilities acme_x1",
        "explain rmsnorm -t acme_x1",
        "coverage",
    ):
        out = run(*line.split(), COLUMNS=str(width)).stdout
        assert max(map(len, out.splitlines())) <= width, line
        assert "\x1b" not in out, "colour in what is no terminal"


ISOLATED = """
import sys
sys.modules.update(dict.fromkeys({forbidden}))  # importing one of them raises ImportError
from archkey.cli import cli
for line in {lines}:
    cli(line.split(), standalone_mode=False)
"""


def test_nothing_but_demo_imports_torch_or_triton(run_python: Callable[..., str]) -> None:
    lines = ["probe", "plugins", "capabilities cuda_sm90", "explain rmsnorm -t gfx950", "coverage"]
    lines += ["doctor", "doctor cuda_sm90", "doctor --all"]
    lines += [f"{line} --json" for line in lines]
    out = run_python(ISOLATED.format(forbidden=["torch", "triton", "numpy"], lines=lines))
    assert "rmsnorm on rocm_gfx950" in out


def test_probe_json_loads_neither_rich_nor_sessions(run_python: Callable[..., str]) -> None:
    forbidden = ["torch", "rich", "pluggy", "archkey.session", "archkey.ops"]
    out = run_python(ISOLATED.format(forbidden=forbidden, lines=["probe --json"]))
    assert json.loads(out)["devices"][-1]["target"] == "cpu"


def test_python_m_archkey_is_the_script() -> None:
    command = [sys.executable, "-m", "archkey", "capabilities", "nonsense"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: no target is named 'nonsense'")


# ---- probe


def test_probe_ends_with_the_cpu_and_keeps_notes() -> None:
    found = parsed("probe", ARCHKEY_TARGET="gfx950")
    assert [device["target"] for device in found["devices"]] == ["rocm_gfx950", "cpu"]
    assert found["notes"][0].startswith("pretend: ")
    table = run("probe", ARCHKEY_TARGET="gfx950").stdout
    assert "rocm_gfx950" in table and "note  pretend: this machine" in table


def test_a_table_names_the_columns_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from archkey.probe import Device, Probe
    from archkey.target import Target

    big = Device(
        Target.parse("sm90"), 0, "NVIDIA H200", "nvml", 132, 232448, 50 << 20, 141 << 30,
        uuid="GPU-" + "0" * 36, driver="570.124.06",
    )  # fmt: skip
    monkeypatch.setattr("archkey.cli.probe.probe", lambda: Probe((big,), ()))
    narrow = run("probe").stdout
    assert "left out for want of width: uuid" in narrow and "GPU-000" not in narrow
    assert "227 KiB" in narrow and "141 GiB" in narrow
    wide = run("probe", COLUMNS="200").stdout
    assert "GPU-000" in wide and "left out" not in wide
    assert "partition" not in wide, "no device has one"


# ---- plugins


def test_plugins_states_and_reasons(acme: Path) -> None:
    entries = {e["name"]: e for e in parsed("plugins", "--target", "acme_x1")}
    assert entries["acme_x1"]["state"] == "loaded"
    assert entries["acme_x1"]["distribution"] == "acme" and entries["acme_x1"]["version"] == "3.1"
    assert entries["acme_x1"]["location"] == str(acme)
    assert entries["acme_x1.bad"]["state"] == "broken"
    assert entries["acme_x1.bad"]["reason"] == "RuntimeError: no [red]licence"
    assert {e["name"]: e["state"] for e in parsed("plugins", "-t", "cpu")}["acme_x1"] == "skipped"


def test_plugins_shows_tracebacks_on_request_only(acme: Path) -> None:
    short = run("plugins", "-t", "acme_x1").stdout
    assert "no [red]licence" in short and "Traceback" not in short
    assert "--traceback shows" in short
    long = run("plugins", "-t", "acme_x1", "--traceback").stdout
    assert "Traceback" in long and "('no [red]licence')" in long


def test_a_failed_plugin_is_one_log_line_on_stderr(acme: Path) -> None:
    lines = run("capabilities", "acme_x1", "--name", "pdl").stderr.splitlines()
    assert lines == ["warning: plugin acme_x1.bad is broken: RuntimeError: no [red]licence"]


def test_a_log_record_is_a_line_and_its_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe() -> None:
        log = logging.getLogger("archkey")
        log.warning("degraded\nwith details")
        try:
            raise RuntimeError("lost")
        except RuntimeError:
            log.warning("could not build\nwith details", exc_info=True)
        raise ArchkeyError("enough")

    monkeypatch.setattr("archkey.cli.probe.probe", probe)
    assert run("probe", code=2).stderr.splitlines() == [
        "warning: degraded",
        "warning: could not build",
        "RuntimeError: lost",
        "Error: enough",
    ]
    assert run("probe", code=2, ARCHKEY_LOGLEVEL="debug").stderr.count("with details") == 2
    assert not logging.getLogger("archkey").handlers, "the handler stayed behind"


# ---- capabilities


def test_capabilities_have_value_source_and_reason(acme: Path) -> None:
    found = parsed("capabilities", "acme_x1")
    assert found["target"] == "acme_x1"
    assert found["capabilities"]["warp_size"] == {
        "value": 8,
        "source": "Acme manual",
        "reason": "eight lanes [bold]always[/bold]",
    }
    assert found["capabilities"]["acme:systolic"]["value"] is True
    assert found["capabilities"]["fp8"]["source"] == "default"


@pytest.mark.parametrize("width", [80, 140])
def test_capabilities_table_shows_the_meaning(acme: Path, width: int) -> None:
    out = run("capabilities", "acme_x1", COLUMNS=str(width)).stdout
    row = next(line for line in out.splitlines() if "warp_size" in line)
    assert " 8 " in row and "[bold]always[/bold]" in out, "text of a plugin is no markup"
    assert "lanes of a warp" in out


@pytest.mark.parametrize(
    ("name", "text"),
    [("acme:systolic", "true"), ("pdl", "false"), ("fp8", "none"), ("warp_size", "8")],
)
def test_one_capability_is_its_bare_value(acme: Path, name: str, text: str) -> None:
    assert run("capabilities", "acme_x1", "--name", name).stdout == text + "\n"
    assert list(parsed("capabilities", "acme_x1", "-n", name)["capabilities"]) == [name]


def test_unknown_capability_and_target_list_the_nearest() -> None:
    assert "did you mean 'pdl'" in run("capabilities", "cpu", "--name", "pld", code=2).stderr
    assert "'cuda_sm90'" in run("capabilities", "cuda_sm9", code=2).stderr


# ---- explain


def test_explain_gives_a_reason_for_every_other_kernel(acme: Path) -> None:
    found = parsed("explain", "rmsnorm", "-t", "acme_x1", "width=4096", "aligned=no")
    assert found["chosen"] == "acme_x1:fast" and found["degraded"] is False
    assert found["problem"]["width"] == 4096 and found["problem"]["aligned"] is False
    assert found["problem"]["dtype"] == "bfloat16", "what is not changed stays the example's"
    reasons = {r["kernel"]: r for r in found["rejected"]}
    assert set(reasons) == {"acme_x1:wide", "cpu:torch"}
    assert reasons["acme_x1:wide"]["code"] == "capability"
    assert reasons["acme_x1:wide"]["required"] == "tma = True"
    assert reasons["acme_x1:wide"]["remedy"] == "buy an X2"
    assert reasons["cpu:torch"]["code"] == "outranked"


@pytest.mark.parametrize("width", [80, 140])
def test_explain_prints_choice_and_reasons(acme: Path, width: int) -> None:
    out = run("explain", "rmsnorm", "-t", "acme_x1", "width=8192", COLUMNS=str(width)).stdout
    assert "cpu:torch - last resort (degraded)" in out
    assert "width <= 4096" in out and "width = 8192" in out and "buy an X2" in out


@pytest.fixture
def fenced(acme: Path) -> None:
    """The vendor's first row is known to be wrong with the version of packaging that is here."""
    module = acme / "acme_plugin.py"
    table = """tuning=Table((
        Row(64, requires=(Requirement("packaging", "<1", "sums are wrong", "accuracy"),)),
        Row(32, (at_most("width", 4096),), measured="X1, 2026"),
        Row(16),
    ))"""
    source = module.read_text().replace(
        'accepts=(at_most("width", 4096),)', f'accepts=(at_most("width", 4096),), {table}'
    )
    imports = (
        "from archkey.requirements import Requirement\nfrom archkey.tuning import Row, Table\n"
    )
    module.write_text(imports + source)


def test_explain_tells_the_row_and_what_was_fenced_off(fenced: None) -> None:
    command = ("explain", "rmsnorm", "-t", "acme_x1", "width=4096")
    tuning = parsed(*command)["tuning"]
    assert (tuning["row"], tuning["values"], tuning["measured"]) == (2, "32", "X1, 2026")
    (fence,) = tuning["fenced"]
    assert (fence["row"], fence["required"], fence["why"]) == (1, "packaging<1", "sums are wrong")
    out = run(*command, COLUMNS="200").stdout
    assert "row 2, 32, for width <= 4096" in out
    assert "measured: X1, 2026" in out
    found = f"found packaging {version('packaging')}; accuracy: sums are wrong"
    assert f"row 1, 64, for every problem, needs packaging<1; {found}" in out


@pytest.mark.parametrize(
    ("model", "width"),
    [("Kimi-Linear hidden", 2304), ("glm", 6144), ("KV_A", 512), (None, 7168)],
    ids=["label", "prefix", "part", "default"],
)
def test_explain_picks_the_model(model: str | None, width: int) -> None:
    choice = ["--model", model] if model else []
    assert parsed("explain", "rmsnorm", "-t", "cpu", *choice)["problem"]["width"] == width


def test_a_whole_label_goes_before_a_start_and_a_start_before_a_part() -> None:
    labels = ["old GLM-4", "GLM-5", "GLM"]
    operator = replace(OPERATORS["rmsnorm"], examples=dict.fromkeys(labels))
    assert [pick(operator, name) for name in ("glm", "glm-", "d g")] == [
        "GLM",
        "GLM-5",
        "old GLM-4",
    ]


def test_explain_strict_without_a_kernel_is_exit_1(acme: Path) -> None:
    found = parsed("explain", "rmsnorm", "-t", "acme_x1", "--strict", code=1)
    assert found["chosen"] is None
    assert {r["code"] for r in found["rejected"]} == {"capability", "problem", "degraded"}


def test_explain_asks_for_a_kernel_by_name(acme: Path) -> None:
    line = ("explain", "rmsnorm", "-t", "acme_x1", "width=512", "--kernel")
    assert parsed(*line, "torch")["chosen"] == "cpu:torch"
    assert "'acme_x1:fast'" in run(*line, "acme_x1:fats", code=2).stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rmsnrom", "did you mean 'rmsnorm'"),
        ("rmsnorm widht=3", "did you mean 'width'"),
        ("rmsnorm width=many", "width is an integer, now 7168"),
        ("rmsnorm aligned=7", "aligned is yes or no, now True"),
        ("rmsnorm width", "no FIELD=VALUE; fields: dtype"),
        ("rmsnorm --model glm-5-hidden", "did you mean 'GLM-5 hidden'"),
    ],
)
def test_explain_refuses_with_the_next_step(line: str, message: str) -> None:
    result = run("explain", *line.split(), "-t", "cpu", code=2)
    assert message in result.stderr and result.stdout == ""


@pytest.mark.skipif(not importlib.util.find_spec("archkey_rocm_gfx950"), reason="not installed")
def test_fused_qk_rmsnorm_on_gfx950_is_the_plugins_own() -> None:
    found = parsed("explain", "fused_qk_rmsnorm", "--target", "rocm_gfx950")
    assert found["chosen"].startswith("rocm_gfx950:") and found["degraded"] is False
    assert "cpu:torch" in {r["kernel"] for r in found["rejected"]}


# ---- coverage


def test_coverage_counts_own_and_degraded(acme: Path) -> None:
    rows = parsed("coverage", "--target", "acme_x1", "--target", "cpu")
    by = {(row["operator"], row["target"]): row for row in rows}
    row = by["rmsnorm", "cpu"]
    assert (row["kernel"], row["degraded"], row["problems"]) == ("cpu:torch", False, [])
    assert by["rmsnorm", "acme_x1"]["level"] == "none", "nobody has examined it"
    assert by["rmsnorm", "acme_x1"]["degraded"] is True, "7168 is wider than its kernel takes"
    out = run("coverage", "-t", "acme_x1").stdout
    total = next(line.split() for line in out.splitlines() if line.startswith(" acme_x1"))
    operators = sum(row["target"] == "acme_x1" for row in rows)
    assert total == ["acme_x1", "0", str(operators), "0", "0", "0"]
    assert " torch* " in out and "* degraded" in out


def test_coverage_has_a_row_for_each_operator_and_installed_target(acme: Path) -> None:
    rows = parsed("coverage")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    assert "acme_x1" in targets and targets[-1] == "cpu"
    assert len(rows) == len(targets) * sum(row["target"] == "cpu" for row in rows)


def test_an_operator_without_kernel_is_null(acme: Path) -> None:
    rows = parsed("coverage", "-t", "acme_x1", ARCHKEY_STRICT="1")
    assert {row["kernel"] for row in rows} == {None} and not any(row["degraded"] for row in rows)
    assert "none" in run("coverage", "-t", "acme_x1", ARCHKEY_STRICT="1").stdout


def recorded(day: int, *names: str, apart: bool = False) -> None:
    """Level contract of the torch reference on acme_x1, in the user's record."""
    session = archkey.open("acme_x1")
    operators = [session.operators[name] for name in names]
    codes = {one.name: digest(session.kernels(one.name)[-1], one) for one in operators}
    level = record.block(
        [Outcome(Item("contract", name, "cpu:torch", "builder"), "passed") for name in names],
        complete=True,
        date=f"2026-01-0{day}",
        device=None,
        versions={"torch": f"2.{day}"},
        sources={f"{name} cpu:torch": code for name, code in codes.items()},
        parts=dict.fromkeys(names, True) if apart else None,
    )
    evidence.keep(evidence.own_path("acme_x1"), "acme_x1", {"contract": level})


def test_coverage_tells_of_operators_that_were_examined_apart(
    acme: Path, environ: Callable[..., None]
) -> None:
    """Each has its own date and versions; a level on a target has one line for most of them."""
    environ(ARCHKEY_DATA_DIR=str(acme / "data"))
    recorded(1, "kda_gate", "mla_decode", "mla_prefill", "fused_add_rmsnorm")
    command = ("coverage", "-t", "acme_x1")
    notes = [line for line in run(*command, "--markdown").stdout.splitlines() if line[:1] == "-"]
    assert notes == ["- acme_x1, contract: 2026-01-01, torch 2.1"]

    recorded(2, "mla_prefill", "mla_decode", apart=True)
    recorded(3, "mla_prefill", apart=True)
    notes = [line for line in run(*command, "--markdown").stdout.splitlines() if line[:1] == "-"]
    assert notes == [
        "- acme_x1, contract: 2026-01-01, torch 2.1",
        "- acme_x1, contract of `mla_decode`: 2026-01-02, torch 2.2",
        "- acme_x1, contract of `mla_prefill`: 2026-01-03, torch 2.3",
    ]
    by = {row["operator"]: row["evidence"] for row in parsed(*command)}
    dates = {name: found["date"][-1] for name, found in by.items() if found}
    assert dates == {
        "kda_gate": "1",
        "fused_add_rmsnorm": "1",
        "mla_decode": "2",
        "mla_prefill": "3",
    }
    assert by["mla_prefill"]["versions"] == {"torch": "2.3"}


# ---- demo


def test_demo_runs_the_operators_asked_for() -> None:
    result = run("demo", "--target", "cpu", "-o", "fused_qk_rmsnorm", "--json")
    found = json.loads(result.stdout)
    assert found["device"]["target"] == "cpu"
    assert {row["operator"] for row in found["results"]} == {"fused_qk_rmsnorm"}
    for row in found["results"]:
        assert row["passed"] and row["kernel"] == "cpu:torch"
        assert 0 <= row["error"] <= row["tolerance"] and row["seconds"] > 0
    steps = result.stderr.splitlines()
    count = len(found["results"])
    assert [step.split()[0] for step in steps] == [f"[{i + 1}/{count}]" for i in range(count)]


def rows_of(*outcomes: bool | None) -> Any:
    """A stand-in for the runner: rows that pass or fail; None is Ctrl-C."""
    from archkey.conformance.judge import Result as Row

    def runner(session: object, operators: object) -> Iterator[Row]:
        for passed in outcomes:
            if passed is None:
                raise KeyboardInterrupt
            error = 1e-3 if passed else float("inf")
            yield Row(
                "rmsnorm", "GLM-5", "T=1", "cpu:torch", "first in order", not passed, error, 4e-3,
                passed, 0.0025, "out" if passed else "RuntimeError: [red]lost[/red]",
            )  # fmt: skip

    cases = [SimpleNamespace(operator="rmsnorm", model="GLM-5")] * len(outcomes)
    return SimpleNamespace(run=runner, chosen=lambda session, operators: cases)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces the runner behind `demo`."""
    import archkey.conformance.demo as real

    def install(*outcomes: bool | None) -> None:
        stand_in = rows_of(*outcomes)
        monkeypatch.setattr(real, "run", stand_in.run)
        monkeypatch.setattr(real, "chosen", stand_in.chosen)

    return install


@pytest.mark.parametrize("width", [80, 140])
def test_a_failed_row_is_exit_1_with_its_reason(runner: Any, width: int) -> None:
    runner(True, False)
    out = run("demo", "-t", "cpu", code=1, COLUMNS=str(width)).stdout
    assert "1 operator, 2 of 2 problems: 1 passed, 1 failed, 1 degraded" in out
    assert "failed: rmsnorm, GLM-5: RuntimeError: [red]lost[/red]" in out
    assert "1.0e-03" in out and "4.0e-03" in out and "2.50" in out and "FAIL" in out
    assert max(map(len, out.splitlines())) <= width
    assert [row["error"] for row in parsed("demo", "-t", "cpu", code=1)["results"]] == [1e-3, "inf"]


def test_demo_shows_the_machine_first(runner: Any, acme: Path) -> None:
    runner(True)
    out = run("demo", "-t", "cpu").stdout
    assert out.startswith("device   cpu ")
    assert "cpu loaded, " in out and "acme_x1 skipped" in " ".join(out.split())
    assert "mxfp4 emulated" in out and "tcgen05" in out.partition("cannot")[2]


def test_ctrl_c_prints_the_rows_so_far_and_exits_130(runner: Any) -> None:
    runner(True, True, None, True)
    result = run("demo", "-t", "cpu", code=130)
    assert "2 of 4 problems: 2 passed" in result.stdout
    assert "interrupted after 2 of 4" in result.stderr
    assert len(parsed("demo", "-t", "cpu", code=130)["results"]) == 2


def test_ctrl_c_elsewhere_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("archkey.cli.probe.probe", interrupt)
    result = run("probe", code=130)
    assert result.stderr == "interrupted\n" and result.stdout == ""


def test_nothing_to_run_is_not_a_pass(runner: Any) -> None:
    runner()
    assert "nothing to run" in run("demo", "-t", "cpu", "-o", "rmsnorm", code=1).stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-o rmsnrom -t cpu", "did you mean 'rmsnorm'"),
        ("-f rms -t cpu", "did you mean 'rmsnorm'"),
        ("-t acme_x1", "no acme_x1 is here; run it there, or set TRITON_INTERPRET=1"),
    ],
)
def test_demo_refuses_with_the_next_step(
    acme: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert message in run("demo", *line.split(), code=2).stderr
