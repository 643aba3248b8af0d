# SPDX-License-Identifier: Apache-2.0
"""What to allocate for each module of a model: scheme, shapes and dtypes, decided once.

    plan = archkey.checkpoint.plan("Qwen3.5-397B-A17B-MXFP4", tp=8)
    plan["mtp.fc"].tensors      (Tensor("mtp.fc.weight", (4096, 8192), "bfloat16"),)
    plan.fused()                the same with qkv_proj, gate_up_proj, ... as engines run them

A plan is of modules as the files name them; a product of several is resolved from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from archkey.checkpoint.cut import share
from archkey.checkpoint.layer import Layer
from archkey.checkpoint.layer import layers as described
from archkey.checkpoint.quantization import FUSED, Quantization, Resolution
from archkey.checkpoint.reading import read
from archkey.checkpoint.storage import Tensor, tensors
from archkey.errors import ArgumentValueError, CheckpointError, UnknownName

__all__ = ["Entry", "Fusion", "Plan", "plan"]


@dataclass(frozen=True)
class Entry:
    """One module: `layer` is the whole of it, `tensors` what a rank allocates."""

    layer: Layer
    resolution: Resolution
    tensors: tuple[Tensor, ...]
    share: Layer
    """What a rank holds of `layer`."""
    shards: tuple[str, ...] = ()
    """Names of the modules that were fused; () for a module of the files."""

    @property
    def name(self) -> str:
        """The module's name, as in the files or fused."""
        return self.layer.name


@dataclass(frozen=True)
class Fusion:
    """A plan by the products that engines run."""

    entries: tuple[Entry, ...]
    conflicts: Mapping[str, str]
    """Products that cannot be one, by name, and why: which patterns decided what."""


@dataclass(frozen=True)
class Plan:
    """The modules of a model in order, with what each is and allocates."""

    quantization: Quantization
    entries: tuple[Entry, ...]
    tp: int = 1

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownName("module", name, self._by_name) from None

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {tensor.name: tensor for entry in self.entries for tensor in entry.tensors}

    def fused(self) -> Fusion:
        """The plan with modules joined that engines run as one product, see `FUSED`.

        Modules whose schemes differ stay separate, and `conflicts` says so.
        """
        joined: dict[str, Entry] = {}  # first shard -> product
        gone: set[str] = set()  # the other shards
        conflicts: dict[str, str] = {}
        for name, shards in _fusions(self._by_name):
            try:
                joined[shards[0]] = self._join(name, shards)
            except CheckpointError as error:
                conflicts[name] = str(error)
            else:
                gone |= {*shards[1:]}
        entries = (joined.get(e.name, e) for e in self.entries if e.name not in gone)
        return Fusion(tuple(entries), conflicts)

    def _join(self, name: str, shards: tuple[str, ...]) -> Entry:
        found = [self._by_name[shard] for shard in shards]
        resolution = self.quantization.resolve(name)
        held = _joined(name, [entry.share for entry in found])
        rows = resolution.scheme.block[0]
        for entry in found[:-1]:
            if rows and entry.share.rows % rows:
                raise CheckpointError(
                    f"{name}: {entry.name} has {entry.share.rows} rows, so what follows it starts "
                    f"inside a block of {rows} rows; keep them as separate modules"
                )
        return Entry(
            _joined(name, [entry.layer for entry in found]),
            resolution,
            tensors(resolution.scheme, held, self.quantization.dtype, len(shards)),
            held,
            shards,
        )


def plan(
    config: Mapping[str, Any] | str | Path | Quantization,
    layers: Iterable[Layer] | None = None,
    *,
    tp: int = 1,
) -> Plan:
    """What to allocate for the modules of a model.

    config  as for `archkey.checkpoint.read`, or what it returned
    layers  modules by the names that the files have; default: `archkey.checkpoint.layers(config)`
    tp      tensor-parallel ranks

    CheckpointError where the description is wrong, or a block or head would be cut;
    ArgumentValueError for a number of ranks below 1.
    """
    if tp < 1:
        raise ArgumentValueError(f"tp: found {tp}; expected a number of ranks, 1 or more")
    if isinstance(config, Quantization):
        quantization = config
        if layers is None:
            raise ArgumentValueError("layers: found None; a Quantization alone does not say them")
    else:
        quantization = read(config)
        layers = described(config) if layers is None else layers
    return Plan(quantization, tuple(_entries(quantization, layers, tp)), tp)


def _entries(quantization: Quantization, layers: Iterable[Layer], tp: int) -> Iterator[Entry]:
    for layer in layers:
        resolution = quantization.resolve(layer.name)
        held = share(layer, resolution.scheme, tp)
        yield Entry(layer, resolution, tensors(resolution.scheme, held, quantization.dtype), held)


def _fusions(entries: Mapping[str, Entry]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Fused names with their shards, where a plan has all of these."""
    firsts = {shards[0]: (fused, shards) for fused, shards in FUSED.items()}
    for name in entries:
        base, dot, last = name.rpartition(".")
        if last in firsts:
            fused, shards = firsts[last]
            listed = tuple(base + dot + shard for shard in shards)
            if all(shard in entries for shard in listed):
                yield base + dot + fused, listed


def _joined(name: str, shards: Iterable[Layer]) -> Layer:
    listed = list(shards)
    parts = tuple(part for layer in listed for part in layer.parts)
    return replace(listed[0], name=name, parts=parts, heads=0, shared_heads=False)
