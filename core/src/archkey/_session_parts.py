# SPDX-License-Identifier: Apache-2.0
"""What a session is made of: the order of its kernels, overrides by name, operators as methods."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from archkey.errors import ArgumentValueError, UnknownName, nearest
from archkey.selection import Candidate

if TYPE_CHECKING:
    from archkey.session import Session

__all__ = ["candidates", "fp8_of", "known_operators", "meant", "method_of"]

log = logging.getLogger("archkey")


def candidates(plugins: Iterable[Any]) -> dict[str, tuple[Candidate, ...]]:
    """The kernels of each operator, best first."""
    by_operator: dict[str, list[Candidate]] = {}
    for plugin in plugins:
        for kernel in plugin.kernels:
            by_operator.setdefault(kernel.operator, []).append(Candidate(kernel, plugin.home))
    return {name: tuple(listed) for name, listed in by_operator.items()}


def known_operators(names: Iterable[str], operators: Collection[str]) -> None:
    """UnknownName unless an override's `names` are operators."""
    for name in names:
        if name not in operators:
            raise UnknownName("operator", name, operators, "An override names it.")


def meant(override: Mapping[str, str], operators: Collection[str]) -> dict[str, str]:
    """The environment's overrides of `operators`; it may name those of another target's vendor."""
    for name in override:
        if name not in operators:
            log.warning(
                "ARCHKEY_OVERRIDE_%s: no such operator here; %s",
                name.upper(),
                nearest(name, operators),
            )
    return {name: kernel for name, kernel in override.items() if name in operators}


def fp8_of(session: Session) -> str:
    """The FP8 flavour tensors must have; "any" where only the torch reference computes."""
    fact = session.capabilities["fp8"]
    if session.device.target.platform == "cpu" or fact.source == "default":
        return "any"
    return str(fact.value)


def method_of(session: Session, impl: Callable[..., Any]) -> Callable[..., Any]:
    """`impl` on `session`, for tensors of its device only."""
    device = session.device
    kind = device.torch_kind

    @functools.wraps(impl)
    def method(*args: Any, **kwargs: Any) -> Any:
        if device.source != "pretend":
            for value in (*args, *kwargs.values()):
                found: Any = getattr(value, "device", None)
                if not hasattr(found, "type"):  # no tensor; numpy arrays have a device too
                    continue
                if found.type == kind and (kind == "cpu" or found.index == device.index):
                    break
                raise ArgumentValueError(
                    f"{impl.__name__}: this session is of {kind}:{device.index}, found a tensor on "
                    f"{found}; call archkey.{impl.__name__}, which follows the tensor"
                )
        return impl(session, *args, **kwargs)

    return method
