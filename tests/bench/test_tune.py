# SPDX-License-Identifier: Apache-2.0
"""`archkey tune` from the command line to the file: a vendor's plugin for the CPU, on real tensors.

Its kernel is honest about its numbers: it writes them where the clock of these tests looks, so
times are the same on every machine. One test uses the real clock.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import archkey
from archkey import tables
from archkey.bench.results import Timing
from archkey.bench.tune.samples import pick, sharers
from archkey.cli import cli
from archkey.errors import ArchkeyError, UnknownName
from archkey.kernel import Kernel
from archkey.tuning import Row, Source, Table

PLUGIN = '''
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import archkey
from archkey import tables
from archkey.conditions import at_most
from archkey.kernel import Kernel
from archkey.ops import Operator, public
from archkey.tuning import Row, Space, Table

ARCHKEY_API = (1, 1)


@dataclass(frozen=True)
class Blocks:
    block: int
    lanes: int = 1


class Double(NamedTuple):
    """Twice."""
    width: int
    operator: str = "acme_double"


class Triple(NamedTuple):
    """Three times."""
    width: int
    operator: str = "acme_triple"


@public
def acme_double(session, x):
    import torch
    out = torch.empty_like(x)
    session.launcher(Double(x.shape[1]))(x, out)
    return out


@public
def acme_triple(session, x):
    import torch
    out = torch.empty_like(x)
    session.launcher(Triple(x.shape[1]))(x, out)
    return out


def double(x, compute_dtype=None):
    return (x.to(compute_dtype or x.dtype) * 2,)


def triple(x, compute_dtype=None):
    return (x.to(compute_dtype or x.dtype) * 3,)


def operator(name, problem, cases="", workloads=__name__):
    return Operator(
        name, "acme", problem, ("x",), ("out",), f"{__name__}:{name[5:]}", f"{__name__}:{name}",
        cases, workloads, MappingProxyType({"narrow": problem(64)}),
    )


COSTS = {}


def __getattr__(name):
    if name in ("WORKLOADS", "CASES"):  # those import torch
        from archkey.bench.workload import Workload
        from archkey.conformance.case import Case

        def rows(tokens, width):
            return lambda maker: {"x": maker.randn(tokens, width)}

        return {
            "WORKLOADS": (
                Workload("acme_double", "Narrow", 1, "b1", rows(1, 64)),
                Workload("acme_double", "Narrow", 1, "b8", rows(8, 64)),
                Workload("acme_double", "Wide", 1, "b4", rows(4, 256)),
                Workload("acme_double", "Odd", 1, "b4", rows(4, 1000)),
            ),
            "CASES": (
                Case("acme_triple", "Model", "T=2", rows(2, 64)),
                Case("acme_triple", "", "edge", rows(1, 1), edge=True),
            ),
        }[name]
    raise AttributeError(name)


SPACE = Space({"block": (8, 16, 32, 64, 128)}, lambda values, capabilities: values.block < 128)
PYTHON = Table((Row(Blocks(8)),))
RAN = []


def build(problem, build):
    blocks = build.tuning(problem)
    factor = {"acme_double": 2, "acme_triple": 3}[problem.operator]
    if blocks.block == 32 and problem.width == 64:
        raise MemoryError("no room for 32")

    def run(x, out):
        RAN.append((problem.operator, problem.width, blocks.block))
        rows = len(x) - (blocks.block == 64)  # the last row is forgotten
        out[:rows] = x[:rows] * factor

    return run


def kernel(operator, name="blocks", **data):
    return Kernel(operator, name, f"{__name__}:build", **data)


@archkey.hookimpl
def archkey_operators():
    yield operator("acme_double", Double)
    yield operator("acme_triple", Triple, __name__, "")


@archkey.hookimpl
def archkey_kernels(target):
    fits = (at_most("width", 512, "one page"),)
    # Read anew for each session of these tests, and twice: one place in a file is one table.
    for operator, accepts in (("acme_double", fits), ("acme_triple", ())):
        read = tables.read(Path(__file__).with_name("acme_tuning.json"), Blocks)
        yield kernel(operator, accepts=accepts, tuning=read["blocks"], space=SPACE)
    yield kernel("acme_double", "python", tuning=PYTHON, space=SPACE)
    yield kernel("acme_double", "plain")
    yield kernel("acme_double", "fixed", tuning=PYTHON)
'''

FILE = {
    "format": 1,
    "tables": {
        "blocks": {
            "values": "Blocks",
            "rows": [
                {"when": [["width", "at most", 64]], "values": {"block": 8, "lanes": 2}},
                {"when": [["width", "at most", 256]], "values": {"block": 8}},
                {"values": {"block": 8}, "measured": "not measured: nobody has such a row"},
            ],
        },
        "other": {"values": "Blocks", "rows": [{"values": {"block": 1}}]},
    },
}

# Microseconds by (operator, width, block). 32 does not build for width 64, and 64 is wrong there.
TIMES = {
    ("acme_double", 64, 8): 10.0,
    ("acme_double", 64, 16): 5.0,
    ("acme_double", 64, 64): 1.0,
    ("acme_triple", 64, 8): 10.0,
    ("acme_triple", 64, 16): 6.0,
    ("acme_triple", 64, 64): 1.0,
    ("acme_double", 256, 8): 100.0,
    ("acme_double", 256, 16): 97.0,
    ("acme_double", 256, 32): 98.0,
}
NARROW = ["acme_double narrow-tp1-b1", "acme_double narrow-tp1-b8", "acme_triple Model: T=2"]


@dataclass
class Acme:
    """The installed plugin."""

    module: ModuleType
    file: Path
    journal: Path

    def timed(self) -> list[tuple[str, str, int]]:
        """(status, sample, block) of each line of the journal."""
        rows = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [(r["status"], r["key"]["sample"], r["key"]["values"]["block"]) for r in rows]

    def blocks(self) -> list[int]:
        """The blocks in the file, row by row."""
        return [row.values.block for row in self.read().rows]

    def read(self) -> Any:
        """The table in the file."""
        return tables.read(self.file, self.module.Blocks)["blocks"]


@pytest.fixture
def acme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: Callable[..., None]
) -> Iterator[Acme]:
    """Installed, with a clock that knows the times."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "acme_tune.py").write_text(PLUGIN)
    (folder / "acme_tuning.json").write_text(json.dumps(FILE))
    info = folder / "acme_tune-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tune\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[archkey.plugins]\ncpu.acme = acme_tune\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("COLUMNS", "140")
    environ(ARCHKEY_DATA_DIR=str(tmp_path / "data"))
    module = importlib.import_module("acme_tune")

    def clock(session: Any) -> Callable[[Sequence[Callable[[], object]]], Timing]:
        def time(calls: Sequence[Callable[[], object]]) -> Timing:
            for call in calls:
                call()
            us = TIMES[module.RAN[-1]]
            return Timing(us, us, us, len(calls), "graph")

        return time

    monkeypatch.setattr("archkey.cli.tune._clock", clock)
    yield Acme(module, folder / "acme_tuning.json", tmp_path / "data" / "tuning" / "cpu.jsonl")
    del sys.modules["acme_tune"]


def tune(*arguments: str, code: int = 0, operator: str = "acme_double") -> Result:
    result = CliRunner().invoke(cli, ["tune", operator, "-t", "cpu", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_it_finds_the_best_right_candidate_and_writes_it(acme: Acme) -> None:
    result = tune()
    assert acme.blocks() == [16, 8, 8], "row 2 gains 3 %, row 3 gets no call"
    first, second, third = acme.read().rows
    assert (first.values.lanes, first.when[0].value) == (2, 64), "the rest of the row stays"
    assert first.measured.us == dict(zip(NARROW, (5.0, 5.0, 6.0), strict=True))
    assert first.measured.versions == {"torch": version("torch")}
    assert first.measured.card == archkey.open("cpu").device.name
    assert second.measured.us == {"acme_double wide-tp1-b4": 100.0}, "kept, and measured now"
    assert third.measured == "not measured: nobody has such a row"
    other = tables.read(acme.file, acme.module.Blocks)["other"]
    assert other.rows[0].values == acme.module.Blocks(1)
    out = result.stdout
    assert "- block=8  (not measured)" in out and "+ block=16  (at worst 1.00 x" in out
    assert "row 2, for width <= 256: kept: the best gains no more than 5%" in out
    assert f"1 of 3 rows changed; written to {acme.file}" in out
    assert "`archkey check cpu`" in out
    assert "not timed: acme_double odd-tp1-b4: cpu.acme:blocks needs width <= 512" in result.stderr


def test_a_wrong_or_failing_candidate_gets_no_time(acme: Acme) -> None:
    tune()
    narrow = [(status, block) for status, sample, block in acme.timed() if sample == NARROW[0]]
    assert narrow == [("timed", 8), ("timed", 16), ("failed", 32), ("wrong", 64)]
    reasons = {json.loads(line)["reason"] for line in acme.journal.read_text().splitlines()}
    assert "MemoryError: no room for 32" in reasons
    assert "out: inf > 4.0e-03" in reasons, "what was not written is NaN"


def test_a_dry_run_writes_nothing_but_the_journal(acme: Acme) -> None:
    before = acme.file.read_bytes()
    out = tune("--dry-run").stdout
    assert acme.file.read_bytes() == before
    assert "+ block=16" in out and "1 of 3 rows changed; nothing was written" in out
    assert acme.timed()


def test_the_second_run_measures_nothing_and_fresh_all(acme: Acme) -> None:
    tune("--dry-run")
    lines, ran = len(acme.timed()), len(acme.module.RAN)
    tune()
    assert (len(acme.timed()), len(acme.module.RAN)) == (lines, ran)
    assert acme.blocks() == [16, 8, 8]
    # 16 is the present value now: it comes first, and what is measured is the same.
    tune("--fresh")
    assert len(acme.timed()) == 2 * lines
    assert acme.blocks() == [16, 8, 8]


@pytest.mark.parametrize("killed", [0, 1, 4, 7])
def test_ctrl_c_writes_no_table_and_the_same_command_goes_on(
    acme: Acme, killed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import archkey.cli.tune as module

    before, clock, calls = acme.file.read_bytes(), module._clock, [0]

    def interrupted(session: Any) -> Any:
        def time(listed: Any) -> Timing:
            calls[0] += 1
            if calls[0] > killed:
                raise KeyboardInterrupt
            return clock(session)(listed)

        return time

    with monkeypatch.context() as patch:
        patch.setattr(module, "_clock", interrupted)
        said = tune(code=130).stderr
    assert acme.file.read_bytes() == before
    kept = acme.timed() if acme.journal.exists() else []
    assert len([row for row in kept if row[0] == "timed"]) == killed
    assert f"interrupted: {len(kept)} of 16 measured now and 0 before" in said
    tune()
    assert acme.blocks() == [16, 8, 8]
    assert len(acme.timed()) == len(set(acme.timed())), "nothing was measured twice"


def test_json_has_all_that_was_measured(acme: Acme) -> None:
    result = tune("--json", "--journal", str(acme.file.parent / "own.jsonl"))
    found = json.loads(result.stdout)
    assert (found["operator"], found["kernel"], found["target"]) == (
        "acme_double",
        "cpu.acme:blocks",
        "cpu",
    )
    assert found["written"] == str(acme.file)
    assert found["journal"] == str(acme.file.parent / "own.jsonl")
    first = found["rows"][0]
    assert first["before"] == {"block": 8, "lanes": 2}
    assert first["after"] == {"block": 16, "lanes": 2}
    assert first["gain"] == 0.5
    assert first["us"][NARROW[2]] == {"before": 10.0, "after": 6.0}
    assert len(first["candidates"]) == 4 + 2 + 2, "what is out is not tried again"


def test_filters(acme: Acme) -> None:
    tune("--only-row", "2", "--noise", "0.01")
    assert acme.blocks() == [8, 16, 8]
    assert {sample for _, sample, _ in acme.timed()} == {"acme_double wide-tp1-b4"}
    tune("--workload", "triple")
    assert acme.blocks() == [16, 16, 8]
    assert "no workload to time cpu.acme:blocks" in tune("-w", "nonsense", code=2).stderr
    assert "unknown row '4'" in tune("--only-row", "4", code=2).stderr


def test_another_file(acme: Acme) -> None:
    before, path = acme.file.read_bytes(), acme.file.parent / "new" / "mine.json"
    tune("--output", str(path))
    assert acme.file.read_bytes() == before
    found = tables.read(path, acme.module.Blocks)
    assert [row.values.block for row in found["blocks"].rows] == [16, 8, 8]
    assert set(found) == {"blocks", "other"}


def test_a_file_that_cannot_be_written_is_said_before_the_work(
    acme: Acme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs these tests may be root, whom no mode of a folder stops."""

    def refused(dir: Path) -> None:
        assert dir == acme.file.parent
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("archkey.cli.tune.tempfile.TemporaryFile", refused)
    error = " ".join(tune(code=2).stderr.split())
    assert f"{acme.file} cannot be written (Permission denied)" in error
    assert "read-only? --output names another file, --dry-run only shows" in error
    assert not acme.journal.exists()
    tune("--dry-run")


def test_a_file_that_was_changed_meanwhile_is_left_alone(
    acme: Acme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another row of it may be another's work; the row itself must be what was measured."""
    import archkey.cli.tune as module

    search = module._search

    def changing(row: int) -> Callable[..., Any]:
        def slowly(*arguments: Any) -> Any:
            found = search(*arguments)
            document = json.loads(acme.file.read_text())
            document["tables"]["blocks"]["rows"][row]["values"]["block"] = 1
            acme.file.write_text(json.dumps(document))
            return found

        return slowly

    monkeypatch.setattr(module, "_search", changing(2))
    tune()
    assert acme.blocks() == [16, 8, 1]
    monkeypatch.setattr(module, "_search", changing(0))
    assert "row 1 of the table was changed while it was measured" in tune(code=2).stderr
    assert acme.blocks() == [1, 8, 1]


def test_a_table_in_python_goes_to_a_file(acme: Acme) -> None:
    said = tune("--kernel", "python", code=2).stderr
    assert "is written in Python" in said and "--output" in said
    path = acme.file.parent / "tuning.json"
    tune("--kernel", "python", "--output", str(path), "-w", "narrow")
    (row,) = tables.read(path, acme.module.Blocks)["acme_double"].rows
    assert row.values == acme.module.Blocks(16)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (
            "plain",
            "cpu.acme:plain of acme_double has no tuning table; to be tuned: cpu.acme:blocks",
        ),
        ("fixed", "does not say which numbers may be tried: give it a `space`"),
        ("cpu:torch", "cpu:torch of acme_double has no tuning table"),
    ],
)
def test_a_kernel_without_table_or_space_says_so(acme: Acme, kernel: str, said: str) -> None:
    assert said in tune("--kernel", kernel, code=2).stderr


def test_names_that_are_not_there(acme: Acme) -> None:
    session = archkey.open("cpu")
    with pytest.raises(UnknownName, match="did you mean 'acme_double'"):
        pick(session, "acme_doubel", None)
    with pytest.raises(UnknownName, match="did you mean 'blocks'"):
        pick(session, "acme_double", "block")
    with pytest.raises(ArchkeyError, match="to be tuned: none"):
        pick(session, "rmsnorm", None)


def test_a_table_is_shared_by_those_who_were_given_it(acme: Acme) -> None:
    session = archkey.open("cpu")
    shared = sharers(session, pick(session, "acme_double", None))
    assert [(k.operator, k.name) for k in shared] == [
        ("acme_double", "blocks"),
        ("acme_triple", "blocks"),
    ]
    hopper = archkey.open("cuda_sm90")
    shared = sharers(hopper, pick(hopper, "fused_add_rmsnorm", None))
    assert [k.operator for k in shared] == ["fused_add_rmsnorm", "rmsnorm"]


@pytest.mark.parametrize(
    ("source", "shared"),
    [(Source(Path("a"), "x"), True), (Source(Path("a"), "y"), False), (None, False)],
)
def test_equal_numbers_alone_are_no_shared_table(source: Source | None, shared: bool) -> None:
    rows = (Row(1),)
    mine = Kernel("a_b", "one", "m:f", tuning=Table(rows, Source(Path("a"), "x")))
    other = Kernel("a_c", "one", "m:f", tuning=Table(rows, source))
    session: Any = SimpleNamespace(plugins=[SimpleNamespace(kernels=(other, mine))])
    assert sharers(session, mine) == ((mine, other) if shared else (mine,))


def test_without_the_card_it_says_what_is_needed() -> None:
    result = CliRunner().invoke(cli, ["tune", "rmsnorm", "-t", "rocm_gfx950", "--dry-run"])
    assert result.exit_code == 2
    assert "tune measures on the card: no rocm_gfx950 on this machine" in result.stderr


def test_times_of_the_real_clock(
    acme: Acme, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from archkey.bench.clock import Clock

    clock = Clock(torch.device("cpu"), samples=3)
    monkeypatch.setattr("archkey.cli.tune._clock", lambda session: clock.time)
    found = json.loads(tune("--json", "-w", "wide").stdout)
    candidates = {c["values"]["block"]: c for c in found["rows"][1]["candidates"]}
    assert {block: c["status"] for block, c in candidates.items()} == {
        8: "timed",
        16: "timed",
        32: "timed",
        64: "wrong",
    }
    assert candidates[8]["method"] == "host" and candidates[8]["us"] > 0
