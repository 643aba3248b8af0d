# SPDX-License-Identifier: Apache-2.0
"""How a target runs a scheme: by its matrix units, by decoding first, or not at all; and why.

`decide` is the one place that asks. It answers from the target's capabilities, and for MXFP4 it
names the kernel that `archkey.mxfp4_linear` would run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from archkey.checkpoint.scheme import Scheme
from archkey.ops.mxfp4_linear import Mxfp4LinearProblem

if TYPE_CHECKING:
    from archkey.capabilities import Capabilities
    from archkey.session import Session

__all__ = ["Verdict", "decide"]


@dataclass(frozen=True)
class Verdict:
    """How a target runs a module.

    level    "native": by its matrix units; "emulated": decoded first; "unsupported"
    reason   the capability's own, or what keeps it from being native
    convert  what a loader has to do to the stored codes and scales first; "" for nothing
    kernel   archkey's own for such a module, by its id; "" where archkey has no operator for it
    """

    level: str
    reason: str
    convert: str = ""
    kernel: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


_FOUR_BITS = ("mxfp4", "nvfp4")
"""Formats with a capability of their name, which is about products of two operands of it."""

FNUZ = (
    "OCP e4m3fn codes are to be made e4m3fnuz: byte 0x80 (-0, which is NaN there) becomes 0x00, "
    "and all scales are doubled, because the same byte means half there"
)
"""vllm and sglang `normalize_e4m3fn_to_e4m3fnuz`; AMD CDNA3 ISA, FP8 formats."""


def decide(session: Session, scheme: Scheme, rows: int, columns: int) -> Verdict:
    """How `session`'s target runs a linear module of `scheme` with a weight `[rows, columns]`."""
    verdict = _by_capabilities(session, scheme)
    if scheme.weight != "mxfp4" or verdict.level == "unsupported":
        return verdict
    packed = scheme.activation.format == "mxfp4"
    problem = Mxfp4LinearProblem(
        dtype="uint8" if packed else "bfloat16",
        out_dtype="bfloat16",
        in_features=columns,
        out_features=rows,
        x_scale_layout="row" if packed else "none",
    )
    chosen = session.decide(problem).chosen
    if chosen is None:
        return replace(verdict, level="unsupported", reason="no kernel of mxfp4_linear takes it")
    return replace(verdict, kernel=chosen.id)


def _by_capabilities(session: Session, scheme: Scheme) -> Verdict:
    if session.device.target.platform == "cpu":
        return Verdict("emulated", "computed by torch on the CPU, decoded first")
    capabilities = session.capabilities
    if scheme.weight in _FOUR_BITS:
        return _four_bits(capabilities, scheme)
    if scheme.weight == "mxfp8":
        return _mxfp8(capabilities)
    if scheme.weight == "fp8":
        return _fp8(capabilities, scheme)
    return _plain(capabilities)


def _plain(capabilities: Capabilities) -> Verdict:
    fact = capabilities["bf16"]
    if fact.value:
        return Verdict("native", f"bf16: {fact.reason}")
    return Verdict("unsupported", f"no bf16: {fact.reason}")


def _four_bits(capabilities: Capabilities, scheme: Scheme) -> Verdict:
    """What the capability says, if activations have the weight's format."""
    fact = capabilities[scheme.weight]
    if fact.value == "none":
        return Verdict("unsupported", f"{scheme.weight} is none: {fact.reason}")
    if fact.value == "native" and scheme.activation.format != scheme.weight:
        found = scheme.activation.format
        found = "are not quantised" if found == "none" else f"are {found}"
        return Verdict("emulated", f"weights are decoded first: activations {found}")
    return Verdict(str(fact.value), f"{scheme.weight}: {fact.reason}")


def _mxfp8(capabilities: Capabilities) -> Verdict:
    for name in ("scaled_mfma", "tcgen05"):
        if capabilities[name].value:
            return Verdict("native", f"{name}: {capabilities[name].reason}")
    if capabilities["bf16"].value:
        return Verdict("emulated", "decoded to bfloat16: no matrix instruction takes E8M0 scales")
    return Verdict("unsupported", "no matrix instruction takes E8M0 scales or bfloat16")


def _fp8(capabilities: Capabilities, scheme: Scheme) -> Verdict:
    fact = capabilities["fp8"]
    if fact.value == "none":
        if capabilities["bf16"].value:
            return Verdict("emulated", f"decoded to bfloat16, fp8 is none: {fact.reason}")
        return Verdict("unsupported", f"fp8 is none: {fact.reason}")
    convert = FNUZ if fact.value == "e4m3fnuz" else ""
    if scheme.activation.format == "none":
        return Verdict("emulated", "weights are decoded first: activations are not quantised")
    return Verdict("native", f"fp8 {fact.value}: {fact.reason}", convert)
