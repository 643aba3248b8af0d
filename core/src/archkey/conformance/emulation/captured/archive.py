# SPDX-License-Identifier: Apache-2.0
"""A file of launches, written one by one: a sudden end loses no more than the last one.

    "archkey launches 1\\n", then entries: bytes of the rest and their CRC-32 as two little-endian
    32-bit numbers, and the rest, compressed by zlib: the size of a JSON object (32 bits), the
    object, and bytes that it has the sizes of, one after the other.

The object's "entry" says what it is: "about" (the first: where and of what), "text" (PTX, once for
all its launches), "launch", "end" (the last: what became of each kernel).
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from archkey.errors import RecordError

__all__ = ["Archive", "Kept", "Launch", "Place"]

_MAGIC = b"archkey launches 1\n"
_HEAD = struct.Struct("<II")
_SIZE = struct.Struct("<I")


class Place(NamedTuple):
    """A tensor: its first element is `offset` bytes into the storage of that number.

    strides are counted in elements.
    """

    storage: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Kept(NamedTuple):
    """A launch in the file, without its contents: see Launch.

    at    where it begins
    text  the digest of its PTX
    """

    at: int
    kernel: str
    case: str
    body: str
    text: str


@dataclass
class Launch:
    """One launch.

    kernel     "operator plugin:kernel"; case: of the exam; body: the Triton function
    arguments  in the order of `signature`: a number, None, or the Place of a tensor
    before     the bytes of each storage; after: once the card was done, the same object where
               nothing has changed
    """

    kernel: str
    case: str
    body: str
    text: str
    grid: tuple[int, int, int]
    shared_bytes: int
    signature: dict[str, str]
    arguments: dict[str, Any]
    before: list[torch.Tensor]
    after: list[torch.Tensor]

    @property
    def label(self) -> str:
        """Where it comes from."""
        return f"{self.kernel}, {self.case}: {self.body}"


class Archive:
    """The file at `path`. One process at a time writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._texts: dict[str, str] = {}

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any]) -> Archive:
        """A new one, in place of what is there."""
        path.write_bytes(_MAGIC)
        archive = cls(path)
        archive._append([_entry({"entry": "about", **about})])
        return archive

    def mend(self) -> None:
        """Cut off what a sudden end has left of an entry, and learn which texts are there."""
        end = len(_MAGIC)
        for at, head, blobs in self._entries():
            end = at
            if head["entry"] == "text":
                self._texts[head["digest"]] = blobs[0].decode()
        with self.path.open("r+b") as file:
            file.truncate(end)

    def kept(self) -> Counter[tuple[str, str]]:
        """How many launches there are, by kernel and body."""
        heads = (head for _, head, _ in self._entries())
        return Counter((h["kernel"], h["body"]) for h in heads if h["entry"] == "launch")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size

    def add(self, launch: Launch, each: int, total: int) -> str:
        """Write a launch, the text too unless it is there; or why not.

        each   bytes that it may take; total: bytes that the file may have then
        """
        digest = hashlib.sha256(launch.text.encode()).hexdigest()
        entries = []
        if digest not in self._texts:
            entries.append(_entry({"entry": "text", "digest": digest}, [launch.text.encode()]))
        places = {
            name: {**value._asdict(), "dtype": str(value.dtype).removeprefix("torch.")}
            if isinstance(value, Place)
            else value
            for name, value in launch.arguments.items()
        }
        pairs = list(zip(launch.before, launch.after, strict=True))
        new = [after for before, after in pairs if not torch.equal(before, after)]
        head = {
            "entry": "launch",
            **{name: getattr(launch, name) for name in _PLAIN},
            "text": digest,
            "arguments": places,
            "changed": [not torch.equal(before, after) for before, after in pairs],
        }
        entries.append(_entry(head, [one.numpy().tobytes() for one in (*launch.before, *new)]))
        size = sum(map(len, entries))
        if size > each:
            return f"{size >> 10} KiB in the file"
        if self.size + size > total:
            return "the file is full"
        self._append(entries)
        self._texts[digest] = launch.text
        return ""

    def _append(self, entries: Sequence[bytes]) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(entries))

    def finish(self, end: Mapping[str, Any]) -> None:
        """Write the last entry."""
        self._append([_entry({"entry": "end", **end})])

    def read(self) -> tuple[dict[str, Any], list[Kept], dict[str, Any]]:
        """What the file is about, its launches, what it says at its end; {} if cut."""
        about: dict[str, Any] = {}
        end: dict[str, Any] = {}
        launches: list[Kept] = []
        before = len(_MAGIC)
        for after, head, blobs in self._entries():
            if head["entry"] == "about":
                about = head
            elif head["entry"] == "text":
                self._texts[head["digest"]] = blobs[0].decode()
            elif head["entry"] == "launch":
                fields = (head[name] for name in Kept._fields[1:])
                launches.append(Kept(before, *fields))
            else:
                end = head
            before = after
        return about, launches, end

    def text(self, digest: str) -> str:
        """The PTX that a launch, which `read` has told, is of."""
        return self._texts[digest]

    def launch(self, at: int) -> Launch:
        """The launch at a place that `read` has told."""
        with self.path.open("rb") as file:
            file.seek(at)
            size, _ = _HEAD.unpack(file.read(_HEAD.size))
            head, blobs = _parsed(file.read(size))
        places = {
            name: Place(
                *(value["storage"], value["offset"], getattr(torch, value["dtype"])),
                *(tuple(value["shape"]), tuple(value["strides"])),
            )
            if isinstance(value, dict)
            else value
            for name, value in head["arguments"].items()
        }
        tensors = [_tensor(blob) for blob in blobs]
        count = len(head["changed"])
        before, new = tensors[:count], iter(tensors[count:])
        after = [next(new) if is_new else before[i] for i, is_new in enumerate(head["changed"])]
        plain = {name: head[name] for name in _PLAIN} | {"grid": tuple(head["grid"])}
        text = self._texts[head["text"]]
        return Launch(text=text, arguments=places, before=before, after=after, **plain)

    def _entries(self) -> Iterator[tuple[int, dict[str, Any], list[bytes]]]:
        """Each entry with the place where it ends; ends at one that is cut off or damaged."""
        with self.path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise RecordError(f"{self.path} holds no launches of this format")
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                size, check = _HEAD.unpack(head)
                rest = file.read(size)
                if len(rest) < size or zlib.crc32(rest) != check:
                    return
                yield file.tell(), *_parsed(rest)


_PLAIN = ("kernel", "case", "body", "grid", "shared_bytes", "signature")


def _entry(head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    text = json.dumps({**head, "sizes": [len(blob) for blob in blobs]}).encode()
    packer = zlib.compressobj(6)
    parts = [packer.compress(part) for part in (_SIZE.pack(len(text)), text, *blobs)]
    rest = b"".join([*parts, packer.flush()])
    return _HEAD.pack(len(rest), zlib.crc32(rest)) + rest


def _parsed(rest: bytes) -> tuple[dict[str, Any], list[bytes]]:
    data = zlib.decompress(rest)
    (size,) = _SIZE.unpack_from(data)
    at = _SIZE.size + size
    head = json.loads(data[_SIZE.size : at])
    blobs = []
    for length in head["sizes"]:
        blobs.append(data[at : at + length])
        at += length
    return head, blobs


def _tensor(blob: bytes) -> torch.Tensor:
    """The bytes, to be written to; torch has no view of none."""
    if not blob:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8)
