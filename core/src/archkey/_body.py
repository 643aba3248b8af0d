# SPDX-License-Identifier: Apache-2.0
"""What the source of a Triton body is, with all that it calls, as a digest.

Triton has one, `cache_key`, which in 3.6 is another one in each order of compilation: a caller's
has the constants of what it calls only if that was digested before (`_update_hash` takes them
before it asks for the digest; 3.9 asks first). What one process prepared, another one would miss.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from typing import Any

__all__ = ["digest_of"]


@functools.lru_cache(maxsize=1024)
def digest_of(body: Any) -> str:
    """SHA-256 over `body`, all bodies that it calls and their constants, as hexadecimal digits."""
    found = hashlib.sha256()
    reached, seen = [body], {id(body)}
    for one in reached:  # grows meanwhile
        called, own = _references(one)
        flags = getattr(one, "noinline", False), one.starting_line_number
        found.update(repr((one.__module__, one.__name__, flags, own)).encode())
        for other in called:
            if id(other) not in seen:
                seen.add(id(other))
                reached.append(other)
    return found.hexdigest()


def _references(body: Any) -> tuple[list[Any], tuple[str, list[tuple[str, str]]]]:
    """Bodies that `body` names, in order; a digest of its text, and its global constants.

    By Triton's own rule.
    """
    from triton.runtime.jit import DependenciesFinder

    called: list[Any] = []

    class Finder(DependenciesFinder):  # type: ignore[misc]
        """Collects what Triton's digests."""

        def _update_hash(self, func: Any) -> None:
            called.append(func)

    finder = Finder(
        name=body.__name__,
        globals=body.__globals__,
        nonlocals=inspect.getclosurevars(body.fn).nonlocals,
        src=body.src,
    )
    finder.visit(body.parse())
    constants = [(name, repr(v)) for (name, _), (v, _) in finder.used_global_vals.items()]
    return called, (finder.ret, sorted(constants))
