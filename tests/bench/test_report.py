# SPDX-License-Identifier: Apache-2.0
"""The report says all that the document says, to whoever reads it, and asks the net for nothing."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
from tests.bench import sample

from archkey.bench import numbers
from archkey.bench.report import bars, marks
from archkey.bench.report.model import view
from archkey.bench.report.page import render
from archkey.bench.results import OURS, entries
from archkey.errors import RecordError


class Page(HTMLParser):
    """What a page shows and holds: text, values of <data>, tags, attributes, ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.values: set[str] = set()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.values |= {value or "" for name, value in attrs if (tag, name) == ("data", "value")}

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, name: str) -> list[str]:
        """Values of an attribute."""
        return [value for _, key, value in self.attributes if key == name]


@cache
def page_of(kind: str) -> str:
    return render(sample.KINDS[kind]())


def flat(text: object) -> str:
    return re.sub(r"\s+", " ", str(text))


# ---- the page


@pytest.mark.parametrize("kind", sample.KINDS)
def test_every_number_and_reason_is_on_the_page(kind: str) -> None:
    document, page = sample.KINDS[kind](), Page(page_of(kind))
    for workload, entry in entries(document):
        assert flat(workload["title"]) in page.text
        assert flat(workload["problem"]) in page.text
        assert flat(workload["explained"]) in page.text
        for value in (workload["flops"] or None, workload["bytes"], workload["bound_us"]):
            assert value is None or str(value) in page.values
        for text in (entry.entrant, entry.reason, entry.how, entry.kernel, entry.output):
            assert flat(text) in page.text
        timing = entry.timing
        figures = [entry.tflops, entry.gbs, entry.of_bound, entry.error, entry.tolerance]
        if timing:
            figures += [timing.us, timing.low, timing.high, timing.warm_us]
            assert timing.method in page.text
        else:
            assert f"{entry.entrant} {entry.status}" in page.text.replace(entry.kernel or "\0", "")
        for value in figures:
            assert value is None or str(value) in page.values, (entry.entrant, value)
    for ceiling in document["ceilings"]:
        for value in (ceiling["start"], ceiling["end"]):
            assert str(value) in page.values if value else "not measured" in page.text
    for peer in document["peers"]:
        shown = [peer["title"], peer["state"], peer["reason"], peer["home"]]
        shown += peer["versions"].values()
        shown += [peer["install"]] if peer["state"] != "installed" else []
        assert all(flat(text) in page.text for text in shown)
    for row in document["coverage"]:
        for text in (
            row["operator"],
            row["target"],
            row["kernel"] or "no kernel",
            *row["problems"],
        ):
            assert flat(text) in page.text
    for said in (document["machine"]["device"], document["machine"]["host"], document["settings"]):
        assert all(flat(value) in page.text for value in said.values() if value is not None)


@pytest.mark.parametrize("kind", sample.KINDS)
def test_it_loads_and_runs_nothing(kind: str) -> None:
    text = page_of(kind)
    page = Page(text)
    assert not {"script", "iframe", "img", "object", "embed", "form"} & set(page.tags)
    assert "alert('peer')" in page.text or kind in ("empty", "cpu", "interrupted")
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "xlink:href", "data", "action"):
            assert value.startswith(("#", "data:,")) or tag == "a", (tag, value)
    urls = re.findall(r"url\(([^)]*)\)", text)
    assert all(url.strip("'\"").startswith("#") for url in urls) and "@import" not in text


def test_every_link_within_it_leads_somewhere_and_no_id_is_there_twice() -> None:
    page = Page(page_of("full"))
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.all("href") if value.startswith("#")} <= set(ids)


def test_plots_have_words_colours_of_the_page_and_text_that_is_text() -> None:
    text = page_of("full")
    plots = re.findall(r"<svg role.*?</svg>", text, re.DOTALL)
    assert len(plots) == 20
    for plot in plots:
        assert re.match(r'<svg role="img" aria-label="(Roofline|Bandwidth) of \w+: ', plot)
        assert "<text" in plot and re.search(r"fill: var\(--(accent|p\d)\)", plot)
        assert not re.search(r"#[0-9a-f]{6}\b", plot), "a colour that knows nothing of dark"


def test_it_is_the_same_each_time() -> None:
    assert render(sample.full()) == page_of("full")


def test_it_says_what_is_missing() -> None:
    assert "interrupted: not all calls were measured" in Page(page_of("interrupted")).text
    assert "interrupted" not in Page(page_of("full")).text
    assert "No call was measured." in Page(page_of("empty")).text
    glance = Page(page_of("full")).text.partition("All figures")[0]
    assert "3 of 20 operators run a degraded kernel here" in glance


# ---- the model


def test_who_leads_is_decided_beyond_noise() -> None:
    document = sample.interrupted()
    entries_ = document["workloads"][0]["entries"]
    ours = next(e for e in entries_ if e["entrant"] == OURS)
    peer = next(e for e in entries_ if e["entrant"] == "vllm:fa3")
    for us, verdict in (
        (106, "ahead"),
        (104, "level"),
        (100, "level"),
        (96, "level"),
        (95, "behind"),  # 300 us are 5.3 % above it
    ):
        ours |= {"us": 300.0, "low": 300.0, "high": 300.0}
        peer |= {"us": 3.0 * us, "low": 3.0 * us, "high": 3.0 * us}
        for other in entries_:
            if other not in (ours, peer) and "us" in other:
                other["us"] = 1e6
        workload = view(document).operators[0].workloads[0]
        assert workload.verdict == verdict, us
        assert workload.ratio == pytest.approx(us / 100)


def test_a_further_kernel_of_ours_is_no_peer() -> None:
    document = sample.full()
    workload = document["workloads"][0]
    further = next(e for e in workload["entries"] if e["entrant"] == OURS) | {"us": 1.0}
    workload["entries"].append({**further, "entrant": "archkey:cpu:torch"})
    found = view(document)
    first = found.operators[0].workloads[0]
    assert first.lines[0].entry.entrant == "archkey:cpu:torch"
    assert first.peer and first.peer.entry.entrant == "vllm:fa3" and first.verdict == "ahead"
    assert found.further == ("archkey:cpu:torch",)
    assert "a kernel it did not choose" in Page(render(document)).text


def test_the_mean_is_geometric_and_counts_add_up() -> None:
    found = view(sample.full())
    for operator in found.operators:
        ratios = [w.ratio for w in operator.workloads if w.ratio]
        if ratios:
            product = 1.0
            for ratio in ratios:
                product *= ratio
            assert operator.glance.mean == pytest.approx(product ** (1 / len(ratios)))
        assert sum(n for _, n in operator.glance.tally.parts) == len(operator.workloads)


def test_bars_are_in_proportion_and_torn_off_beyond_four_times_the_fastest() -> None:
    workload = view(sample.full()).operators[0].workloads[1]
    drawn = bars.bars(workload)
    first, last = drawn[0], drawn[-1]
    assert first.line.ours and first.width == 25 and not first.torn
    assert last.torn and last.width == 100
    assert [b.line.us for b in drawn] == sorted(b.line.us for b in drawn)
    bound = bars.bound_at(workload)
    assert bound == pytest.approx(25 * workload.data["bound_us"] / first.line.us, abs=0.01)


def test_symbols_differ_and_are_of_one_area() -> None:
    count = len(marks.SHAPES)
    assert len({(marks.points(mark), marks.colour(mark)) for mark in range(count)}) == count
    for mark in range(1, count):
        outline = marks.shape(mark)
        ring = zip(outline, (*outline[1:], outline[0]), strict=True)
        area = sum(x * v - u * y for (x, y), (u, v) in ring) / 2
        assert area == pytest.approx(3.1416, abs=1e-3)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.time(4.499), "4.50"),
        (numbers.time(99.96), "100"),
        (numbers.time(19415.2), "19,415"),
        (numbers.percent(0.0161), "1.6 %"),
        (numbers.ratio(0.0321), "0.032×"),
        (numbers.ratio(1.2345), "1.23×"),
        (numbers.big(4.28e12, "B/s"), "4.28 TB/s"),
        (numbers.big(999.9e9), "1 T"),
        (numbers.big(2.04, "us"), "2.04 µs"),
        (numbers.time(0.0512), "0.051"),
        (numbers.rate(53.96), "54.0"),
        (numbers.rate(None), "–"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_document_with_holes_is_refused() -> None:
    for drop in ("coverage", "archkey", "complete"):
        document: dict[str, Any] = sample.full()
        del document[drop]
        with pytest.raises(RecordError, match=drop):
            view(document)
    document = sample.full()
    del document["workloads"][0]["explained"]
    with pytest.raises(RecordError, match="explained"):
        view(document)
