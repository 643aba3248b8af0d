# SPDX-License-Identifier: Apache-2.0
"""Launches of a card, kept in a file, and the same launches on the emulator.

    python -m archkey.conformance.emulation.captured record cuda_sm90 FILE -o rmsnorm -o mla_decode
    python -m archkey.conformance.emulation.captured compare FILE

`record` runs on a machine with the card: it asks the exam's edge cases and keeps of each launch the
PTX, the arguments and the bytes of all tensors before and after. `compare` needs no card.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from archkey.conformance import exam
from archkey.conformance.emulation.ptx.launcher import execute
from archkey.conformance.examine import Options, examine
from archkey.conformance.levels import RANDOM, Level
from archkey.conformance.worker import device_of
from archkey.launch import driver_launcher
from archkey.probe import Device
from archkey.session import Session
from archkey.settings import settings

__all__ = ["Captured", "Difference", "compare", "main", "recording"]

LARGEST = 64 << 20
"""Bytes of the tensors of a launch that is kept: cases of far addresses reserve gigabytes."""


@dataclass
class Captured:
    """One launch.

    arguments  in the order of `signature`: a number, None, or (storage, offset, dtype) of a tensor
    before     the bytes of each storage; after: once the card was done
    """

    label: str
    text: str
    grid: tuple[int, int, int]
    shared_bytes: int
    signature: dict[str, str]
    arguments: dict[str, Any]
    before: list[torch.Tensor]
    after: list[torch.Tensor]


class Difference(NamedTuple):
    """One tensor of one launch.

    differing  elements of `total` that have other bytes
    largest    difference of those that are finite, relative to the largest that the card wrote
    """

    label: str
    argument: str
    differing: int
    total: int
    largest: float


def recording(
    compiled: Any, launch: Callable[..., None], label: Callable[[], str], kept: list[Captured]
) -> Callable[..., None]:
    """`launch`, that keeps what it did in `kept`."""
    signature = {name: kind for name, kind in compiled.program.signature.items() if kind}
    names = list(compiled.program.signature)

    def run(grid: tuple[int, int, int], *arguments: Any) -> None:
        given = dict(zip(names, arguments, strict=True))
        storages: dict[int, Any] = {}
        places: dict[str, Any] = {}
        for name in signature:
            value = given[name]
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                storages.setdefault(storage.data_ptr(), storage)
                offset = value.data_ptr() - storage.data_ptr()
                places[name] = (list(storages).index(storage.data_ptr()), offset, value.dtype)
            else:
                places[name] = value
        if sum(storage.nbytes() for storage in storages.values()) > LARGEST:
            launch(grid, *arguments)
            return
        before = [_bytes(storage) for storage in storages.values()]
        launch(grid, *arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        after = [_bytes(storage) for storage in storages.values()]
        text = str(compiled.kernel.asm["ptx"])
        shared = compiled.shared_memory_bytes
        kept.append(Captured(label(), text, grid, shared, signature, places, before, after))

    return run


def _bytes(storage: Any) -> torch.Tensor:
    """A copy in host memory."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).cpu().clone()


def compare(captured: Captured) -> Iterator[Difference]:
    """Run the launch on the emulator; what it wrote otherwise than the card, by tensor."""
    own = [storage.clone() for storage in captured.before]
    arguments = {}
    for name, value in captured.arguments.items():
        if isinstance(value, tuple):
            storage, offset, dtype = value
            arguments[name] = own[storage][offset:].view(torch.uint8)
        else:
            arguments[name] = value
    execute(captured.text, captured.grid, captured.signature, arguments, captured.shared_bytes)
    for name, value in captured.arguments.items():
        if not isinstance(value, tuple):
            continue
        storage, offset, dtype = value
        found, want, start = (
            _typed(one[storage], offset, dtype) for one in (own, captured.after, captured.before)
        )
        if torch.equal(want.view(torch.uint8), start.view(torch.uint8)) and torch.equal(
            found.view(torch.uint8), want.view(torch.uint8)
        ):
            continue  # an input
        differs = (found.view(torch.uint8) != want.view(torch.uint8)).view(found.numel(), -1).any(1)
        a, b = found.double(), want.double()
        finite = a.isfinite() & b.isfinite()
        scale = float(b[finite].abs().max()) if finite.any() else 0.0
        gap = float((a - b)[finite].abs().max()) if finite.any() else 0.0
        odd = bool((a.isfinite() != b.isfinite()).any())
        largest = float("inf") if odd else gap / scale if scale else gap
        yield Difference(captured.label, name, int(differs.sum()), found.numel(), largest)


def _typed(storage: torch.Tensor, offset: int, dtype: torch.dtype) -> torch.Tensor:
    """What lies from the offset on, as many elements as there are whole ones."""
    part = storage[offset:]
    return part[: len(part) // dtype.itemsize * dtype.itemsize].clone().view(dtype)


@dataclass(frozen=True)
class _Recorder(Device):
    """The card, with an ear at its launcher."""

    def launcher(self, compiled: Any) -> Callable[..., None]:
        """Through Triton's driver, kept in `_KEPT`."""
        launch = driver_launcher(compiled, self)
        return recording(compiled, launch, lambda: _LABEL[-1], _KEPT)


_KEPT: list[Captured] = []
_LABEL: list[str] = [""]


def _record(target: str, path: Path, operators: list[str], limit: int) -> None:
    device = device_of(target, Level.DEVICE)
    if device is None:
        raise SystemExit(f"no {target} on this machine: record where the card is")
    recorder = _Recorder(**vars(device))
    session = Session(recorder, settings())
    items, _ = exam.questions(exam.find(target), Level.EMULATED, operators)
    done: dict[str, int] = {}
    for item in items:
        key = f"{item.operator} {item.kernel}"
        if item.case == RANDOM or done.get(key, 0) >= limit:
            continue
        _LABEL.append(f"{key}, {item.case}")
        kept = len(_KEPT)
        asked = item._replace(level=Level.DEVICE.value)
        outcome = examine(session, asked, Options(1, 0), lambda name: None)
        done[key] = done.get(key, 0) + (len(_KEPT) > kept)
        click.echo(f"{outcome.outcome}: {_LABEL[-1]}")
    torch.save([vars(one) for one in _KEPT], path)
    click.echo(f"{len(_KEPT)} launches in {path}")


def _compare(path: Path, bound: float) -> int:
    """The number of launches whose outputs are further apart than `bound`, or that fault."""
    bad = 0
    for row in torch.load(path, weights_only=True):
        captured = Captured(**row)
        try:
            differences = list(compare(captured))
        except Exception as error:
            click.echo(f"{captured.label}: {error}")
            bad += 1
            continue
        for one in differences:
            said = f"{one.differing} of {one.total} elements differ, by {one.largest:.1e} at most"
            click.echo(f"{one.label}: {one.argument}: {said}")
        bad += any(not one.largest <= bound for one in differences)
    return bad


def main() -> int:
    """The command line; the exit code is 1 if a launch is too far from the card's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record")
    record.add_argument("target")
    record.add_argument("path", type=Path)
    record.add_argument("-o", "--operator", action="append", default=[])
    record.add_argument("--limit", type=int, default=12, help="cases of a kernel, at most")
    against = commands.add_parser("compare")
    against.add_argument("path", type=Path)
    against.add_argument("--bound", type=float, default=1e-2, help="relative to the largest")
    given = parser.parse_args()
    if given.command == "record":
        _record(given.target, given.path, given.operator, given.limit)
        return 0
    return int(_compare(given.path, given.bound) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
