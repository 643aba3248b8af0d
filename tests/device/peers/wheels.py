# SPDX-License-Identifier: Apache-2.0
"""Wheels made smaller: chosen members, excerpts of modules, device code of one architecture.

The result is a zip with LZMA, which `python -m zipfile -e` unpacks, with the package's own
METADATA, so that `importlib.metadata.version` says what was measured.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tests.device.peers.fatbin import blank_other

__all__ = ["chosen", "excerpt", "metadata_of", "record", "strip", "write"]

_EPOCH = (2026, 1, 1, 0, 0, 0)  # the same content gives the same archive


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Names that are taken: of the patterns that match one the last decides, `!` leaves it out.

    `*` also matches slashes. Raises ValueError for a pattern that matches nothing: the wheel is
    another one than the table was written for.
    """
    names = [name for name in names if not name.endswith("/")]
    taken = dict.fromkeys(names, False)
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern.removeprefix("!"))]
        if not matching:
            raise ValueError(f"nothing in the wheel matches {pattern!r}")
        taken.update(dict.fromkeys(matching, not pattern.startswith("!")))
    return [name for name in names if taken[name]]


def excerpt(source: str, wanted: Sequence[str]) -> str:
    """The named top-level definitions of a module, and the imports whose names they use.

    Raises ValueError for a name that the module does not define.
    """
    kept: list[ast.stmt] = []
    imports: list[ast.Import | ast.ImportFrom] = []
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif defined := _defines(node) & set(wanted):
            found |= defined
            kept.append(node)
    if missing := set(wanted) - found:
        raise ValueError(f"the module does not define {', '.join(sorted(missing))}")
    used = {n.id for node in kept for n in ast.walk(node) if isinstance(n, ast.Name)}
    for node in imports:
        node.names = [a for a in node.names if _bound(a) in used or _of_the_future(node)]
    head = [node for node in imports if node.names]
    return ast.unparse(ast.Module([*head, *kept], [])) + "\n"


def _defines(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _of_the_future(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def strip(
    wheel: Path,
    take: Sequence[str],
    excerpts: Mapping[str, Sequence[str]] | None = None,
    architecture: int | None = None,
) -> dict[str, bytes]:
    """Members of a smaller wheel, by name.

    take          patterns, see `chosen`
    excerpts      modules of which only these top-level names are kept
    architecture  the one whose device code stays in shared objects, as 90; None leaves all
    """
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(wheel) as source:
        for name in chosen(source.namelist(), take):
            members[name] = source.read(name)
        for name, wanted in (excerpts or {}).items():
            members[name] = excerpt(source.read(name).decode(), wanted).encode()
        for name in source.namelist():
            if name.endswith((".dist-info/METADATA", ".dist-info/WHEEL")):
                members[name] = source.read(name)
    if architecture is not None:
        for name in members:
            if name.endswith(".so"):
                image = bytearray(members[name])
                blank_other(image, architecture)
                members[name] = bytes(image)
    return members


def metadata_of(distribution: str, version: str) -> dict[str, bytes]:
    """The METADATA and WHEEL of something that was built here."""
    at = f"{distribution}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n"
    return {f"{at}/METADATA": metadata.encode(), f"{at}/WHEEL": wheel.encode()}


def record(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The RECORD of a wheel; apache-tvm-ffi finds its library by it."""
    (metadata,) = (name for name in members if name.endswith(".dist-info/METADATA"))
    at = metadata.replace("METADATA", "RECORD")

    def row(name: str) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(members[name]).digest())
        return f"{name},sha256={digest.rstrip(b'=').decode()},{len(members[name])}\n"

    return {at: ("".join(map(row, sorted(members))) + f"{at},,\n").encode()}


def write(target: Path, members: Mapping[str, bytes]) -> int:
    """Write a wheel and return its size in bytes; an older one is replaced when it is whole."""
    members = {**members, **record(members)}
    half = target.with_suffix(".part")
    with zipfile.ZipFile(half, "w", zipfile.ZIP_LZMA) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_LZMA
            archive.writestr(info, members[name])
    half.replace(target)
    return target.stat().st_size
