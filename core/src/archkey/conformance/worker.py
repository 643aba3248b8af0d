# SPDX-License-Identifier: Apache-2.0
"""The process that answers: `python -m archkey.conformance.worker`, asked by `pool`.

A JSON line on stdin is a question, the fields of an `Item`; the answer on stdout is a line
`{"begin": name}` for what runs now, then `{"outcome": ...}`. What kernels print goes to stderr.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from archkey._process import Say, serve
from archkey.conformance.ahead import build
from archkey.conformance.emulation.device import emulated
from archkey.conformance.emulation.processes import processes
from archkey.conformance.examine import Options, examine
from archkey.conformance.levels import Item, Level
from archkey.locate import devices, find_device
from archkey.probe import Device
from archkey.session import Session
from archkey.settings import settings
from archkey.target import Target

__all__ = ["device_of", "interprets", "main", "open_for"]


def open_for(target: str, level: str, *, ahead: bool = False) -> Session:
    """A session of `target` for a level: on the device or its simulator, or pretending to be.

    ahead  pretending in any case, with the facts of the device that is here
    """
    parsed = Target.parse(target)
    device = device_of(target, level)
    if device is not None and ahead:
        device = replace(device, source="pretend")
    if device is None and parsed.platform == "cpu":
        device = find_device(target)
    return Session(device or Device(parsed, index=0, name="", source="pretend"), settings())


def device_of(target: str, level: str) -> Device | None:
    """The card of levels device and accuracy, or for level emulated its simulator; None without.

    A vendor's own simulator goes before the emulator that archkey has.
    """
    if level not in (Level.DEVICE, Level.ACCURACY, Level.EMULATED):
        return None
    for device in devices():
        real = device.source != "pretend" and device.target.key == target
        if real and device.simulated == (level == Level.EMULATED):
            return device
    return emulated(target) if level == Level.EMULATED else None


def interprets(target: str, level: str) -> bool:
    """Whether Triton's interpreter stands in for the device at `level`."""
    absent = level == Level.ACCURACY and device_of(target, level) is None
    return level == Level.INTERPRETED or absent


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="archkey.conformance.worker", description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--level", required=True)
    parser.add_argument("--examples", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--ahead", type=Path, help="only build, what is not claimed in this folder")
    given = parser.parse_args()

    def start() -> Callable[[dict[str, Any], Say], None]:
        import torch

        torch.set_num_threads(1)  # the pool has a worker a core
        session = open_for(given.target, given.level, ahead=given.ahead is not None)
        options = Options(given.examples, given.seed)
        runtime = getattr(torch, session.device.torch_kind, None)
        free = getattr(runtime, "empty_cache", lambda: None)  # others may share the card

        def answer(question: dict[str, Any], say: Say) -> None:
            def begin(name: str) -> None:
                say(begin=name)

            item = Item(**question)
            if given.ahead:
                outcome = build(session, item, options, given.ahead, begin)
            else:
                with processes(1):  # of an emulator, since the pool has a worker a core
                    outcome = examine(session, item, options, begin)
                free()
            say(outcome=outcome.to_json())

        return answer

    serve(start)


if __name__ == "__main__":
    main()
