# SPDX-License-Identifier: Apache-2.0
"""One statement about one named value, as data.

The same type says which problems a kernel accepts, which capabilities it needs, and which
problems a tuning row is for. Because it is data, a refusal can name what was required and what
was found, and a misspelt field is caught when a plugin is loaded rather than ignored when a
kernel is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_RELATIONS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "is": (lambda found, value: bool(found == value), "{field} = {value}"),
    "one of": (lambda found, value: found in value, "{field} one of {value}"),
    "at most": (lambda found, value: _number(found) and found <= value, "{field} <= {value}"),
    "at least": (lambda found, value: _number(found) and found >= value, "{field} >= {value}"),
    "multiple of": (
        lambda found, value: _number(found) and found % value == 0,
        "{field} a multiple of {value}",
    ),
}


def _number(value: Any) -> bool:
    """Only numbers can be compared or divided; None is an unknown value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Condition:
    """`field` stands in `relation` to `value`; `why` says what depends on it."""

    field: str
    relation: str
    value: Any
    why: str = ""

    def __post_init__(self) -> None:
        if self.relation not in _RELATIONS:
            raise ValueError(f"relation {self.relation!r} is not one of {', '.join(_RELATIONS)}")
        if self.relation == "one of":
            if not isinstance(self.value, tuple):
                raise TypeError(f"{self.field}: 'one of' takes a tuple, found {self.value!r}")
        elif self.relation != "is" and not _number(self.value):
            raise TypeError(f"{self.field}: {self.relation!r} takes a number, found {self.value!r}")
        elif self.relation == "multiple of" and self.value <= 0:
            raise ValueError(f"{self.field}: no number is a multiple of {self.value}")

    def holds(self, found: Any) -> bool:
        """Whether a `found` value of the field satisfies the condition."""
        return _RELATIONS[self.relation][0](found, self.value)

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, tuple):
            value = "{" + ", ".join(map(str, value)) + "}"
        return _RELATIONS[self.relation][1].format(field=self.field, value=value)


def is_(field: str, value: Any, why: str = "") -> Condition:
    """`field == value`."""
    return Condition(field, "is", value, why)


def one_of(field: str, values: Iterable[Any], why: str = "") -> Condition:
    """`field` is one of `values`."""
    # A lone text would fall into its letters, none of which is ever found.
    return Condition(field, "one of", values if isinstance(values, str) else tuple(values), why)


def at_most(field: str, value: float, why: str = "") -> Condition:
    """`field <= value`; an unknown value (None) does not satisfy it."""
    return Condition(field, "at most", value, why)


def at_least(field: str, value: float, why: str = "") -> Condition:
    """`field >= value`; an unknown value (None) does not satisfy it."""
    return Condition(field, "at least", value, why)


def multiple_of(field: str, value: int, why: str = "") -> Condition:
    """`field % value == 0`."""
    return Condition(field, "multiple of", value, why)
