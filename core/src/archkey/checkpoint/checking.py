# SPDX-License-Identifier: Apache-2.0
"""A plan against files: which tensors are missing, unexpected, or of another shape or dtype.

Scales may be stored with dimensions of size one more or fewer (`[]` and `[1]`, `[N]` and `[N, 1]`)
and in a wider float: that is no disagreement, a loader reshapes and casts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from archkey.checkpoint.files import Header
from archkey.checkpoint.names import collapse
from archkey.checkpoint.planning import Entry, Plan
from archkey.checkpoint.storage import Tensor
from archkey.errors import ArgumentValueError, CheckpointError

__all__ = ["Disagreement", "Report", "check"]

# What a module has beside its weight and the weight's scales, whatever its scheme.
_BESIDE = ("bias", "k_scale", "v_scale", "q_scale", "output_scale", "e_score_correction_bias")
_SHOWN = 8  # patterns of a remedy in a message
_SCALES = ("weight_scale", "weight_scale_inv", "weight_packed", "weight_scale_2")


@dataclass(frozen=True)
class Disagreement:
    """A tensor that files and plan do not agree about."""

    kind: str
    """"missing", "unexpected", "shape" or "dtype"."""
    tensor: str
    planned: str
    """As `uint8 [64, 32]`; "" if nothing was planned."""
    found: str
    """Likewise; "" if there is none."""

    def __str__(self) -> str:
        return f"{self.tensor}: {self.what}"

    @property
    def what(self) -> str:
        """What was planned and what was found."""
        found = f"found {self.found}" if self.found else "not in the files"
        planned = f"planned {self.planned}" if self.planned else "no tensor is planned"
        return f"{planned}, {found}"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """What `check` found. True if there is no disagreement."""

    disagreements: tuple[Disagreement, ...]
    absent: tuple[str, ...] = ()
    """Modules of MTP, when the files hold none of them at all: they may be left out."""
    unquantized: tuple[str, ...] = ()
    """Modules that the description quantises, and that the files hold unquantised."""
    exclude: tuple[str, ...] = ()
    """Globs of them that the description would have to exclude, `mtp.*` if it is all of MTP."""

    def __bool__(self) -> bool:
        return not self.disagreements

    @property
    def lines(self) -> tuple[str, ...]:
        """The disagreements as text; tensors that differ in their numbers alone, in one line."""
        alike: dict[str, list[str]] = {}
        for found in self.disagreements:
            alike.setdefault(found.what, []).append(found.tensor)
        return tuple(f"{name}: {what}" for what in alike for name in collapse(alike[what]))

    @property
    def remedy(self) -> str:
        """What would make the description true; "" if it is none of exclusions."""
        if not self.unquantized:
            return ""
        listed = ", ".join(map(repr, self.exclude[:_SHOWN]))
        more = ", ..." if len(self.exclude) > _SHOWN else ""
        return (
            f"the files hold {len(self.unquantized)} modules unquantised that the description "
            f"quantises: read it with `.excluding({listed}{more})`, or exclude them in it, as its "
            "producer writes that"
        )

    def require(self) -> None:
        """CheckpointError with all disagreements, if there are any."""
        if not self:
            head = f"{len(self.disagreements)} tensors disagree with the plan:"
            listed = [f"  {line}" for line in self.lines]
            raise CheckpointError("\n".join([head, *listed, *filter(None, [self.remedy])]))


def check(plan: Plan, headers: Mapping[str, Header]) -> Report:
    """Compare the tensors of `plan` with those in files (`from_safetensors`).

    Only linear modules are judged: norms, embeddings and a vision tower are not planned. A tensor
    is unexpected if it belongs to a planned module, or is a scale that no planned module has.
    ArgumentValueError for a plan of several ranks: files hold whole tensors.
    """
    if plan.tp != 1:
        raise ArgumentValueError(f"files hold whole tensors, found a plan for {plan.tp} ranks")
    mtp = [entry for entry in plan if entry.layer.mtp]
    without_mtp = bool(mtp) and not any(_present(entry, headers) for entry in mtp)
    judged = [entry for entry in plan if not (without_mtp and entry.layer.mtp)]
    found: list[Disagreement] = []
    known: set[str] = set()
    plain: list[str] = []
    for entry in judged:
        known |= {tensor.name for tensor in entry.tensors}
        stacked = _stacked(entry, headers)
        if stacked is not None:
            known.add(stacked)
            continue
        own = list(_compare(entry.tensors, headers))
        found += own
        if own and _is_plain(entry, plan.quantization.dtype, headers):
            plain.append(entry.name)
    modules = {entry.name for entry in judged}
    found += _unexpected(modules, known, headers)
    absent = tuple(entry.name for entry in mtp) if without_mtp else ()
    return Report(tuple(found), absent, tuple(plain), tuple(_exclusions(judged, {*plain})))


def _compare(tensors: Iterable[Tensor], headers: Mapping[str, Header]) -> Iterator[Disagreement]:
    for tensor in tensors:
        planned = _text(tensor.dtype, tensor.shape)
        header = headers.get(tensor.name)
        if header is None:
            yield Disagreement("missing", tensor.name, planned, "")
        elif _squeezed(header.shape) != _squeezed(tensor.shape):
            found = _text(header.dtype, header.shape)
            yield Disagreement("shape", tensor.name, planned, found)
        elif header.dtype not in (tensor.dtype, *tensor.also):
            found = _text(header.dtype, header.shape)
            yield Disagreement("dtype", tensor.name, planned, found)


def _unexpected(
    modules: set[str], known: set[str], headers: Mapping[str, Header]
) -> Iterator[Disagreement]:
    for name, header in headers.items():
        module, _, last = name.rpartition(".")
        ours = module in modules and last not in _BESIDE
        if name not in known and (ours or last in _SCALES):
            yield Disagreement("unexpected", name, "", _text(header.dtype, header.shape))


def _present(entry: Entry, headers: Mapping[str, Header]) -> bool:
    names = (f"{entry.name}.weight", f"{entry.name}.weight_packed", _stack_of(entry.name)[0])
    return any(name in headers for name in names)


def _is_plain(entry: Entry, dtype: str, headers: Mapping[str, Header]) -> bool:
    """Whether the files hold a quantised module's whole weight in the model's own dtype."""
    header = headers.get(f"{entry.name}.weight")
    shape = (entry.layer.rows, entry.layer.columns)
    if not entry.resolution.scheme.quantized:
        return False
    if header is None:
        return _stack_of(entry.name)[0] in headers
    return (header.dtype, header.shape) == (dtype, shape)


def _exclusions(entries: Iterable[Entry], plain: set[str]) -> Iterator[str]:
    """Globs of the modules in `plain`: all of a tree if it holds no other quantised module."""
    trees: dict[str, list[Entry]] = {}
    for entry in entries:
        trees.setdefault(entry.name.partition(".")[0], []).append(entry)
    for root, members in trees.items():
        quantized = {e.name for e in members if e.resolution.scheme.quantized}
        if len(members) > 1 and quantized and quantized <= plain:
            yield f"{root}.*"
        else:
            yield from (e.name for e in members if e.name in plain)


def _stacked(entry: Entry, headers: Mapping[str, Header]) -> str | None:
    """The tensor `[E, ...]` in which files hold an unquantised expert with all others.

    transformers 5 stacks experts of the Qwen models, `experts.gate_up_proj [E, 2I, H]` and
    `experts.down_proj [E, H, I]`; what producers quantise, they store one by one.
    """
    stack, shards = _stack_of(entry.name)
    header = headers.get(stack)
    if header is None or entry.resolution.scheme.quantized or len(header.shape) != 3:
        return None
    fits = header.shape[1:] == (shards * entry.layer.rows, entry.layer.columns)
    return stack if fits and header.dtype == entry.tensors[0].dtype else None


def _stack_of(name: str) -> tuple[str, int]:
    """The stacked tensor that would hold expert `name`, and how many modules side by side."""
    base, _, expert = name.partition(".experts.")
    projection = expert.rpartition(".")[2]
    joined = projection in ("gate_proj", "up_proj")
    return f"{base}.experts.{'gate_up_proj' if joined else projection}", 2 if joined else 1


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _text(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"
