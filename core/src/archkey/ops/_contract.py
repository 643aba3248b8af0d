# SPDX-License-Identifier: Apache-2.0
"""What an operator is: a contract that kernels implement and callers rely on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from archkey.errors import ArgumentTypeError

if TYPE_CHECKING:
    from archkey.session import Session

P = ParamSpec("P")
R = TypeVar("R")


class Problem(Protocol):
    """The key of a call: a NamedTuple of all that is known before the numbers.

    dtypes are torch's names ("bfloat16"); the last field is `operator`, with the operator's name
    as its default. What is not in the Problem may not decide which code runs.
    """

    @property
    def operator(self) -> str: ...
    def _asdict(self) -> dict[str, Any]: ...
    def _replace(self, *args: Any, **kwargs: Any) -> Any: ...
    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Operator:
    """A contract.

    name       its name, and the name of its public function
    family     "mla", "sparse_mla", "rmsnorm", "attention", "kda", or a vendor's own
    problem    the NamedTuple class of its Problems
    inputs     what a kernel is called with, in order: `run(*inputs, *outputs)`
    outputs    what a kernel writes, in order; a state updated in place is one of them
    reference  "module:function": plain torch; takes `inputs` by name and `compute_dtype`, returns
               `outputs` unrounded
    function   "module:function": the public function, session first
    cases      the module of its exam cases, see `archkey.conformance.cases`; "" if it has none
    workloads  the module of what it is measured with, see `archkey.bench.workload`; "" for none
    examples   Problems of real models, by a short label
    """

    name: str
    family: str
    problem: type[Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reference: str
    function: str
    cases: str = ""
    workloads: str = ""
    examples: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def summary(self) -> str:
        """The first line of the Problem's docstring: what the operator computes."""
        return (self.problem.__doc__ or "").strip().partition("\n")[0]


SESSIONS: dict[Any, Session] = {}
"""The session that calls on tensors of a torch device use. Filled by `archkey.session`."""


def public(impl: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """The function that users call: `impl` on the session of its first tensor's device.

    `session.<operator>(...)` calls `impl` itself, found as `__wrapped__`.
    """
    parameters = list(inspect.signature(impl).parameters.values())[1:]

    @functools.wraps(impl)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            session = SESSIONS[args[0].device]  # type: ignore[attr-defined]
        except (AttributeError, IndexError, KeyError):
            session = _find_session(impl.__name__, args, kwargs)
        return impl(session, *args, **kwargs)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _find_session(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Session:
    """The session of the first tensor among the arguments: a first one may be None."""
    # The session room sits above this one; it is loaded by the first call.
    from archkey.session import session_of

    for value in (*args, *kwargs.values()):
        if hasattr(value, "device"):
            return session_of(value.device)
    raise ArgumentTypeError(f"{name}: expected tensors, found none among the arguments")
