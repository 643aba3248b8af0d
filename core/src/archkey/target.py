# SPDX-License-Identifier: Apache-2.0
"""What hardware is: `Target`, a frozen value that names one architecture.

    Target.parse("sm_90a")                      cuda_sm90a     key "cuda_sm90"
    Target.parse("gfx942:sramecc+:xnack-")      key "rocm_gfx942"
    Target.parse("acme_x1")                     a vendor's own platform

A target's `key` is the one name of an architecture: plugin folder, distribution suffix,
entry-point name and test id. The feature suffix ("a", "f", "sramecc+") says for which feature set
*code* was built and is therefore not part of the key.

Targets are matched exactly (`is_exact`), by family (`in_family`) or by what code may run where
(`serves`). They have no order, because there is none: sm_90a code runs on no later chip, and the
higher number sm120 lacks the tensor memory that sm100 has. `a < b` raises TypeError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from archkey.errors import TargetError, nearest

__all__ = ["FORMS", "KNOWN", "Architecture", "Target"]

FORMS = (
    "cuda_sm90, sm_90a, sm100f, 9.0, rocm_gfx950, gfx942:sramecc+:xnack-, cpu, "
    "or PLATFORM_ARCH of another vendor such as acme_x1"
)


class Architecture(NamedTuple):
    """One row of `KNOWN`."""

    platform: str
    arch: str
    warp_size: int
    """Threads that execute in lock step: warp (NVIDIA) or wavefront (AMD). 1 for a CPU."""
    family: str
    """The architecture whose code this one runs: the base of NVIDIA's compatibility family."""
    suffixes: tuple[str, ...]
    """Feature suffixes that exist for the architecture."""
    examples: tuple[str, ...]
    """Products, as they are sold."""


_A, _AF = ("a",), ("a", "f")
_ECC = ("sramecc", "xnack")

# Sources.  NVIDIA architectures and products: developer.nvidia.com/cuda-gpus.  Suffixes and
# families: CUDA programming guide, "Compute Capabilities", family-specific targets (100f runs on
# 10.0 and 10.3; 120f on 12.0 and 12.1; 110f on 11.0; 9.0 has only "a").  sm107: PTX ISA 9.4; the
# guide at hand does not list it in the family of 100f, so here it is a family of its own.
# AMD architectures, products, wavefront sizes and target features: LLVM, "User Guide for AMDGPU
# Backend", processors.  AMD has no binary compatibility between processors (only LLVM's separate
# `gfx9-4-generic` processors have), so each is its own family; gfx940 and gfx941 were
# pre-production silicon and left LLVM (llvm-project#126887).
_ROWS = (
    Architecture("cuda", "sm75", 32, "sm75", (), ("T4", "GeForce RTX 2080 Ti")),
    Architecture("cuda", "sm80", 32, "sm80", (), ("A100", "A30")),
    Architecture("cuda", "sm86", 32, "sm86", (), ("A10", "A40", "GeForce RTX 3090")),
    Architecture("cuda", "sm87", 32, "sm87", (), ("Jetson AGX Orin",)),
    Architecture("cuda", "sm89", 32, "sm89", (), ("L4", "L40S", "GeForce RTX 4090")),
    Architecture("cuda", "sm90", 32, "sm90", _A, ("H100", "H200", "GH200")),
    Architecture("cuda", "sm100", 32, "sm100", _AF, ("B200", "GB200")),
    Architecture("cuda", "sm103", 32, "sm100", _AF, ("B300", "GB300")),
    Architecture("cuda", "sm107", 32, "sm107", _AF, ("Rubin",)),
    Architecture("cuda", "sm110", 32, "sm110", _AF, ("Jetson T5000",)),
    Architecture("cuda", "sm120", 32, "sm120", _AF, ("GeForce RTX 5090", "RTX PRO 6000 Blackwell")),
    Architecture("cuda", "sm121", 32, "sm120", _AF, ("GB10 (DGX Spark)",)),
    Architecture("rocm", "gfx906", 64, "gfx906", _ECC, ("Instinct MI50",)),
    Architecture("rocm", "gfx908", 64, "gfx908", _ECC, ("Instinct MI100",)),
    Architecture("rocm", "gfx90a", 64, "gfx90a", _ECC, ("Instinct MI210", "Instinct MI250X")),
    Architecture("rocm", "gfx942", 64, "gfx942", _ECC, ("Instinct MI300X", "Instinct MI325X")),
    Architecture("rocm", "gfx950", 64, "gfx950", _ECC, ("Instinct MI350X", "Instinct MI355X")),
    Architecture("rocm", "gfx1030", 32, "gfx1030", (), ("Radeon RX 6900 XT",)),
    Architecture("rocm", "gfx1100", 32, "gfx1100", (), ("Radeon RX 7900 XTX",)),
    Architecture("rocm", "gfx1101", 32, "gfx1101", (), ("Radeon RX 7800 XT",)),
    Architecture("rocm", "gfx1102", 32, "gfx1102", (), ("Radeon RX 7600",)),
    Architecture("rocm", "gfx1103", 32, "gfx1103", (), ("Radeon 780M",)),
    Architecture("rocm", "gfx1150", 32, "gfx1150", (), ("Radeon 890M",)),
    Architecture("rocm", "gfx1151", 32, "gfx1151", (), ("Radeon 8060S",)),
    Architecture("rocm", "gfx1200", 32, "gfx1200", (), ("Radeon RX 9060 XT",)),
    Architecture("rocm", "gfx1201", 32, "gfx1201", (), ("Radeon RX 9070 XT",)),
    Architecture("rocm", "gfx1250", 32, "gfx1250", (), ("Instinct MI400 series",)),
    Architecture("cpu", "", 1, "", (), ("any host",)),
)

KNOWN: dict[str, Architecture] = {
    f"{row.platform}_{row.arch}" if row.arch else row.platform: row for row in _ROWS
}
"""Architectures that `Target.parse` accepts for the platforms cuda, rocm and cpu, by key."""

_VENDORS = {"cuda": "nvidia", "rocm": "amd"}

_NVIDIA = re.compile(r"(?:cuda[_:])?(?:sm_?(\d{2,3})|(\d{1,2}\.\d))([af]?)")
_AMD = re.compile(r"(?:rocm[_:])?(gfx[0-9a-f]{3,4})((?::[a-z]+[+-])*)")
_FOREIGN = re.compile(r"([a-z][a-z0-9]*)_([a-z0-9][a-z0-9_]*)")


@dataclass(frozen=True)
class Target:
    """A kind of hardware.

    `parse` reads text and accepts only what `KNOWN` lists for cuda and rocm. The constructor takes
    any architecture, so that the probe can report a chip which is newer than the table.
    """

    platform: str
    """One of "cuda", "rocm", "cpu", or a vendor's own word."""
    arch: str
    """Such as "sm90", "gfx950", "x1"; empty for a cpu."""
    suffix: str = ""
    """The feature set that code was built for: "a" or "f" (NVIDIA), "sramecc+:xnack-" (AMD)."""

    @classmethod
    def parse(cls, text: str | Target) -> Target:
        """The target that `text` names; a Target is returned as it is.

        Case and surrounding blanks do not matter. TargetError for everything else.
        """
        if isinstance(text, Target):
            return text
        if not isinstance(text, str):
            raise TargetError(f"a target is text such as {FORMS}; found {text!r}")
        word = text.strip().lower()
        found = _parse_nvidia(word) or _parse_amd(word) or _parse_other(word)
        if found is None:
            guess = word if "_" in word else f"_{word}"
            raise TargetError(
                f"no target is named {text!r}; {nearest(guess, KNOWN)}. Accepted: {FORMS}."
            )
        return found

    @property
    def key(self) -> str:
        """The name of the architecture, without the suffix: "cuda_sm90", "cpu"."""
        return f"{self.platform}_{self.arch}" if self.arch else self.platform

    @property
    def vendor(self) -> str:
        """The maker: "nvidia", "amd", "cpu", or the platform's own word."""
        return _VENDORS.get(self.platform, self.platform)

    @property
    def family(self) -> Target:
        """The base architecture of the family: sm103 -> sm100; an architecture alone is its own."""
        row = KNOWN.get(self.key)
        return Target(self.platform, row.family if row else self.arch)

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """NVIDIA's (major, minor), e.g. (9, 0) or (10, 3). None for other platforms."""
        digits = self.arch[2:]
        if self.platform != "cuda" or not digits.isdigit():
            return None
        return int(digits[:-1]), int(digits[-1])

    @property
    def triton_backend(self) -> tuple[str, int | str, int] | None:
        """Triton's GPUTarget, (backend, arch, warp size): ("cuda", 90, 32), ("hip", "gfx942", 64).

        None where Triton has no backend of its own or the table does not know the architecture.
        """
        row = KNOWN.get(self.key)
        if row is None or self.platform not in _VENDORS:
            return None
        capability = self.compute_capability
        if capability is None:
            return "hip", self.arch, row.warp_size
        return "cuda", 10 * capability[0] + capability[1], row.warp_size

    def is_exact(self, other: Target) -> bool:
        """The same architecture; the suffix, which is about code, does not count."""
        return self.key == other.key

    def in_family(self, other: Target) -> bool:
        """Of one family: sm103 and sm100 are, sm120 and sm100 are not."""
        return self.family == other.family

    def serves(self, other: Target) -> bool:
        """True if code built for this target runs on the hardware `other`.

        NVIDIA (CUDA programming guide, "Compute Capabilities"): code with suffix "a" runs on its
        own architecture alone; code with "f", and code without a suffix, runs on its own and on
        later members of the family, so sm100 serves sm103 and sm103 does not serve sm100.
        AMD (LLVM AMDGPU guide, "Target ID"): the same processor, and each feature that the code
        fixes must be set alike on the device; a setting that `other` leaves open does not match.
        Others: the same architecture and the same suffix, if the code has one.
        """
        if self.is_exact(other):
            if self.platform == "cuda":
                return True
            fixed, present = self.suffix.split(":"), other.suffix.split(":")
            return not self.suffix or set(fixed) <= set(present)
        mine, theirs = self.compute_capability, other.compute_capability
        if mine is None or theirs is None or self.suffix == "a":
            return False
        return self.in_family(other) and mine <= theirs  # numbers compared inside one family only

    def to_json(self) -> dict[str, str]:
        """The fields, and the derived names, as JSON values."""
        return {
            "key": self.key,
            "platform": self.platform,
            "arch": self.arch,
            "suffix": self.suffix,
            "vendor": self.vendor,
            "family": self.family.key,
        }

    def __str__(self) -> str:
        """The key with its suffix; `Target.parse` reads it back."""
        separator = ":" if self.suffix and self.platform == "rocm" else ""
        return f"{self.key}{separator}{self.suffix}"


def _known(platform: str, arch: str, text: str) -> Architecture:
    """The table's row; TargetError if the platform has no such architecture."""
    row = KNOWN.get(f"{platform}_{arch}")
    if row is None:
        names = [key for key in KNOWN if key.startswith(f"{platform}_")]
        raise TargetError(
            f"{text!r} names no {_VENDORS[platform]} architecture known here; "
            f"{nearest(f'{platform}_{arch}', names)}. Accepted: {FORMS}."
        )
    return row


def _parse_nvidia(word: str) -> Target | None:
    match = _NVIDIA.fullmatch(word)
    if match is None:
        return None
    row = _known("cuda", "sm" + (match[1] or match[2].replace(".", "")), word)
    if match[3] and match[3] not in row.suffixes:
        allowed = ", ".join(repr(s) for s in row.suffixes) or "none"
        raise TargetError(f"{word!r}: {row.arch} has no suffix {match[3]!r}; it has {allowed}")
    return Target("cuda", row.arch, match[3])


def _parse_amd(word: str) -> Target | None:
    match = _AMD.fullmatch(word)
    if match is None:
        return None
    row = _known("rocm", match[1], word)
    features = sorted(filter(None, match[2].split(":")))  # one order, so equal targets are equal
    names = [feature[:-1] for feature in features]
    if len(set(names)) < len(names) or not set(names) <= set(row.suffixes):
        allowed = ", ".join(f"{s}+ or {s}-" for s in row.suffixes) or "none"
        raise TargetError(f"{word!r}: {row.arch} takes each of these features once: {allowed}")
    return Target("rocm", row.arch, ":".join(features))


def _parse_other(word: str) -> Target | None:
    """The cpu, or PLATFORM_ARCH of a vendor that the core does not know."""
    if word == "cpu":
        return Target("cpu", "")
    match = _FOREIGN.fullmatch(word)
    if match is None or match[1] in {"cuda", "rocm", "cpu"}:
        return None
    # "cud_sm90" and "amd_gfx942" are slips, not new vendors.
    if any(match[2].startswith(row.arch) for row in _ROWS if row.arch):
        return None
    return Target(match[1], match[2])
