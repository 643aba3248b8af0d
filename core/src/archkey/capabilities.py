# SPDX-License-Identifier: Apache-2.0
"""What a device can do: named facts with value, source and reason.

    caps = archkey.open("rocm_gfx942").capabilities
    caps.fp8                 -> "e4m3fnuz"          the value, for code that branches on it
    caps["fp8"]              -> Capability(...)      value, source and reason, for people
    caps["acme:systolic"]    -> a vendor's own, always with its prefix

Values come from the plugin's table of facts; what the probe read from this very card goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from archkey.errors import PluginError, UnknownName

if TYPE_CHECKING:
    from archkey.probe import Device

__all__ = ["VOCABULARY", "Capabilities", "Capability", "Meaning", "gather"]


@dataclass(frozen=True)
class Meaning:
    """What a name of the vocabulary stands for, its type, and its value when nothing is known."""

    text: str
    kind: type
    absent: Any
    values: tuple[str, ...] = ()


def _flag(text: str) -> Meaning:
    return Meaning(text, bool, False)


def _size(text: str) -> Meaning:
    return Meaning(text, int, None)


def _one_of(text: str, *values: str) -> Meaning:
    return Meaning(text, str, "none", values)


VOCABULARY: Mapping[str, Meaning] = MappingProxyType(
    {
        "pdl": _flag(
            "programmatic dependent launch: a kernel may start before its predecessor ends"
        ),
        "tma": _flag("bulk tensor copies between global and shared memory"),
        "cluster": _flag("thread block clusters with distributed shared memory"),
        "wgmma": _flag("warpgroup matrix instructions (sm_90a only)"),
        "tcgen05": _flag("fifth-generation tensor cores with tensor memory (sm_100 family)"),
        "mfma": _flag("matrix fused multiply-add instructions (CDNA)"),
        "scaled_mfma": _flag("MFMA with block scales on FP8, FP6 and FP4 operands (gfx950)"),
        "lds_transpose": _flag("transposing reads from LDS (gfx950)"),
        "bf16": _flag("bfloat16 matrix instructions"),
        "tf32": _flag("TF32 (xf32) matrix instructions"),
        "fp8": _one_of("8-bit float of its matrix instructions", "e4m3fn", "e4m3fnuz", "none"),
        "mxfp4": _one_of("OCP MXFP4: scaled FP4 matrix products", "native", "emulated", "none"),
        "nvfp4": _one_of("NVIDIA NVFP4 (block 16, e4m3 scales)", "native", "emulated", "none"),
        "cuda_graph": _flag("capture and replay of launches (CUDA or HIP graphs)"),
        "warp_size": _size("lanes of a warp or wavefront"),
        "compute_units": _size("streaming multiprocessors or compute units of this card"),
        "shared_memory_bytes": _size("shared memory a block, or LDS a workgroup, may use [bytes]"),
        "l2_bytes": _size("last-level cache on the device, L2 [bytes]"),
        "memory_bytes": _size("device memory [bytes]"),
    }
)

# Facts of this very card, which the probe may have read.
_PROBED = ("compute_units", "shared_memory_bytes", "l2_bytes", "memory_bytes")


@dataclass(frozen=True)
class Capability:
    """A named fact. `source` is where the value was read, `reason` why it is so."""

    name: str
    value: Any
    source: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The keys `value`, `source`, `reason`."""
        return {"value": self.value, "source": self.source, "reason": self.reason}


class Capabilities(Mapping[str, Capability]):
    """The capabilities of one device. Attributes give values, items give whole facts."""

    def __init__(self, facts: Iterable[Capability]) -> None:
        self._facts = {fact.name: fact for fact in facts}

    def __getitem__(self, name: str) -> Capability:
        try:
            return self._facts[name]
        except KeyError:
            hint = "`archkey capabilities` lists them with their meaning."
            raise UnknownName("capability", name, self._facts, hint) from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name].value
        except UnknownName as error:
            raise AttributeError(str(error)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __repr__(self) -> str:
        return f"Capabilities({', '.join(f'{f.name}={f.value}' for f in self._facts.values())})"


def check(fact: Capability) -> None:
    """Refuse a fact outside the vocabulary, or with a value that its name does not allow."""
    meaning = VOCABULARY.get(fact.name)
    if meaning is None:
        if ":" in fact.name.strip(":"):
            return  # a vendor's own, as `vendor:name`
        hint = "A vendor's own capability is written `vendor:name`."
        raise UnknownName("capability", fact.name, VOCABULARY, hint)
    value, kind = fact.value, meaning.kind
    right_type = type(value) is kind  # a bool is not a size
    if not right_type or (meaning.values and value not in meaning.values):
        allowed = " or ".join(meaning.values) or kind.__name__
        raise PluginError(f"capability {fact.name} is {value!r}; it takes {allowed}")


def gather(device: Device, declared: Iterable[Capability], supplier: str | None) -> Capabilities:
    """Capabilities of `device`: the card's own facts, then the plugin's, then the vocabulary's.

    supplier  name of the plugin that declared facts, None if this target has no plugin
    """
    facts = {fact.name: fact for fact in declared}
    if supplier is None:
        missing = f"no plugin for {device.target.key} is loaded"
    else:
        missing = f"plugin {supplier} does not declare it"
    for name in _PROBED:
        read = getattr(device, name)
        if read is not None:
            why = f"read from {device.name or device.target.key}"
            facts[name] = Capability(name, read, f"probe ({device.source})", why)
    for name, meaning in VOCABULARY.items():
        facts.setdefault(name, Capability(name, meaning.absent, "default", missing))
    own = [fact for name, fact in facts.items() if name not in VOCABULARY]
    return Capabilities([*(facts[name] for name in VOCABULARY), *own])
