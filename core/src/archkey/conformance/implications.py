# SPDX-License-Identifier: Apache-2.0
"""What capabilities imply of each other and of the platform: a table, checked without a compiler.

Only for the platforms that the core knows, cuda and rocm; another vendor's words are its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from archkey.capabilities import Capabilities
from archkey.conditions import Condition, is_, one_of
from archkey.plugins import Plugin
from archkey.target import KNOWN, Target

__all__ = ["IMPLICATIONS", "Implication", "contradictions", "disagreements"]


@dataclass(frozen=True)
class Implication:
    """A target with `having` has one of `implied`, too. `why` is a sentence with its source.

    "platform" and "arch" are the target's; other fields of the conditions are capabilities.
    """

    having: Condition
    implied: tuple[Condition, ...]
    why: str


_CUDA, _ROCM = is_("platform", "cuda"), is_("platform", "rocm")
_LATER_AMD = is_("arch", "gfx1250")  # LLVM, AMDGPU gfx1250: tensor_load_to_lds, cluster_load

IMPLICATIONS = (
    Implication(is_("pdl", True), (_CUDA,), "HIP has no programmatic dependent launch"),
    Implication(is_("tma", True), (_CUDA, _LATER_AMD), "no CDNA or RDNA copies tensors in bulk"),
    Implication(is_("cluster", True), (_CUDA, _LATER_AMD), "no CDNA or RDNA has clusters"),
    Implication(is_("wgmma", True), (_CUDA,), "an instruction of NVIDIA"),
    Implication(is_("wgmma", True), (is_("tcgen05", False),), "PTX ISA: sm_90a alone has wgmma"),
    Implication(is_("wgmma", True), (is_("arch", "sm90"),), "PTX ISA: sm_90a alone has wgmma"),
    Implication(is_("tcgen05", True), (_CUDA,), "an instruction of NVIDIA"),
    Implication(
        is_("tcgen05", True),
        (one_of("arch", ("sm100", "sm103", "sm107", "sm110")),),
        "PTX ISA: tensor memory is in the families of sm_100 and sm_110, not in sm_90 or sm_120",
    ),
    Implication(is_("mfma", True), (_ROCM,), "an instruction of AMD"),
    Implication(
        is_("mfma", True),
        (one_of("arch", ("gfx908", "gfx90a", "gfx942", "gfx950")),),
        "LLVM AMDGPU: MFMA is CDNA's; RDNA has WMMA",
    ),
    Implication(is_("scaled_mfma", True), (is_("mfma", True),), "it is an MFMA with scales"),
    Implication(is_("scaled_mfma", True), (is_("arch", "gfx950"),), "LLVM AMDGPU: gfx950's alone"),
    Implication(is_("lds_transpose", True), (_ROCM,), "LDS is AMD's; NVIDIA has ldmatrix"),
    Implication(
        is_("fp8", "e4m3fnuz"), (is_("arch", "gfx942"),), "gfx942 alone multiplies this flavour"
    ),
    Implication(
        is_("fp8", "e4m3fn"),
        (_CUDA, one_of("arch", ("gfx950", "gfx1200", "gfx1201", "gfx1250"))),
        "CDNA3 multiplies e4m3fnuz; CDNA2 and older no 8-bit float",
    ),
    Implication(
        is_("mxfp4", "native"),
        (
            is_("scaled_mfma", True),
            is_("tcgen05", True),
            one_of("arch", ("sm120", "sm121", "gfx1250")),
        ),
        "block scales need scaled MFMA, tcgen05.mma, or mma with block_scale",
    ),
    Implication(
        is_("nvfp4", "native"),
        (is_("tcgen05", True), one_of("arch", ("sm120", "sm121", "gfx1250"))),
        "E4M3 scales need tcgen05.mma, or mma with block_scale",
    ),
    Implication(_CUDA, (one_of("warp_size", (32, None)),), "PTX ISA: WARP_SZ is 32"),
    Implication(_ROCM, (one_of("warp_size", (32, 64, None)),), "LLVM AMDGPU: wavefront sizes"),
    Implication(
        is_("mfma", True), (one_of("warp_size", (64, None)),), "LLVM AMDGPU: CDNA's have 64 lanes"
    ),
)


def contradictions(capabilities: Capabilities, target: Target) -> list[str]:
    """Claims about `target` that cannot be true together: found, implied, why. [] if none."""
    if target.platform not in ("cuda", "rocm"):
        return []
    values = {name: fact.value for name, fact in capabilities.items()}
    found: Mapping[str, Any] = {**values, "platform": target.platform, "arch": target.arch}
    known = target.key in KNOWN
    return [
        f"{rule.having} on {target.key}, but that implies "
        f"{' or '.join(map(str, rule.implied))}; {rule.why}; correct the plugin's facts"
        for rule in IMPLICATIONS
        if (known or not _names_architectures(rule))
        and rule.having.holds(found[rule.having.field])
        and not any(condition.holds(found[condition.field]) for condition in rule.implied)
    ]


def disagreements(plugin: Plugin, others: Iterable[Plugin]) -> list[str]:
    """Facts of a variant that the other plugins of its target state otherwise. [] if none.

    The hardware is the same, so one of them is wrong; the variant, which goes first, has to show
    that it is the other.
    """
    if "." not in plugin.name:
        return []
    mine = {fact.name: fact.value for fact in plugin.capabilities}
    return [
        f"{fact.name} = {mine[fact.name]}, but {other.name} says {fact.value} ({fact.source}); "
        "leave it out, or correct the other"
        for other in others
        if other.name != plugin.name and other.home.is_exact(plugin.home)
        for fact in other.capabilities
        if fact.name in mine and mine[fact.name] != fact.value
    ]


def _names_architectures(rule: Implication) -> bool:
    """Whether the rule lists architectures, and so says nothing of one that is newer than it."""
    return any(condition.field == "arch" for condition in rule.implied)
