# SPDX-License-Identifier: Apache-2.0
"""All launches of a file on the emulator, and what the document about it says.

    {"format": 1, "target", "recorded": {"device", "date", "versions", "file"},
     "emulated": {"date", "versions", "sources": digest of the emulator},
     "rounding": [{"name", "row", "why"}], "last": units in the last place,
     "kernels": {"rmsnorm cuda_sm90:triton": {"source": digest of the kernel, "launches", "cases",
                 "bodies", "elements", "differing", "last", "row", "share", "explained", "faults",
                 "reasons"}},
     "instructions": {"wgmma.fence.sync.aligned": how many programs have it},
     "launches": [{"at", "kernel", "case", "body", "text", "fault", "differences", "seconds"}]}

`last`, `row` and `share` are the largest of the kernel's launches: see `replay.Difference`. Of a
kernel without launches `explained` is null, and `reasons` say why. `instructions` are those of the
programs whose launches are all explained.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from archkey._files import replace
from archkey._process import Ended, Process, Stopped, ask_all
from archkey.conformance.emulation.captured.archive import Archive, Kept
from archkey.conformance.emulation.captured.replay import plain
from archkey.conformance.emulation.captured.rounding import LAST, TABLE
from archkey.conformance.emulation.ptx.parser import parse
from archkey.errors import RecordError
from archkey.requirements import installed_versions

__all__ = ["compare_all", "failed", "table"]

FORMAT = 1


def compare_all(
    path: Path,
    output: Path | None,
    say: Callable[[str], None],
    *,
    jobs: int = 1,
    seconds: float = 0.0,
    timeout: float = 600.0,
) -> dict[str, Any]:
    """The document. What `output` says of this file already is not asked again.

    seconds  in total, 0 for no limit: what is left is asked the next time; timeout: of a launch
    """
    archive = Archive(path)
    about, kept, end = archive.read()
    file = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    sources = _sources()
    known = _known(output, str(file["sha256"]), sources)
    left = [one for one in kept if one.at not in known]
    start, stop = partial(_Replayer, path, timeout), threading.Event()
    timer = threading.Timer(seconds, stop.set)
    if seconds:
        timer.start()

    def document() -> dict[str, Any]:
        launches = [known[one.at] for one in kept if one.at in known]
        found = _document({**about, "file": file}, end, sources, launches, len(kept))
        bad = {row["text"] for row in launches if not _explained(row)}
        texts = {row["text"] for row in launches} - bad
        instructions = Counter(name for text in texts for name in _mnemonics(archive.text(text)))
        return {**found, "instructions": dict(sorted(instructions.items())), "launches": launches}

    try:
        for answer in ask_all(left, start, jobs):
            known[answer["at"]] = answer
            say(f"[{len(known)}/{len(kept)}] {_said(answer)}")
            if output is not None:
                replace(output, json.dumps(document(), indent=1) + "\n")
            if stop.is_set():
                break
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        timer.cancel()
    return document()


class _Replayer:
    """A process that compares, as `ask_all` wants it."""

    def __init__(self, path: Path, timeout: float) -> None:
        module = "archkey.conformance.emulation.captured.replayer"
        self._process = Process(module, {"path": str(path)}, {"TRITON_INTERPRET": "0"})
        self._timeout = timeout

    @property
    def gone(self) -> bool:
        """Whether it is of no use any more."""
        return self._process.gone

    def ask(self, kept: Kept, stop: threading.Event) -> dict[str, Any]:
        """The answer about a launch."""
        try:
            answer = next(self._process.ask({"at": kept.at}, self._timeout, stop))
        except (Ended, Stopped) as end:
            return {**kept._asdict(), "fault": str(end), "differences": [], "seconds": 0.0}
        return {**kept._asdict(), **answer}

    def close(self) -> None:
        """End it."""
        self._process.close()


def _sources() -> str:
    """A digest of the emulators and of what compares."""
    root = Path(__file__).parents[1]
    own = [Path(__file__).with_name(name) for name in ("replay.py", "rounding.py")]
    paths = sorted([*root.glob("*.py"), *root.glob("ptx/*.py"), *own])
    texts = "\n".join(f"{path.relative_to(root)}\n{path.read_text('utf-8')}" for path in paths)
    return hashlib.sha256(texts.encode()).hexdigest()


def _known(output: Path | None, file: str, sources: str) -> dict[int, dict[str, Any]]:
    """Answers by place that an earlier run of the same file and emulator got."""
    if output is None or not output.exists():
        return {}
    document = json.loads(output.read_text("utf-8"))
    if document.get("format") != FORMAT:
        raise RecordError(f"{output} is no comparison of format {FORMAT}")
    same = (document["recorded"]["file"]["sha256"], document["emulated"]["sources"])
    if same != (file, sources):
        return {}
    return {row["at"]: row for row in document["launches"]}


def _document(
    about: Mapping[str, Any],
    end: Mapping[str, Any],
    sources: str,
    launches: list[dict[str, Any]],
    total: int,
) -> dict[str, Any]:
    fates = end.get("kernels", {})
    names = dict.fromkeys([*about["sources"], *(row["kernel"] for row in launches)])
    versions = installed_versions({"archkey", "numpy", "torch"})
    return {
        "format": FORMAT,
        "target": about["target"],
        "recorded": {name: about[name] for name in ("device", "date", "versions", "file")},
        "emulated": {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "versions": {**versions, "python": platform.python_version()},
            "sources": sources,
            "complete": len(launches) == total,
        },
        "rounding": [{"name": r.name, "row": r.row, "why": r.why} for r in TABLE],
        "last": LAST,
        "kernels": {
            name: {
                "source": about["sources"].get(name),
                **_summary([row for row in launches if row["kernel"] == name]),
                "reasons": _reasons(fates.get(name, {})),
            }
            for name in names
        },
    }


@functools.lru_cache(1024)
def _mnemonics(text: str) -> frozenset[str]:
    return frozenset(instruction.name for instruction in parse(text).instructions)


def _explained(row: Mapping[str, Any]) -> bool:
    """Whether a launch ran, and rounding explains what differs."""
    return not row["fault"] and all(float(one["share"]) <= 1 for one in row["differences"])


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    differences = [one for row in rows for one in row["differences"]]
    worst = {
        name: max((float(one[name]) for one in differences), default=0.0)
        for name in ("last", "row", "share")
    }
    faults = [row["fault"] for row in rows if row["fault"]]
    return {
        "launches": len(rows),
        "cases": len({row["case"] for row in rows}),
        "bodies": dict(Counter(row["body"] for row in rows)),
        "elements": sum(one["elements"] for one in differences),
        "differing": sum(one["differing"] for one in differences),
        **{name: plain(value) for name, value in worst.items()},
        "explained": all(map(_explained, rows)) if rows else None,
        "faults": faults,
    }


def _reasons(fate: Mapping[str, Any]) -> list[str]:
    """Why a kernel has no launch, or one of its bodies none."""
    bodies = fate.get("bodies", {})
    if bodies and all(bodies.values()):
        return []
    return [f"{count} x {why}" for why, count in fate.get("reasons", {}).items()]


def _said(answer: Mapping[str, Any]) -> str:
    what = f"{answer['kernel']}, {answer['case']}: {answer['body']} in {answer['seconds']} s"
    if answer["fault"]:
        return f"{what}: {answer['fault']}"
    parts = [
        f"{one['argument']} {one['differing']} of {one['elements']} differ"
        + (f", {float(one['share']):.2g} of what is allowed" if one["differing"] else "")
        for one in answer["differences"]
    ]
    return f"{what}: {'; '.join(parts) or 'nothing was written'}"


def failed(document: Mapping[str, Any]) -> list[str]:
    """Kernels whose differences are not explained."""
    return [name for name, row in document["kernels"].items() if row["explained"] is False]


def table(document: Mapping[str, Any]) -> str:
    """A line a kernel that has launches, then those without."""
    lines = [f"{'kernel':42} launches   elements  differ       ulps    of row  allowed  explained"]
    missing = []
    for name, row in document["kernels"].items():
        if row["explained"] is None:
            missing.append(f"  no launch: {name}: {'; '.join(row['reasons']) or 'no time'}")
            continue
        numbers = [f"{float(row[key]):9.2g}" for key in ("last", "row", "share")]
        lines.append(
            f"{name:42} {row['launches']:8} {row['elements']:10} {row['differing']:7} "
            f"{' '.join(numbers)}  {'yes' if row['explained'] else 'NO'}"
        )
        lines += [f"  {fault}" for fault in row["faults"]]
    return "\n".join(lines + missing)
