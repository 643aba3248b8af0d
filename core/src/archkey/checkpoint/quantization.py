# SPDX-License-Identifier: Apache-2.0
"""Which scheme a module has: exclusions, overrides, what nobody quantises, then the default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from archkey.checkpoint.patterns import Matcher, Pattern, producer_pattern
from archkey.checkpoint.scheme import UNQUANTIZED, Scheme
from archkey.errors import CheckpointError

__all__ = ["FUSED", "NEVER", "Quantization", "Resolution"]

FUSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
        "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
        "in_proj_ba": ("in_proj_b", "in_proj_a"),
    }
)
"""What engines run as one product: name -> modules of the files, in the order of their rows.

vllm and sglang `packed_modules_mapping` of the models; sglang
`quantization/utils.py:_FALLBACK_FUSED_SHARDS`. Qwen3-Next has `in_proj_qkvz` and `in_proj_ba` in
its files, so a fused name may also be a module of its own.
"""

NEVER = tuple(
    Pattern("subtree", text) for text in ("mlp.gate", "mlp.router", "block_sparse_moe.gate")
)
"""Routers of experts: no Linear in transformers 5, so producers neither quantise nor exclude them
(sglang#36158 lists the excludes of such a checkpoint), and engines build them unquantised."""


@dataclass(frozen=True)
class Resolution:
    """The scheme of one module and what decided it."""

    name: str
    scheme: Scheme
    rule: str
    """"exclude", "override", "never" (see NEVER) or "default"."""
    pattern: Pattern | None = None
    """The pattern that matched; None by default."""
    shards: tuple[Resolution, ...] = ()
    """Of a fused module, those it was resolved from."""

    @property
    def why(self) -> str:
        """The decision in a few words."""
        if self.pattern is None:
            return "no pattern matches, so the default"
        return f"{_SAID[self.rule]} {self.pattern.text!r}"


_SAID = {
    "exclude": "excluded by",
    "override": "set by",
    "never": "by convention never quantised,",
}


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint says of its quantisation, in normal form. `archkey.checkpoint.read` it."""

    producer: str
    """"quark", "compressed-tensors", "modelopt", "fp8", "mxfp4", or "none"."""
    default: Scheme = UNQUANTIZED
    """Of a module that nothing below names."""
    exclude: tuple[Pattern, ...] = ()
    """Modules in the model's own dtype; goes before everything else."""
    overrides: tuple[tuple[Pattern, Scheme], ...] = ()
    """Schemes of modules by pattern; the first that matches."""
    never: tuple[Pattern, ...] = NEVER
    """Modules that the producer leaves alone without saying so."""
    kv_cache: str = "none"
    """Format of the KV cache that scales are stored for: "none", "fp8" or "nvfp4"."""
    dtype: str = "bfloat16"
    """What is not quantised has this dtype, by torch's name."""
    unread: tuple[str, ...] = ()
    """Fields of the description that this version does not know."""

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """All that the description names modules with, exclusions first."""
        return (*self.exclude, *(pattern for pattern, _ in self.overrides))

    def excluding(self, *patterns: str) -> Quantization:
        """The same with further exclusions, as globs or after "re:" as regular expressions.

        For files that hold unquantised modules which their description forgets (sglang#36158):
        `read(folder).excluding("mtp.*")`.
        """
        more = (producer_pattern(text, "glob") for text in patterns)
        return replace(self, exclude=(*self.exclude, *more))

    def scheme(self, name: str) -> Scheme:
        """The scheme of module `name`, spelt as in the files or fused (`qkv_proj`).

        CheckpointError if it is fused and its shards disagree.
        """
        return self.resolve(name).scheme

    def resolve(self, name: str) -> Resolution:
        """The scheme of module `name`, and which pattern decided it; see `scheme`."""
        own = self._one(name)
        shards = tuple(self._one(shard) for shard in _shards_of(name))
        if not shards:
            return own
        rules = {shard.rule for shard in shards}
        # The fused name stands in the files of some models, and then in their patterns, too.
        named_itself = own.rule == "exclude" and "exclude" not in rules
        if named_itself or (own.rule == "override" and rules == {"default"}):
            return own
        if len({shard.scheme for shard in shards}) > 1:
            raise CheckpointError(_disagreement(name, shards))
        return replace(shards[0], name=name, shards=shards)

    def _one(self, name: str) -> Resolution:
        """The scheme of `name` as it stands, remembered: products ask for their shards again."""
        known = self._resolved.get(name)
        if known is None:
            known = self._resolved[name] = self._decided(name)
        return known

    @cached_property
    def _resolved(self) -> dict[str, Resolution]:
        return {}

    def _decided(self, name: str) -> Resolution:
        found = self._matcher.find(name)
        if found is None:
            return Resolution(name, self.default, "default")
        rule, scheme = self._rules[found]
        return Resolution(name, scheme, rule, found)

    @cached_property
    def _rules(self) -> dict[Pattern, tuple[str, Scheme]]:
        """What each pattern does. Of one that stands twice, the first counts."""
        listed = [
            *((pattern, ("exclude", UNQUANTIZED)) for pattern in self.exclude),
            *((pattern, ("override", scheme)) for pattern, scheme in self.overrides),
            *((pattern, ("never", UNQUANTIZED)) for pattern in self.never),
        ]
        rules: dict[Pattern, tuple[str, Scheme]] = {}
        for pattern, rule in listed:
            rules.setdefault(pattern, rule)
        return rules

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self._rules)


def _shards_of(name: str) -> tuple[str, ...]:
    """The modules that engines fuse into `name`; () if it is no fused name."""
    base, dot, last = name.rpartition(".")
    return tuple(base + dot + shard for shard in FUSED.get(last, ()))


def _disagreement(name: str, shards: Iterable[Resolution]) -> str:
    lines = [f"  {shard.name}: {shard.scheme} ({shard.why})" for shard in shards]
    return (
        f"{name} is one product of modules with different schemes:\n"
        + "\n".join(lines)
        + "\nKeep them as separate modules, or give them one scheme: exclude all of them or none."
    )
