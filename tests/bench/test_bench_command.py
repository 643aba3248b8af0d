# SPDX-License-Identifier: Apache-2.0
"""`archkey bench`: what a person reads, what a script parses, what is refused, and the exit codes.

Measuring processes are real; they know small workloads and made-up peers (`_small`).
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.bench import _small
from tests.bench._documents import document, one, timed, untimed, workload

from archkey import locate
from archkey.bench import asker as askers
from archkey.bench import peers, results
from archkey.bench.asker import Asker, Terms
from archkey.bench.document import new
from archkey.bench.peers import Peer
from archkey.bench.results import OURS
from archkey.cli import cli, coverage
from archkey.cli.bench import command

RIGHT, COARSE = "made-up:right", "made-up:coarse"
SHORT = ("--device", "cpu", "--samples", "5", "--seconds", "0.05", "--seed", "3")
TWO = ("-w", "small-tp1-t7", "-w", "*-t64", "-p", RIGHT, "-p", COARSE, *SHORT)
"""Two workloads with three entrants each."""

ROWS = functools.cache(coverage.rows)
"""The coverage table, made once: it takes a second."""


def run(*arguments: str | Path, code: int = 0) -> Result:
    """Run `archkey bench`; it must end with exit `code`."""
    words = ["bench", *map(str, arguments)]
    result = CliRunner().invoke(cli, words, env={"COLUMNS": "80"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*arguments: str | Path) -> str:
    """The message, as one line, of a command that is refused."""
    result = run(*arguments, code=2)
    assert not result.stdout
    return " ".join(result.stderr.split())


class Desk:
    """Stands in for the asker of one command: notes the questions, and passes them on.

    interrupt_at  the number of the entry, the first is 1, at which the user presses Ctrl-C
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self.interrupt_at = 0
        self.terms: Terms | None = None
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, terms: Terms) -> Desk:
        self.terms, self.asked = terms, []
        return self

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def ask(self, what: str, *, peers_too: bool = False, **question: str) -> dict[str, Any]:
        self.asked.append((what, *question.values()))
        if len(self.entries) == self.interrupt_at > 0:
            raise KeyboardInterrupt
        return self._asker.ask(what, peers_too=peers_too, **question)

    @property
    def entries(self) -> list[tuple[str, ...]]:
        """(workload, entrant) of the entries that were asked for."""
        return [asked[2:] for asked in self.asked if asked[0] == "entry"]

    @property
    def counts(self) -> Counter[str]:
        """How many questions there were of each kind."""
        return Counter(asked[0] for asked in self.asked)


@pytest.fixture
def desk(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> Desk:
    found = Desk(asker)
    monkeypatch.setattr(askers, "Asker", found)
    monkeypatch.setattr(coverage, "rows", ROWS)
    return found


@pytest.fixture
def no_gpu(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a CPU and nothing else."""
    cpu = locate.find_device("cpu")
    monkeypatch.setattr(locate, "devices", lambda: (cpu,))


def found_in(path: Path) -> dict[tuple[str, str], str]:
    """(workload, entrant) -> status, of the results in a file."""
    return {(w["name"], e.entrant): e.status for w, e in results.entries(results.read(path))}


# --- the help and the list


def test_every_option_stands_under_a_heading_once() -> None:
    text = run("--help").stdout
    lines = text[text.index("What is measured:") :].splitlines()
    listed = [found[1] for line in lines if (found := re.match(r"  (?:-\w, )?(--[a-z-]+)", line))]
    known = [name for option in command.params for name in option.opts if name.startswith("--")]
    assert sorted(listed) == sorted([*known, "--help"])
    assert sum(not line.startswith(" ") for line in lines if line) == 8
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.usefixtures("no_gpu")
def test_the_list() -> None:
    text = run("rmsnorm", "fused_add_rmsnorm", "--list").stdout
    assert all(w.name in text and w.title in text for w in _small.WORKLOADS)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("rmsnorm",), ["small-tp1-t7", "small-tp1-t64", "small-tp1-t3-huge"]),
        (("rmsnorm", "--quick"), ["small-tp1-t7"]),
        (("rmsnorm", "-w", "*-t64"), ["small-tp1-t64"]),
        (("rmsnorm", "-w", "*-t64", "-w", "*huge"), ["small-tp1-t64", "small-tp1-t3-huge"]),
        (("-w", "small-tp2*"), ["small-tp2-t5"]),
    ],
    ids=" ".join,
)
def test_the_list_for_a_script(options: tuple[str, ...], names: list[str]) -> None:
    rows = json.loads(run(*options, "--list", "--json").stdout)
    assert [row["name"] for row in rows] == names
    (first, *_) = (w for w in _small.WORKLOADS if w.name == names[0])
    assert rows[0] == {key: getattr(first, key) for key in rows[0]} and rows[0]["title"]


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("rmsnrm", "--list"), "unknown operator 'rmsnrm'; did you mean 'rmsnorm'"),
        (("rmsnorm", "-w", "small-tp1-t65", "--list"), "did you mean 'small-tp1-t64'"),
        (("rmsnorm", "--quick", "-w", "*-t64", "--list"), "unknown workload '*-t64'"),
        (("rmsnorm", "-p", "made-upp", *SHORT), "unknown peer 'made-upp'; did you mean 'made-up'"),
        (("rmsnorm", "-p", "made-up:rigt", *SHORT), "did you mean 'made-up:right'"),
        (("rmsnorm", "--skip", "absnt", *SHORT), "unknown peer 'absnt'; did you mean 'absent'"),
        (("rmsnorm", "-k", "torh", *SHORT), "unknown kernel 'torh'; did you mean 'cpu:torch'"),
        (("peers", "-p", "brokn", *SHORT), "unknown peer 'brokn'; did you mean 'broken'"),
    ],
    ids=lambda value: value.partition(";")[0] if isinstance(value, str) else "",
)
def test_an_unknown_name_is_answered_with_the_nearest(
    desk: Desk, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    output = tmp_path / "new.json"
    assert message in refused(*options, "-o", output)
    assert not desk.asked and not output.exists()


@pytest.mark.usefixtures("no_gpu")
def test_without_an_accelerator_it_says_what_can_be_done(desk: Desk) -> None:
    said = refused("rmsnorm")
    assert "no accelerator in this machine" in said
    assert all(way in said for way in ("archkey probe", "--host", "--list", "--device cpu"))
    assert not desk.asked


@pytest.mark.usefixtures("no_gpu")
def test_a_card_that_is_not_there_is_not_measured(desk: Desk, environ: Callable[..., None]) -> None:
    said = refused("rmsnorm", "--device", "cuda_sm90")
    assert "cuda_sm90 is not in this machine" in said and not desk.asked


def test_a_pretended_card_is_not_measured(desk: Desk, environ: Callable[..., None]) -> None:
    environ(ARCHKEY_TARGET="rocm_gfx950")
    assert "rocm_gfx950 is not in this machine" in refused("rmsnorm") and not desk.asked


def test_resume_needs_the_file(desk: Desk) -> None:
    said = refused("rmsnorm", "--resume", *SHORT)
    assert "--output" in said and said.startswith("Usage:") and not desk.asked


def test_a_folder_that_cannot_be_written_is_said_first(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused("rmsnorm", *TWO, "-o", tmp_path / "file" / "new.json")
    assert "cannot be written" in said and not desk.asked


# --- results that are there


def write(path: Path, content: dict[str, Any]) -> Path:
    results.write(path, content)
    return path


def test_results_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "new.json", one(120.0, 100.0))
    shown = run("--results", path).stdout
    assert "NVIDIA H200" in shown and "120" in shown and "flashinfer" in shown
    assert f"results: {path}" in " ".join(shown.replace("\n", "").split())
    assert max(map(len, shown.replace(str(path), "").splitlines())) <= 80
    assert json.loads(run("--results", path, "--json").stdout) == results.read(path)


def test_results_are_compared(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", one(100.0, 100.0))
    path = write(tmp_path / "new.json", one(120.0, 100.0))
    shown = run("--results", path, "--compare", old).stdout
    assert "slower" in shown and "1.20" in shown and "archkey's own kernels got worse" in shown
    found = json.loads(run("--results", path, "--compare", old, "--json").stdout)
    comparison = found.pop("comparison")
    assert found == results.read(path)
    (move,) = (m for m in comparison["moves"] if m["entrant"] == OURS)
    assert (move["verdict"], move["ratio"]) == ("slower", pytest.approx(1.2))
    assert comparison["worse"]


@pytest.mark.parametrize(
    ("entries", "complete", "code"),
    [
        ([timed(OURS, 9.0), untimed("flashinfer", "wrong")], True, 0),
        ([untimed(OURS, "wrong")], True, 1),
        ([untimed(OURS, "failed")], True, 1),
        ([timed(OURS, 9.0), untimed(f"{OURS}:other", "wrong")], True, 1),
        ([untimed(OURS, "not served")], True, 0),
        ([timed(OURS, 9.0)], False, 130),
    ],
)
def test_exit_codes(
    tmp_path: Path, entries: list[dict[str, Any]], complete: bool, code: int
) -> None:
    path = write(tmp_path / "x.json", document(workload(*entries), complete=complete))
    assert run("--results", path, "--json", code=code).stdout
    shown = run("--results", path, code=code).stdout
    assert ("not all calls were measured" in shown) == (not complete)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("no JSON", "no result of `archkey bench`"),
        ("[]", "no result of `archkey bench`"),
        ('{"format": 1, "workloads": []}', "KeyError: 'machine'"),
        (json.dumps({**document(), "format": 99}), "is of format 99"),
    ],
    ids=["missing", "text", "list", "cut", "format"],
)
def test_a_file_that_is_no_result_is_refused(
    desk: Desk, tmp_path: Path, text: str | None, message: str
) -> None:
    path, good = tmp_path / "bad.json", write(tmp_path / "good.json", one())
    if text is not None:
        path.write_text(text)
    assert message in refused("--results", path)
    assert message in refused("--results", good, "--compare", path)
    assert message in refused("rmsnorm", *TWO, "--compare", path)
    if text is not None:
        assert message in refused("rmsnorm", *TWO, "--resume", "-o", path)
    assert not desk.asked


# --- a run


def test_a_run_from_the_command_to_the_file(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With processes of its own."""
    monkeypatch.setattr(askers, "Asker", functools.partial(Asker, module="tests.bench._small"))
    path = tmp_path / "folder" / "new.json"
    result = run("fused_add_rmsnorm", *SHORT, "-o", path)
    assert found_in(path) == {("small-tp2-t5", OURS): "timed", ("small-tp2-t5", "made-up"): "timed"}
    assert "Small TP2, T5" in result.stdout and "[1/" in result.stderr
    found = results.read(path)
    assert found["complete"] and found["coverage"] and found["ceilings"]
    assert found["settings"] == {
        **{"device": "cpu", "samples": 5, "seconds": 0.05, "timeout": 600.0, "seed": 3},
        **{"workloads": 1, "only": None, "without": []},
    }


def test_a_run_is_compared_with_an_earlier_one(desk: Desk, tmp_path: Path) -> None:
    old, path = tmp_path / "old.json", tmp_path / "new.json"
    run("rmsnorm", *TWO, "-o", old)
    assert desk.terms == Terms("cpu", 5, 0.05, 600.0, 3)
    assert Counter(entrant for _, entrant in desk.entries) == {OURS: 2, RIGHT: 2, COARSE: 2}
    assert set(found_in(old).values()) == {"timed"} and len(found_in(old)) == 6
    found = json.loads(run("rmsnorm", *TWO, "-o", path, "--compare", old, "--json").stdout)
    comparison = found.pop("comparison")
    assert found == results.read(path), "what is told is what is kept"
    assert comparison["settings"] == {} and comparison["summary"]["compared"] == 6


def test_without_a_file_results_go_to_the_users_folder(
    desk: Desk, tmp_path: Path, environ: Callable[..., None]
) -> None:
    environ(ARCHKEY_DATA_DIR=str(tmp_path))
    run("fused_add_rmsnorm", "--no-peers", *SHORT)
    (path,) = (tmp_path / "bench").glob("cpu*.json")
    assert found_in(path) == {("small-tp2-t5", OURS): "timed"}


def test_a_wrong_kernel_of_ours_is_exit_1(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    result = run("rmsnorm", "-w", "*huge", "-p", RIGHT, *SHORT, "-o", path, code=1)
    at = "small-tp1-t3-huge"
    assert found_in(path) == {(at, OURS): "wrong", (at, RIGHT): "timed"}
    assert results.read(path)["complete"] and "off by" in result.stdout


@pytest.mark.parametrize(
    ("options", "entrants"),
    [
        (("--no-peers",), [OURS]),
        (("--no-peers", "-k", "torch"), [OURS, f"{OURS}:torch"]),
        (("--skip", "made-up"), [OURS, "absent", "broken"]),
        (("-p", "made-up:right", "-p", "absent", "--skip", "absent"), [OURS, RIGHT]),
    ],
    ids=" ".join,
)
def test_who_takes_part(
    desk: Desk, tmp_path: Path, options: tuple[str, ...], entrants: list[str]
) -> None:
    path = tmp_path / "new.json"
    run("rmsnorm", "--quick", *options, *SHORT, "-o", path)
    assert [entrant for _, entrant in found_in(path)] == entrants


# --- interrupted, and gone on with


def test_interrupted_and_resumed(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    desk.interrupt_at = 3
    result = run("rmsnorm", *TWO, "-o", path, code=130)
    assert "what was measured is kept" in result.stderr
    assert "not all calls were measured" in result.stdout
    first = found_in(path)
    assert len(first) == 2 and len(desk.entries) == 3
    assert not results.read(path)["complete"]
    kept = results.read(path)["workloads"][0]["entries"]

    desk.interrupt_at = 0
    run("rmsnorm", *TWO, "-o", path, "--resume")
    found = results.read(path)
    assert found["complete"] and found["settings"]["resumed"]
    assert len(found_in(path)) == 6 and set(found_in(path).values()) == {"timed"}
    assert len(desk.entries) == 4 and not set(desk.entries) & set(first)
    assert found["workloads"][0]["entries"][:2] == kept, "what was measured stays as it was"
    # The ceilings of the start are those of the first run: only those of the end are measured.
    assert desk.counts == {"standing": 3, "head": 1, "entry": 4, "ceilings": 1}

    run("rmsnorm", *TWO, "-o", path, "--resume")
    assert not desk.entries, "nothing is left to measure"


def test_what_failed_is_measured_again(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    options = ("-w", "small-tp1-t7", "-p", "made-up:raising", "-p", RIGHT, *SHORT, "-o", path)
    run("rmsnorm", *options)
    assert found_in(path)["small-tp1-t7", "made-up:raising"] == "failed"
    run("rmsnorm", *options, "--resume")
    assert desk.entries == [("small-tp1-t7", "made-up:raising")]


def test_resume_begins_where_there_is_nothing(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    run("fused_add_rmsnorm", "--no-peers", *SHORT, "-o", path, "--resume")
    assert found_in(path) == {("small-tp2-t5", OURS): "timed"}
    assert "resumed" not in results.read(path)["settings"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["machine"]["device"].update(name="NVIDIA H200"), "another card: NVIDIA H200"),
        (lambda d: d["machine"].clear(), "another card: unknown card"),
        (lambda d: d["versions"].update(torch="1.0"), "another version of torch: 1.0, here it is"),
        (lambda d: d["versions"].pop("archkey"), "another version of archkey: None"),
        (lambda d: d["settings"].update(seed=7), "another seed: 7, here it is 3"),
    ],
    ids=["card", "unknown card", "torch", "archkey", "seed"],
)
def test_results_of_other_surroundings_are_not_resumed(
    desk: Desk, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    earlier = new(Terms("cpu"), {})
    change(earlier)
    path = write(tmp_path / "old.json", earlier)
    said = refused("rmsnorm", *TWO, "-o", path, "--resume")
    assert message in said and "begin a new file" in said
    assert not desk.asked and results.read(path) == earlier


# --- the peers


@pytest.fixture
def listed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`listed("right")`: the made-up peer has these routes alone, here and not in the process."""

    def change(*labels: str) -> None:
        first, *others = _small.PEERS
        routes = tuple(route for route in first.routes if route.label in labels)
        found: list[Peer] = [replace(first, routes=routes), *others]
        monkeypatch.setattr(peers, "PEERS", tuple(found))

    return change


def test_peers_are_listed(desk: Desk) -> None:
    text = run("peers", "--device", "cpu").stdout
    assert max(map(len, text.splitlines())) <= 80
    said = " ".join(text.split())
    for part in ("Made Up", "installed", "not installed", "pip install no-such-package", "broken"):
        assert part in said
    assert "computes fused_add_rmsnorm, rmsnorm" in said
    assert desk.counts == {"standing": 3}


def test_peers_for_a_script(desk: Desk) -> None:
    rows = json.loads(run("peers", "--device", "cpu", "--json").stdout)
    states = {row["name"]: row["state"] for row in rows}
    assert states == {"made-up": "installed", "absent": "not installed", "broken": "broken"}
    assert "torch" in rows[0]["versions"] and "checks" not in rows[0]
    (row,) = json.loads(run("peers", "--device", "cpu", "-p", "absent", "--json").stdout)
    assert row["name"] == "absent" and row["install"] == "pip install no-such-package"


def test_a_peer_that_is_right(listed: Callable[..., None]) -> None:
    listed("right", "refusing")
    result = run("peers", "--check", "--device", "cpu", "--json")
    ours, absent, broken = json.loads(result.stdout)
    assert absent["checks"] == broken["checks"] == []
    right, refusing = ours["checks"]
    assert right["label"] == "right" and refusing["label"] == "refusing"
    assert {case["status"] for case in right["cases"]} == {"passed"}
    assert {case["status"] for case in refusing["cases"]} == {"not served"}
    assert "rmsnorm right: 4 passed, worst error" in result.stderr


def test_a_peer_that_is_wrong_is_exit_1(listed: Callable[..., None]) -> None:
    listed("wrong", "dying")
    text = run("peers", "-p", "made-up", "--check", "--device", "cpu", code=1).stdout
    said = " ".join(text.split())
    assert "made-up:wrong rmsnorm: " in said and "wrong: " in said and "out is off by" in said
    (row,) = json.loads(
        run("peers", "-p", "made-up", "--check", "--device", "cpu", "--json", code=1).stdout
    )
    assert "wrong" in {case["status"] for case in row["checks"][0]["cases"]}
