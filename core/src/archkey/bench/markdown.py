# SPDX-License-Identifier: Apache-2.0
"""A bench as a table for a README: ours, its bound, and the best peer of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archkey.bench import numbers, surroundings
from archkey.bench.place import beside, best_peer
from archkey.bench.results import OURS, Entry
from archkey.explain import short_name

__all__ = ["performance"]

_COLUMNS = (
    ("operator", "---"),
    ("workload", "---"),
    ("ours", "---"),
    ("us", "---:"),
    ("of bound", "---:"),
    ("best peer", "---"),
    ("us", "---:"),
    ("peer / ours", "---:"),
)


def performance(document: Mapping[str, Any], *, quick: bool = True) -> str:
    """The card, a table of its workloads, and how they were measured; Markdown without a last \\n.

    quick  only the workloads of the short run
    """
    device = surroundings.device(document)
    listed = [w for w in document["workloads"] if w.get("quick") or not quick]
    titles = {peer["name"]: peer.get("title") or peer["name"] for peer in document["peers"]}
    lines = [f"**{surroundings.card(document)}** (`{device.get('target', 'unknown')}`)", ""]
    if listed:
        lines.append(_row([name for name, _ in _COLUMNS]))
        lines.append("|" + "|".join(rule for _, rule in _COLUMNS) + "|")
        lines += [_row(_cells(w, titles, str(device.get("target", "")))) for w in listed]
    else:
        lines.append("No workload of the short run was measured.")
    return "\n".join([*lines, "", *(f"- {text}" for text in _provenance(document, listed, quick))])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(workload: Mapping[str, Any], titles: Mapping[str, str], target: str) -> list[str]:
    entries = beside(Entry.from_json(row) for row in workload["entries"])
    ours = next((e for e in entries if e.entrant == OURS), None)
    best = best_peer(entries)
    cells = [f"`{workload['operator']}`", workload["title"], _ours(ours, target)]
    time = ours.timing if ours else None
    share = ours.of_bound if ours and ours.of_bound is not None else None
    cells += [numbers.time(time.us if time else None), numbers.percent(share)]
    if best is None:
        return [*cells, "none", numbers.NOTHING, numbers.NOTHING]
    peer, theirs = best
    name, _, label = peer.entrant.partition(":")
    events = "(events)" if theirs.method == "events" else ""
    told = " ".join(filter(None, (titles.get(name, name), label, events)))
    return [*cells, told, numbers.time(theirs.us), numbers.ratio(peer.ratio)]


def _ours(ours: Entry | None, target: str) -> str:
    """Our kernel, `*` where it is degraded; what became of it where it has no time."""
    if ours is None:
        return "not measured"
    kernel = short_name(ours.kernel, target, ours.degraded) if ours.kernel else ""
    if ours.timing is None:
        return f"{kernel} **{ours.status}**".strip()
    return f"{kernel} (events)" if ours.timing.method == "events" else kernel


def _provenance(
    document: Mapping[str, Any], listed: list[Mapping[str, Any]], quick: bool
) -> Iterator[str]:
    """When, with what, beside whom and how: what is needed to measure it again."""
    device, versions = surroundings.device(document), document["versions"]
    with_ = [f"archkey {document['archkey']}"]
    with_ += [f"{name} {versions[name]}" for name in ("torch", "triton") if versions.get(name)]
    driver = [f"driver {device['driver']}"] if device.get("driver") else []
    yield ", ".join([document["started"][:10], *with_, *driver])
    peers = [_peer(peer) for peer in document["peers"] if peer["state"] == "installed"]
    yield "peers: " + (", ".join(peers) or "none was installed")
    rates = [
        f"{row['name']} {numbers.big(row['start'], row['unit'])}"
        for row in document["ceilings"]
        if row.get("start")
    ]
    if rates:
        yield "bounds from ceilings measured in the run: " + ", ".join(rates)
    entries = [Entry.from_json(row) for w in listed for row in w["entries"]]
    timings = [entry.timing for entry in entries if entry.timing]
    if timings:
        fewest, most = min(t.samples for t in timings), max(t.samples for t in timings)
        number = str(most) if fewest == most else f"{fewest} to {most}"
        yield f"medians of {number} samples; under 5 %, or 12 % below 200 us, is noise between runs"
    if any(e.degraded for e in entries):
        yield "`*`: the torch reference, the last resort where there is no kernel"
    if any(t.method == "events" for t in timings):
        yield "(events): launched one by one, so that the host's work between launches counts"
    if not document.get("complete"):
        yield "**cut off**: the run did not come to its end"
    yield f"again: `archkey bench{' --quick' if quick else ''}`"


def _peer(peer: Mapping[str, Any]) -> str:
    """Its name and the distributions it came in: FlashAttention-3 (vllm 0.26.0)."""
    versions = [f"{name} {v}" for name, v in (peer.get("versions") or {}).items() if v]
    title = peer.get("title") or peer["name"]
    return f"{title} ({', '.join(versions)})" if versions else str(title)
