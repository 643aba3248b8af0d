# SPDX-License-Identifier: Apache-2.0
"""Everything archkey raises, in one tree.

    ArchkeyError
    ├── ArgumentError            a call's argument is wrong; nothing was written
    │   ├── ArgumentValueError   value, shape, stride or device    (also a ValueError)
    │   └── ArgumentTypeError    dtype or Python type              (also a TypeError)
    ├── UnknownName              no such operator, kernel, capability, target (also a KeyError)
    ├── TargetError              not a target                      (also a ValueError)
    ├── SettingError             an ARCHKEY_ variable cannot be read (also a ValueError)
    ├── PluginError              a plugin broke the contract of the door
    ├── RecordError              an evidence record cannot be read or written
    ├── CheckpointError          a model's description or files contradict themselves, or say what
    │                            is not known here             (also a ValueError)
    ├── MissingDependency        what an extra of archkey installs is not there, or in a
    │                            version that was not tested  (also an ImportError)
    ├── Unsupported              a valid request that this device cannot serve; carries its Decision
    │                                                              (also a NotImplementedError)
    ├── PrepareError             some problems could not be prepared; the others are
    └── FrozenError              a kernel had to be built after `session.freeze("error")`

A message names what was asked, what was found, and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archkey.selection import Decision

__all__ = [
    "ArchkeyError",
    "ArgumentError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "CheckpointError",
    "FrozenError",
    "MissingDependency",
    "PluginError",
    "PrepareError",
    "RecordError",
    "SettingError",
    "TargetError",
    "UnknownName",
    "Unsupported",
    "describe",
    "nearest",
]


class ArchkeyError(Exception):
    """Base of all errors of archkey."""


class ArgumentError(ArchkeyError):
    """A call's argument is wrong. Raised before anything is written."""


class ArgumentValueError(ArgumentError, ValueError):
    """A value, shape, stride or device that the contract refuses."""


class ArgumentTypeError(ArgumentError, TypeError):
    """A dtype or Python type that the contract refuses."""


class UnknownName(ArchkeyError, KeyError):
    """A name that nothing here carries; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known, self.hint = kind, name, tuple(known), hint
        tail = f" {hint}" if hint else ""
        super().__init__(f"unknown {kind} {name!r:.100}; {nearest(name, self.known)}.{tail}")

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the message in quotes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.name, self.known, self.hint)  # from worker processes


class TargetError(ArchkeyError, ValueError):
    """A text that names no target."""


class SettingError(ArchkeyError, ValueError):
    """An environment variable of archkey that cannot be read."""


class PluginError(ArchkeyError):
    """A plugin broke the contract of the door, or a plugin asked for by name is not there."""


class RecordError(ArchkeyError):
    """An evidence record that cannot be read, written, or understood by this version."""


class CheckpointError(ArchkeyError, ValueError):
    """A checkpoint whose description cannot be read, is not known here, or contradicts itself."""


class MissingDependency(ArchkeyError, ImportError):
    """A distribution that an extra of archkey installs is missing, or outside of its range."""


class Unsupported(ArchkeyError, NotImplementedError):
    """A valid request which this device cannot serve. `decision` tells why, kernel by kernel."""

    def __init__(self, message: str, decision: Decision | None = None) -> None:
        super().__init__(message)
        self.decision = decision


class PrepareError(ArchkeyError):
    """Some problems could not be prepared. `failed`: each of them -> what was raised for it."""

    def __init__(self, failed: Mapping[Any, BaseException]) -> None:
        self.failed = dict(failed)
        lines = [f"  {problem}: {describe(error)}" for problem, error in self.failed.items()]
        super().__init__(
            f"{len(lines)} problems could not be prepared, all others are:\n" + "\n".join(lines)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failed,)


class FrozenError(ArchkeyError):
    """A problem that was not prepared reached a frozen session."""


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """Names like `name` as a clause for a message: 'did you mean …' or 'known: …'."""
    names = sorted(set(known))
    # The cutoff admits one swapped or missing word part, e.g. "rmsnorn" or "qk_rmsnorm".
    close = difflib.get_close_matches(str(name), names, n=most, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close)
    return "known: " + (", ".join(names) if names else "none")


def describe(error: BaseException, most: int = 1000) -> str:
    """Type and message of what foreign code raised; survives a `str` that raises or never ends."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = f"{type(error).__name__} (its message cannot be read)"
    return text if len(text) <= most else text[:most] + "..."
