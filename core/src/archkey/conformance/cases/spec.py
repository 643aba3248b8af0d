# SPDX-License-Identifier: Apache-2.0
"""How edge and random cases are written down: a frozen dataclass of metadata, and its text.

A family has one dataclass for an operator's calls: `call(make)` gives the keyword arguments. Edges
are rows of it, random cases are drawn fields of it, and `describe` makes the label of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import torch

from archkey.conformance.case import Case, Maker

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["DTYPES", "INTEGERS", "describe", "edges", "randoms"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

INTEGERS = {"int32": torch.int32, "int64": torch.int64}

Call = Callable[[Maker], Mapping[str, Any]]
"""A frozen dataclass that can be called."""


def edges(operator: str, table: Iterable[tuple[str, Iterable[Call]]]) -> Iterator[Case]:
    """An edge case for each call of a row; a row says first what its calls are about."""
    for about, calls in table:
        for call in calls:
            yield Case(operator, about, describe(call), call, edge=True)


def randoms(operator: str, calls: SearchStrategy[Any]) -> SearchStrategy[Case]:
    """A case for each call that is drawn."""
    return calls.map(lambda call: Case(operator, "random", describe(call), call))


def describe(spec: Any) -> str:
    """Every field of a dataclass that is not its default, `name=value`; a true flag is its name."""
    told = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.default is MISSING or value != field.default:
            text = "-".join(map(str, value)) if isinstance(value, tuple) else value
            told.append(field.name if value is True else f"{field.name}={text}")
    return ", ".join(told)
