# SPDX-License-Identifier: Apache-2.0
"""What a kernel rests on: ranges of other distributions, and versions known to be bad.

A rule belongs to the kernel, not to the wheel: a violated one disables that kernel, with the
reason in the decision, and the next kernel runs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

__all__ = [
    "SEVERITIES",
    "Requirement",
    "Violation",
    "distributions_of",
    "installed_versions",
    "within",
]

SEVERITIES = ("crash", "accuracy", "speed")
"""What it would be to run in spite of a violated rule, the worst first."""

# One import name, several distributions: ROCm and XPU builds of torch bring their own triton.
_ALIASES = {"triton": ("triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton-xpu")}


@dataclass(frozen=True)
class Requirement:
    """`package` must be installed in a version within `specifier` (PEP 440), and here is why.

    specifier  may exclude known-bad versions: `">=3.6,!=3.7.0"`; `within` says how it is judged
    why        what happens otherwise, or what the bounds rest on, in a sentence
    severity   what it would be to run in spite of it: "crash", "accuracy" or "speed". Each disables
    reference  where that was found: an issue ("triton-lang/triton#1234"), a URL, a measurement
    """

    package: str
    specifier: str = ""
    why: str = ""
    severity: str = "crash"
    # Not in the repr, of which digests of evidence are made: who cites a source changes no kernel.
    reference: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        SpecifierSet(self.specifier)  # a bad range is the plugin author's error: say so at load
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity {self.severity!r} is not one of {', '.join(SEVERITIES)}")

    def satisfied_by(self, versions: Mapping[str, str]) -> bool:
        """Whether the installed `versions` (distribution -> version) satisfy this rule."""
        found = versions.get(self.package)
        return found is not None and within(found, self.specifier)

    def violation(self, versions: Mapping[str, str]) -> Violation | None:
        """How the installed `versions` break this rule; None if they do not."""
        if self.satisfied_by(versions):
            return None
        return Violation(self, versions.get(self.package))

    def found_in(self, versions: Mapping[str, str]) -> str:
        """What is installed of the package, for people."""
        return f"{self.package} {versions.get(self.package) or 'not installed'}"

    @property
    def consequence(self) -> str:
        """Severity, reason and reference: "accuracy: wrong sums (triton-lang/triton#1234)"."""
        said = f"{self.severity}: {self.why}" if self.why else self.severity
        return f"{said} ({self.reference})" if self.reference else said

    def __str__(self) -> str:
        return f"{self.package}{self.specifier}"


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold here. `version` is what is installed instead, None if nothing."""

    rule: Requirement
    version: str | None

    @property
    def found(self) -> str:
        """What is installed of the package, for people."""
        return f"{self.rule.package} {self.version or 'not installed'}"

    @property
    def remedy(self) -> str:
        """The next step."""
        return f"install {self.rule}"

    def to_json(self) -> dict[str, str]:
        """The keys `required`, `found`, `severity`, `why`, `reference`, `remedy`."""
        return {
            "required": str(self.rule),
            "found": self.found,
            "severity": self.rule.severity,
            "why": self.rule.why,
            "reference": self.rule.reference,
            "remedy": self.remedy,
        }


def within(version: str, specifier: str) -> bool:
    """Whether `version` lies in the PEP 440 range `specifier`, judged by its release.

    A nightly (`3.7.0.dev2026`) or local build (`2.11.0+cu130`) counts as the release it leads to:
    its code is that release's. A clause that names a pre-release or a local build itself
    (`!=2.11.0+cu130`, `>=3.7.0.dev20261101`) is judged by the very build, as PEP 440 orders it.
    A post-release (`0.7.2.post1`) is a release of its own. A version that is not PEP 440 lies in
    the empty range only, and where `===` spells it out.
    """
    return all(_holds(clause, version) for clause in SpecifierSet(specifier))


def _holds(clause: Specifier, version: str) -> bool:
    if clause.operator == "===":  # compared as text, whatever it is
        return clause.version.casefold() == version.casefold()
    try:
        found = Version(version)
    except InvalidVersion:
        return False
    named = Version(clause.version.removesuffix(".*"))
    if named.is_prerelease or named.local is not None:
        return clause.contains(found, prereleases=True)
    release = found.base_version + (f".post{found.post}" if found.post is not None else "")
    return clause.contains(release)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those `packages` that are installed, from their metadata; imports nothing."""
    found = {package: distributions_of(package) for package in sorted(set(packages))}
    return {package: next(iter(owners.values())) for package, owners in found.items() if owners}


def distributions_of(package: str) -> dict[str, str]:
    """The installed distributions that bring `package`, by name with version; one, as a rule.

    Several overwrite each other's files; the first is the one that rules are judged by.
    """
    found: dict[str, str] = {}
    for name in _ALIASES.get(package, (package,)):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
