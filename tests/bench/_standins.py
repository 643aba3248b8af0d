# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for libraries that cannot run here: their functions, in their conventions.

Each has the real function's signature, and computes with archkey's reference what the library's own
documentation says, in its layouts: an adapter that swaps two arguments, or leaves a convention of
the library's in an output, is found out by comparing with the truth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

PEERS = "archkey.bench.peers."


@contextmanager
def installed(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Modules that can be imported, with these contents; adapters imported meanwhile go again."""
    before = dict(sys.modules)
    for name, contents in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = sys.modules.setdefault(".".join(parts[:end]), ModuleType(parts[end - 1]))
            module.__path__ = []  # type: ignore[attr-defined]
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
        vars(sys.modules[name]).update(contents)
    try:
        yield
    finally:
        adapters = {name for name in sys.modules if name.startswith(PEERS)}
        roots = {name.partition(".")[0] for name in modules}
        ours = {name for name in sys.modules if name.partition(".")[0] in roots}
        for name in (adapters | ours) - set(before):
            del sys.modules[name]
