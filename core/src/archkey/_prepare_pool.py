# SPDX-License-Identifier: Apache-2.0
"""The processes that compile for `archkey.preparing`, asked for single programs.

They are told an operator, a kernel, a Problem and the number of one of its programs; all else they
find out as the asking process does (`archkey._prepare_worker`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

from archkey._process import Ended, Process, Stopped, ask_all
from archkey.preparing import Unit
from archkey.probe import Device

__all__ = ["Outcome", "compiled"]

log = logging.getLogger("archkey")


class Outcome(NamedTuple):
    """What became of a unit in a worker. `died`: how the worker's process ended over it, or ""."""

    unit: Unit
    died: str


def compiled(device: Device, units: list[Unit], workers: int) -> Iterator[Outcome]:
    """Outcomes as they are known; none if no process can be started."""
    names = {field.name for field in fields(Device)}  # a vendor's own may have more
    facts = {name: fact for name, fact in device.to_json().items() if name in names}
    facts["source"] = "pretend"  # nobody but this process touches the card
    with suppress(OSError):
        yield from ask_all(units, partial(_Compiler, facts), workers)


class _Compiler:
    """A process that compiles programs."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._process = Process("archkey._prepare_worker", {"device": json.dumps(facts)}, {})

    @property
    def gone(self) -> bool:
        return self._process.gone

    def ask(self, unit: Unit, stop: threading.Event) -> Outcome:
        question = {
            "operator": unit.operator,
            "kernel": unit.kernel,
            "problem": unit.problems[0]._asdict(),
            "number": unit.number,
        }
        begun = False
        try:
            for answer in self._process.ask(question, stop=stop):
                if "error" in answer:
                    if answer["error"]:
                        log.debug("not compiled ahead: %s: %s", unit, answer["error"])
                    break
                begun = True
        except Ended as end:
            return Outcome(unit, str(end) if begun else "")
        except Stopped:
            pass
        return Outcome(unit, "")

    def close(self) -> None:
        self._process.close()
