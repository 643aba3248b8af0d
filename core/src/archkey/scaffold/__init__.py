# SPDX-License-Identifier: Apache-2.0
"""The distribution that `archkey new-plugin` writes: a vendor's first hour, done.

`files/` holds the templates in layers: `every` plugin has those of the first, then come `target`
or `variant`, and `probe` for hardware that the core has never heard of. A file that two layers
have is the one text after the other. `$word` stands for a word of `Plan.words`.
"""

from __future__ import annotations

import os
import re
import string
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import archkey
from archkey.capabilities import VOCABULARY
from archkey.errors import ArgumentValueError, PluginError, TargetError
from archkey.plugins import Found
from archkey.target import FORMS, KNOWN, Target

__all__ = ["Plan", "plan", "render", "write"]

_FILES = Path(__file__).parent / "files"
_VARIANT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True)
class Plan:
    """What a plugin will be called. `variant` is "" for the base plugin of its target."""

    target: Target
    variant: str = ""

    @property
    def name(self) -> str:
        """The entry point: `TARGET` or `TARGET.VARIANT`."""
        return f"{self.target.key}.{self.variant}" if self.variant else self.target.key

    @property
    def package(self) -> str:
        """What is imported."""
        return "archkey_" + self.name.replace(".", "_")

    @property
    def distribution(self) -> str:
        """What is installed."""
        return self.package.replace("_", "-")

    @property
    def layers(self) -> tuple[str, ...]:
        """Folders of templates, in the order in which texts follow each other."""
        if self.variant:
            return "every", "variant"
        foreign = self.target.key not in KNOWN
        return ("every", "target", "probe") if foreign else ("every", "target")

    def words(self) -> dict[str, str]:
        """What the templates' placeholders stand for."""
        major, minor = map(int, archkey.__version__.split(".")[:2])
        return {
            "name": self.name,
            "target": self.target.key,
            "platform": self.target.platform,
            "package": self.package,
            "distribution": self.distribution,
            "simulated": f"{self.target.key.upper()}_SIMULATED",
            "core": f"archkey>={major}.{minor},<{major}.{minor + 1}",
            "vocabulary": "\n".join(_vocabulary()),
            "facts": _facts(self.target),
        }


def plan(text: str, installed: Iterable[Found]) -> Plan:
    """The plan for a plugin that a user calls `text`.

    TargetError if it is no TARGET or TARGET.VARIANT, PluginError if `installed` has one of that
    name.
    """
    try:
        target, variant = Target.parse(text), ""  # first as a whole: "9.0" is a target, too
    except TargetError:
        head, dot, variant = text.strip().lower().partition(".")
        if not dot:
            raise
        target = Target.parse(head)
        if not _VARIANT.fullmatch(variant):
            raise TargetError(
                f"{text!r}: a variant is a word such as 'acme', found {variant!r}"
            ) from None
    if target.suffix:
        raise TargetError(
            f"{text!r}: a plugin is named by its architecture, which is {target.key!r} here; the "
            f"suffix {target.suffix!r} is about code. A kernel that needs it says so itself."
        )
    found = Plan(target, variant)
    if not re.fullmatch(r"[a-z0-9]+([_.][a-z0-9]+)*", found.name):
        raise TargetError(f"{text!r} makes no name of a package. Accepted: {FORMS}.")
    for other in installed:
        if other.name == found.name:
            raise PluginError(
                f"{other.distribution} {other.version} has the name {found.name!r}, and a name "
                "that two distributions claim is refused from both; a second supplier of a "
                f"target takes a variant's, such as '{target.key}.acme'"
            )
    return found


def render(wanted: Plan) -> dict[str, str]:
    """The files of the distribution: path -> text."""
    words, texts = wanted.words(), dict[str, str]()
    for layer in wanted.layers:
        for template in sorted((_FILES / layer).rglob("*.in")):
            path = template.relative_to(_FILES / layer).as_posix().removesuffix(".in")
            text = string.Template(template.read_text()).substitute(words)
            path = path.replace("PACKAGE", wanted.package)
            texts[path] = texts.get(path, "") + text
    return texts


def write(files: dict[str, str], folder: Path) -> None:
    """Write `files` as `folder`, which must be new or empty: all of them, or nothing.

    ArgumentValueError if the folder cannot be that.
    """
    folder = folder.resolve()
    if os.path.lexists(folder) and not folder.is_dir():
        _refuse(folder, "something that is no folder")
    if folder.is_dir() and any(folder.iterdir()):
        _refuse(folder, "a folder that is not empty")
    if not folder.parent.is_dir():
        _refuse(folder, f"no folder {folder.parent} to put it in")
    try:
        # Beside it, so that one rename on one file system makes it appear as a whole.
        with tempfile.TemporaryDirectory(prefix=".archkey-", dir=folder.parent) as room:
            draft = Path(room) / folder.name
            for path, text in files.items():
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                (draft / path).write_text(text)
            draft.rename(folder)
    except OSError as error:
        _refuse(folder, f"{error.strerror} ({error.filename})")


def _refuse(folder: Path, found: str) -> None:
    raise ArgumentValueError(
        f"new-plugin: {folder} must be new or empty, in a folder that can be written to; found "
        f"{found}. Nothing was written; --output names another place."
    )


def _vocabulary() -> Iterator[str]:
    """A line a capability: name, what it takes, meaning."""
    for name, meaning in VOCABULARY.items():
        kind = " | ".join(f'"{value}"' for value in meaning.values) or meaning.kind.__name__
        yield from textwrap.wrap(
            f"{name:<20} {kind}: {meaning.text}", 96, initial_indent=" " * 4,
            subsequent_indent=" " * 25,
        )  # fmt: skip


def _facts(target: Target) -> str:
    """Rows for what is certain of a target before its maker has said anything."""
    row = KNOWN.get(target.key)
    if row is None:
        return ""
    why = "lanes of a warp or wavefront"
    return f'    Capability("warp_size", {row.warp_size}, "archkey.target, KNOWN", "{why}"),\n'
