# SPDX-License-Identifier: Apache-2.0
"""`archkey report`: where the page goes, what the terminal and --json say, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.bench import sample

from archkey.bench import numbers
from archkey.bench.markdown import performance
from archkey.bench.report.model import view
from archkey.bench.report.page import render
from archkey.bench.results import entries, write
from archkey.cli import cli
from archkey.errors import ArchkeyError


def run(*arguments: str | Path, code: int = 0, columns: int = 80) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)], env={"COLUMNS": str(columns)})
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write(tmp_path / "results.json", sample.full())
    return tmp_path / "results.json"


def test_the_page_goes_beside_the_results(results: Path) -> None:
    assert run("report", results).stdout.strip() == str(results.with_name("report.html"))
    page = render(sample.full())
    assert results.with_name("report.html").read_text("utf-8") == page
    run("report", results, "-o", results.with_name("other.html"))
    assert results.with_name("other.html").read_text("utf-8") == page


def test_json_is_the_overview(results: Path) -> None:
    rows = json.loads(run("report", results, "--json").stdout)
    assert [row["operator"] for row in rows] == [o.name for o in view(sample.full()).operators]
    assert rows[0] == {
        "operator": "mla_decode", "kernels": ["cuda_sm90:triton"], "degraded": False,
        "workload": rows[0]["workload"], "us": 21.4, "of_bound": rows[0]["of_bound"],
        "best_peer": "vllm:fa3", "best_peer_us": 26.2, "ratio": pytest.approx(26.2 / 21.4),
        "verdict": "ahead", "mean_ratio": rows[0]["mean_ratio"],
        "tally": {"ahead": 1, "level": 7},
    }  # fmt: skip


def test_markdown_is_the_readmes_table_of_all_calls(results: Path) -> None:
    printed = run("report", results, "--markdown").stdout
    assert printed.strip() == performance(sample.full(), quick=False)
    titles = {workload["title"] for workload in sample.full()["workloads"]}
    assert len(titles) > 20 and all(title in printed for title in titles)


@pytest.mark.parametrize(
    "options",
    [("--terminal", "--markdown"), ("--markdown", "--json"), ("--markdown", "-o", "page.html")],
    ids=" ".join,
)
def test_forms_exclude_each_other(results: Path, options: tuple[str, ...]) -> None:
    assert "--" in run("report", results, *options, code=2).output


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("kind", sample.KINDS)
def test_the_terminal_says_the_same(kind: str, columns: int, tmp_path: Path) -> None:
    document = sample.KINDS[kind]()
    write(tmp_path / "r.json", document)
    out = run("report", tmp_path / "r.json", "--terminal", columns=columns).stdout
    assert max(map(len, out.splitlines())) <= columns
    squeezed = re.sub(r"\s", "", out)  # text is wrapped anywhere

    def said(text: object) -> bool:
        return re.sub(r"\s", "", str(text)) in squeezed

    for workload, entry in entries(document):
        assert said(workload["title"])
        if entry.timing:
            share = numbers.percent(entry.of_bound)
            row = rf"{entry.entrant}\*? +{re.escape(numbers.time(entry.timing.us))} .*{share}"
            assert re.search(row, out)
        elif entry.status == "not installed":
            assert re.search(rf"^not installed .*\b{entry.entrant}\b", out, re.MULTILINE)
        else:
            assert said(f"{entry.entrant}{entry.status}: {entry.reason}")
        assert said(entry.how) and said(entry.kernel)
    for peer in document["peers"]:
        assert said(peer["title"]) and said(peer["state"]) and said(peer["reason"])
    for name in ("device", "host"):
        assert all(said(v) for v in document["machine"][name].values() if v is not None)
    assert ("interrupted" in out) is not document["complete"]


def test_without_the_extra_it_says_how_to_get_it(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "pip install 'archkey[report]'" in run("report", results, code=2).stderr
    assert not results.with_name("report.html").exists()
    assert "At a glance" in run("report", results, "--terminal").stdout
    with pytest.raises(ArchkeyError, match="jinja2"):
        render(sample.empty())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 9}', '{"format": 1, "workloads": 3}'])
def test_a_broken_file_is_one_message(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    for option in ((), ("--terminal",), ("--json",)):
        stderr = run("report", path, *option, code=2).stderr
        assert "results.json" in stderr and "Traceback" not in stderr


def test_no_file_and_options_that_contradict(results: Path, tmp_path: Path) -> None:
    assert "cannot be read" in run("report", tmp_path / "none.json", code=2).stderr
    assert "--output" in run("report", results, "--json", "-o", "x.html", code=2).stderr
