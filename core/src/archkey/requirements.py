# SPDX-License-Identifier: Apache-2.0
"""What a kernel rests on: ranges of other distributions, and versions known to be bad.

A rule belongs to the kernel, not to the wheel: a violated one disables that kernel, with the
reason in the decision, and the next kernel runs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SEVERITIES = ("crash", "accuracy", "speed")

# One import name, several distributions: ROCm and XPU builds of torch bring their own triton.
_ALIASES = {"triton": ("triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton-xpu")}


@dataclass(frozen=True)
class Requirement:
    """`package` must be installed in a version within `specifier` (PEP 440), and here is why.

    `specifier` may exclude known-bad versions (`">=3.6,!=3.7.0"`). `severity` is what happens
    otherwise: "crash", "accuracy" or "speed". `why` is a sentence or a reference (an issue).
    """

    package: str
    specifier: str = ""
    why: str = ""
    severity: str = "crash"

    def __post_init__(self) -> None:
        SpecifierSet(self.specifier)  # a bad range is the plugin author's error: say so at load
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity {self.severity!r} is not one of {', '.join(SEVERITIES)}")

    def satisfied_by(self, versions: Mapping[str, str]) -> bool:
        """Whether the installed `versions` (distribution -> version) satisfy this rule."""
        found = versions.get(self.package)
        return found is not None and within(found, self.specifier)

    def found_in(self, versions: Mapping[str, str]) -> str:
        """What is installed of the package, for people."""
        return f"{self.package} {versions.get(self.package) or 'not installed'}"

    def __str__(self) -> str:
        return f"{self.package}{self.specifier}"


def within(version: str, specifier: str) -> bool:
    """Whether `version` lies in the PEP 440 range `specifier`, judged by its release.

    A nightly (`3.7.0.dev2026`) or local build (`2.11.0+cu130`) counts as the release it leads to:
    its code is that release's. An exclusion (`!=2.11.0+cu130`) holds for the very build as well.
    A post-release (`0.7.2.post1`) is a release of its own. A version that is not PEP 440 lies in
    the empty range only.
    """
    try:
        found = Version(version)
    except InvalidVersion:
        return not specifier
    release = found.base_version + (f".post{found.post}" if found.post is not None else "")
    return all(
        clause.contains(release)
        and (clause.operator != "!=" or clause.contains(version, prereleases=True))
        for clause in SpecifierSet(specifier)
    )


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those `packages` that are installed, from their metadata; imports nothing."""
    found: dict[str, str] = {}
    for package in sorted(set(packages)):
        for name in _ALIASES.get(package, (package,)):
            try:
                found[package] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
