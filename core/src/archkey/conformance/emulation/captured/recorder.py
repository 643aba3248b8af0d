# SPDX-License-Identifier: Apache-2.0
"""The process that launches and keeps: `python -m archkey.conformance.emulation.captured.recorder`.

Asked by `recording`, a line of JSON each: the fields of an `Item`, and `room`. The answer is a line
`{"begin": case}`, then `{"outcome", "reason", "kept", "left", "stuck"}`. What it keeps is in the
file before it answers, so its death loses nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from archkey._process import Say, serve
from archkey.conformance.emulation.captured.archive import Archive, Launch, Place
from archkey.conformance.examine import Options, examine
from archkey.conformance.levels import Item
from archkey.conformance.worker import device_of
from archkey.launch import driver_launcher
from archkey.probe import Device
from archkey.session import Session
from archkey.settings import settings

__all__ = ["Bounds", "Keeper", "keeping", "main"]


class Bounds(NamedTuple):
    """What is kept of launches.

    file        bytes of the file
    each        bytes that a launch takes in it
    memory      bytes of a launch's storages: cases of far addresses reserve gigabytes
    workgroups  of a launch: the emulator is slow
    """

    file: int = 40 << 20
    each: int = 2 << 20
    memory: int = 32 << 20
    workgroups: int = 128


@dataclass
class Keeper:
    """Keeps launches in `archive`, within `bounds`.

    kept  bodies of the current case that were kept; left: those that were not, with the reason
    """

    archive: Archive
    bounds: Bounds
    kernel: str = ""
    case: str = ""
    kept: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    room: int = 0
    _seen: set[str] = field(default_factory=set)

    def begin(self, kernel: str, case: str, room: int | None = None) -> None:
        """From here on launches are of this case. room: of the file, the rest is for others."""
        self.kernel, self.case, self.kept, self.left = kernel, case, [], {}
        self.room = self.bounds.file if room is None else room
        self._seen.clear()

    def launching(self, launch: Callable[..., None], compiled: Any) -> Callable[..., None]:
        """`launch`, that keeps what it did."""
        names = list(compiled.program.signature)
        signature = {name: kind for name, kind in compiled.program.signature.items() if kind}
        body = str(compiled.program.body.__name__)
        text = str(compiled.kernel.asm["ptx"])

        def run(grid: tuple[int, int, int], *arguments: Any) -> None:
            given = dict(zip(names, arguments, strict=True))
            places, storages = _placed({name: given[name] for name in signature})
            if text in self._seen:  # each program once a case: others tell nothing new
                return launch(grid, *arguments)
            if why := self._unfit(grid, places, storages):
                self.left.setdefault(body, why)
                return launch(grid, *arguments)
            before = [_copy(storage) for storage in storages]
            launch(grid, *arguments)
            _wait(storages)  # a fault of the kernel shows here, and this launch is not kept then
            after = [_copy(storage) for storage in storages]
            shared = compiled.shared_memory_bytes
            self._keep(
                Launch(
                    *(self.kernel, self.case, body, text, grid, shared),
                    *(signature, places, before, after),
                )
            )

        return run

    def _unfit(self, grid: tuple[int, int, int], places: Any, storages: list[Any]) -> str:
        """Why a launch is not kept, before it runs."""
        for name, value in places.items():
            if not isinstance(value, (Place, int, float, bool, type(None))):
                return f"{name} is a {type(value).__name__}"
        if (count := math.prod(grid)) > self.bounds.workgroups:
            return f"{count} workgroups"
        if (size := sum(storage.nbytes() for storage in storages)) > self.bounds.memory:
            return f"{size >> 20} MiB of tensors"
        return ""

    def _keep(self, launch: Launch) -> None:
        if why := self.archive.add(launch, self.bounds.each, self.room):
            self.left.setdefault(launch.body, why)
        else:
            self._seen.add(launch.text)
            self.kept.append(launch.body)


def _placed(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Arguments with Places for tensors, and the storages that these are in."""
    storages: dict[int, Any] = {}
    places: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            start = storage.data_ptr()
            storages.setdefault(start, storage)
            # A tensor without elements has no address.
            offset = value.data_ptr() - start if value.numel() else 0
            where = list(storages).index(start)
            shape, strides = tuple(value.shape), tuple(value.stride())
            places[name] = Place(where, offset, value.dtype, shape, strides)
        else:
            places[name] = value
    return places, list(storages.values())


def _copy(storage: Any) -> torch.Tensor:
    """The bytes, in host memory of their own; waits for what the current stream writes there."""
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return whole.cpu() if whole.device.type != "cpu" else whole.clone()


def _wait(storages: list[Any]) -> None:
    if any(storage.device.type != "cpu" for storage in storages):
        torch.accelerator.synchronize()


def _stuck(device: Device) -> bool:
    """Whether the card answers everything with an error, as it does after a fault."""
    try:
        if device.torch_kind != "cpu":
            torch.accelerator.synchronize()
    except Exception:
        return True
    return False


@dataclass(frozen=True)
class _Heard(Device):
    """A device, with an ear at its launcher."""

    inner: Device = field(kw_only=True, compare=False)
    keeper: Keeper = field(kw_only=True, compare=False)

    def launcher(self, compiled: Any) -> Callable[..., None]:
        """The device's own, and the keeper learns of its launches."""
        launch = self.inner.launcher(compiled) or driver_launcher(compiled, self.inner)
        return self.keeper.launching(launch, compiled)


def keeping(device: Device, keeper: Keeper) -> Session:
    """A session of `device` whose launches the keeper hears."""
    return Session(_Heard(**vars(device), inner=device, keeper=keeper), settings())


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--level", required=True, help="which device: its card or its emulator")
    parser.add_argument("--path", type=Path, required=True)
    for name in Bounds._fields:
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()

    def start() -> Callable[[dict[str, Any], Say], None]:
        archive = Archive(given.path)
        archive.mend()
        keeper = Keeper(archive, Bounds(*(getattr(given, name) for name in Bounds._fields)))
        device = device_of(given.target, given.level)
        if device is None:
            raise SystemExit(f"no {given.target} on this machine")
        session = keeping(device, keeper)

        def answer(question: dict[str, Any], say: Say) -> None:
            room = question.pop("room")
            item = Item(**question)
            keeper.begin(f"{item.operator} {item.kernel}", item.case, room)
            # Level emulated: one run, where level device has two.
            outcome = examine(session, item, Options(1), lambda name: say(begin=name))
            left = {body: why for body, why in keeper.left.items() if body not in keeper.kept}
            said = {"outcome": outcome.outcome, "reason": outcome.reason}
            say(**said, kept=keeper.kept, left=left, stuck=_stuck(device))

        return answer

    serve(start)


if __name__ == "__main__":
    main()
